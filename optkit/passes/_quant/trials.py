"""Models with some layers given back, judged by how much of what the limits allow they use up."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from optkit.model.manifest import LimitResult, Verdict
from optkit.passes._base import Context
from optkit.passes._quant.layered import Built, Layered, discard

RESERVE = 0.1
"""Share of the allowed loss that is kept back: the verdict is on other samples than those that repairs look at, and of
all ways to hold the limits they pick one that just does."""

Levels = frozenset[tuple[str, str]]
"""(layer, precision) of the layers that are given back."""
NONE: Levels = frozenset()


@dataclass
class Trials:
    """Each is built and judged once, and its files go as soon as it is known to miss the limits."""

    layered: Layered
    ctx: Context
    goal: float = 1 - RESERVE
    """Share of the allowed loss that may be used up."""
    by_drop: bool = False
    """Whether a ``by: bound`` limit is held against the drop itself, as these few samples cannot prove it."""
    judged: dict[Levels, Verdict] = field(default_factory=dict)
    files: dict[Levels, Built] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def built(self, levels: Levels) -> Built:
        """The model at these levels, made again where its files are gone."""
        if levels not in self.files:
            self.files[levels] = self.layered.build(dict(levels))
        return self.files[levels]

    def holds(self, levels: Levels) -> bool:
        """Whether the limits hold with what is left in reserve."""
        if levels not in self.judged:
            self.ctx.progress(len(self.judged), max(len(self.judged) + 1, self._expected()))
            self.judged[levels] = self.ctx.judge(self.built(levels).model)
        held = self._used(self.judged[levels]) <= self.goal
        if levels and not held and levels in self.files:
            discard(self.files.pop(levels), self.ctx.workdir)
        return held

    def moderate(self, unquantized: Verdict) -> str:
        """Ask for no more than the float model gives; which limits it misses, where it does not hold them all."""
        metric = next(iter(unquantized.metrics), None)
        for limit in _checked(unquantized):
            if metric and "bound" in limit.limit and (limit.allowed or 0.0) * self.goal < metric.bound:
                self.by_drop = True
                self.notes.append(
                    f"the {metric.samples} samples of the split search prove no {limit.name} below "
                    f"{metric.smallest_provable:.2g}: repairs went by the drop as measured there"
                )
        used = self._used(unquantized)
        if used > 1:
            missed = (limit for limit in _checked(unquantized) if self._share(limit, unquantized) > 1)
            told = (f"{limit.name} {limit.measured:.4g} (limit {limit.limit})" for limit in missed)
            return ", ".join([*unquantized.problems, *told])
        self.goal = self.goal if used <= self.goal else 1.0
        return ""

    def best(self) -> Levels:
        """What comes closest to the limits; of equals what gives back least."""
        return min(self.judged, key=lambda levels: (self._used(self.judged[levels]), len(levels)))

    def keep_only(self, levels: Levels) -> Built:
        """The model at these levels, all others removed."""
        kept = self.built(levels)
        for other in self.files.keys() - {levels}:
            discard(self.files.pop(other), self.ctx.workdir)
        return kept

    def ordered(self, levels: Levels) -> list[tuple[str, str]]:
        """In the order of the model's layers."""
        precision = dict(levels)
        return [(label, precision[label]) for label in self.layered.layers if label in precision]

    def told(self, levels: Levels) -> str:
        """``2 of 12 layers given back to float32``."""
        total = len(self.layered.layers)
        if not levels:
            return f"none of {total} layers given back"
        return f"{len(levels)} of {total} layers given back to {' and '.join(sorted({to for _, to in levels}))}"

    def bought(self, levels: Levels) -> str:
        """``cosine 0.971 -> 0.9953 (limit >= 0.99)``, of what fully quantized does not hold."""
        full, now = self.judged[NONE], self.judged[levels]
        after = {limit.name: limit.measured for limit in _checked(now)}
        lines = [
            f"{limit.name} {limit.measured:.4g} -> {after.get(limit.name, math.nan):.4g} (limit {limit.limit})"
            for limit in _checked(full)
            if self._share(limit, full) > self.goal
        ]
        return "on the split search " + ", ".join([*full.problems, *lines])

    def _expected(self) -> int:
        """About so many models to judge."""
        return 1 + (len(self.layered.ladder) - 1) * 2 * max(1, len(self.layered.layers).bit_length() - 1)

    def _used(self, verdict: Verdict) -> float:
        """Share of the allowed loss that is used up, of the limit that is nearest; above 1 it is missed."""
        shares = [self._share(limit, verdict) for limit in _checked(verdict)]
        return math.inf if verdict.problems else max(shares, default=0.0)

    def _share(self, limit: LimitResult, verdict: Verdict) -> float:
        by_drop = self.by_drop and "bound" in limit.limit
        return used_share(limit, verdict.metrics[0].drop if by_drop else limit.measured)


def _checked(verdict: Verdict) -> Iterator[LimitResult]:
    return (limit for limit in verdict.limits if limit.kind == "accuracy" and limit.measured is not None)


def used_share(limit: LimitResult, measured: float | None) -> float:
    """How much of the loss that ``limit`` allows ``measured`` has used up: ``>= 0.98`` at 0.99 is a half.

    Where no loss is allowed, 0 or infinite.
    """
    if measured is None or limit.allowed is None or math.isnan(measured):
        return math.inf
    loss, allowed = (1 - measured, 1 - limit.allowed) if limit.limit.startswith(">=") else (measured, limit.allowed)
    if allowed > 0:
        return max(0.0, loss / allowed)
    return 0.0 if loss <= allowed else math.inf
