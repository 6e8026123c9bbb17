"""How small a pruned model is to be, and the search for what just gets there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from optkit.errors import PassError
from optkit.model.manifest import Decision, Ratio

Counted = Literal["macs", "parameters"]
What = Literal["macs", "latency", "parameters"]
WORDS: dict[What, str] = {"macs": "MACs", "latency": "latency", "parameters": "parameters"}

TIMINGS = 6
"""Candidates that are timed at most."""
TOLERANCE = 0.05
"""A measured share this much below the target, relative to it, is near enough."""


class Goal(BaseModel):
    """The share of the model's cost that is to remain; exactly one of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    macs: float | None = Field(default=None, gt=0, lt=1)
    """Of the multiply-accumulates of convolutions, matrix products and attention, counted."""
    latency: float | None = Field(default=None, gt=0, lt=1)
    """Of the latency of the exported model, measured on this machine."""
    parameters: float | None = Field(default=None, gt=0, lt=1)
    """Of the number of parameters."""

    @model_validator(mode="after")
    def _one(self) -> Goal:
        if sum(share is not None for share in self.model_dump().values()) != 1:
            raise ValueError("state exactly one of macs, latency and parameters: {macs: 0.5}")
        return self

    @property
    def what(self) -> What:
        """The one that is stated."""
        return "macs" if self.macs is not None else "latency" if self.latency is not None else "parameters"

    @property
    def counted(self) -> Counted:
        """What is counted on the way; MACs stand for latency."""
        return "parameters" if self.parameters is not None else "macs"

    @property
    def share(self) -> float:
        """Its share, between 0 and 1."""
        return float(getattr(self, self.what))


def fewest(count: int, share: Callable[[int], float], target: float) -> int:
    """The fewest of ``count`` things to leave out so that ``share`` of them is at most ``target``, by bisection.

    ``count`` itself where even all of them do not suffice.
    """
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if share(middle) <= target else (middle + 1, high)
    return low


def at_least(value: float) -> str:
    """Three digits of a number above 0, rounded up, so that who asks for them gets them."""
    step = 10.0 ** (math.floor(math.log10(value)) - 2) if value > 0 else 1.0
    return f"{math.ceil(value / step) * step:.3g}"


def unreachable(what: What, target: float, best: float) -> PassError:
    """The error that names the best reached."""
    least = at_least(best)
    return PassError(
        f"The target of {target:.3g} of the {WORDS[what]} cannot be reached: the least is {least}.",
        expected=f"a share of at least {least}, or options that let more be pruned",
        fix="lower min_share or multiple, leave fewer layers out (exclude, kinds, residual), or ask for less",
    )


def by_time(
    count: int, macs: Callable[[int], float], measured: Callable[[int], Ratio], target: float
) -> tuple[int, list[Decision]]:
    """As ``fewest``, where the share of the latency is to be ``target``, with at most ``TIMINGS`` measurements.

    Starts where ``macs`` says ``target``, then goes by the secant of latency over MACs; of what is measured to reach
    the target, the largest.

    Args:
        count: of things that can be left out.
        macs: how many are left out -> share of the MACs.
        measured: how many are left out -> latency against what it was.
        target: between 0 and 1.

    Raises:
        PassError: nothing reaches it; names the best.
    """
    found: dict[int, Ratio] = {}
    slow, fast = _Point(0 if macs(0) == 1 else -1, 1.0, 1.0), None
    guess = fewest(count, macs, target)
    while len(found) < TIMINGS and (last := fast.gone - 1 if fast else count) > slow.gone:
        final = fast is None and len(found) + 1 == TIMINGS
        at = count if final else min(max(guess, slow.gone + 1), last)
        found[at] = measured(at)
        here = _Point(at, macs(at), 1 / found[at].speedup)
        slow, fast = (slow, here) if here.latency <= target else (here, fast)
        if target * (1 - TOLERANCE) <= here.latency <= target:
            break
        ends = (slow, fast) if fast else (_Point(0, 1.0, 1.0), here)
        guess = fewest(count, macs, _secant(*ends, target * (1 - TOLERANCE / 2)))
    if fast is None:
        raise unreachable("latency", target, min(1 / ratio.speedup for ratio in found.values()))
    return fast.gone, [_decision(macs(at), ratio, target, at == fast.gone) for at, ratio in found.items()]


class _Point(NamedTuple):
    gone: int
    """How many are left out."""
    macs: float
    """Share of the MACs."""
    latency: float
    """Share of the latency."""


def _secant(slow: _Point, fast: _Point, latency: float) -> float:
    """The share of the MACs at which a line through both meets ``latency``."""
    rise = slow.latency - fast.latency
    return fast.macs + (latency - fast.latency) * (slow.macs - fast.macs) / rise if rise > 0 else 0.0


def _decision(macs: float, ratio: Ratio, target: float, kept: bool) -> Decision:
    share = 1 / ratio.speedup
    reached = "more than the target" if share > target else "the largest that reaches it" if kept else "smaller still"
    return Decision(
        what=f"{macs:.0%} of the MACs",
        kept=kept,
        speedup=ratio.speedup,
        low=ratio.low,
        high=ratio.high,
        reason=f"{share:.3g} of the latency: {reached}",
    )
