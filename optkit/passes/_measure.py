"""Choosing by time which of several things a model is to have: what surely pays stays, the rest goes. Greedy, bounded.

First everything is screened: the model as it starts, and each thing flipped (had where it was not, left out where it
was), all in turn. The best of many such figures looks better than it is, so a screening changes nothing: it only
settles what stays as it was. What looks like a gain is tried again, the surest gain first, in a measurement of its own
against the model as chosen by then, and that one decides. Time that is left then goes into further screening.
"""

from __future__ import annotations

import time as clocks
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from optkit.errors import GivenError
from optkit.model.manifest import Decision, Ratio
from optkit.model.model import Model

Names = frozenset[str]
Build = Callable[[Names], Model | str]
"""Names of what the model is to have -> that model, or why it cannot be made."""
Timer = Callable[[Sequence[Model], float], list[Ratio]]
"""(models, about how many seconds) -> the ratio of each to the first."""

GROUP = 4
"""Things screened in one measurement, whose models are all in memory at once."""
GROUP_BYTES = 2e9
"""Bytes that the models of one measurement may have together; two there are in any case."""
SCREENING = 0.5
"""Share of the budget that screening leaves alone at first, and half of that later: what it finds has to be
confirmed."""
SHARE = 0.1
"""Share of the budget that one measurement gets, its first start not counted."""

TOO_CLOSE = "too close to call: the default stays"
NO_TIME = "not measured: no time left"


def choose(
    start: Names,
    names: Sequence[str],
    build: Build,
    timer: Timer,
    *,
    budget_s: float,
    clock: Callable[[], float] = clocks.monotonic,
) -> tuple[Names, list[Decision]]:
    """What to have of ``names``, and why.

    Something that ``start`` has goes where it makes the model slower, or surely brings no more than the ratio's margin,
    as the simpler model is the better one then; something that it has not comes only where it surely pays. ``Surely``
    means the whole interval of the ratio. Else all stays as it was.

    Args:
        start: what the model has to begin with; ``build`` can make it.
        names: what to decide about, the most promising first. Of those that are equal up to ``=`` the model has one at
            most.
        build: makes the models.
        timer: times them.
        budget_s: seconds of timing, starting the processes included. The first measurement is made in any case; a
            further one only where it should fit.
        clock: tells seconds.
    """
    seen: dict[str, Ratio | str] = {}
    stopwatch = _Stopwatch(build, timer, budget_s, clock)
    current, tried = start, set[str]()
    for reserved in (SCREENING, SCREENING / 2):
        while (waiting := [name for name in names if name not in seen]) and (room := stopwatch.room(current, reserved)):
            seen |= stopwatch.gains(current, waiting[:room])
        for name in _promising(current, seen):
            if name not in tried and stopwatch.room(current):
                tried.add(name)
                seen |= stopwatch.gains(current, [name])
                wanted = _wanted(seen[name])
                current = current if wanted in (None, name in current) else flipped(current, name)
    return current, [_decision(name, seen.get(name, NO_TIME), name in current, name in tried) for name in names]


def flipped(names: Names, name: str) -> Names:
    """With ``name`` in place of any that is equal to it up to ``=``; without it where it was there."""
    return names - {name} if name in names else frozenset(n for n in names if _slot(n) != _slot(name)) | {name}


def _slot(name: str) -> str:
    return name.partition("=")[0]


@dataclass
class _Stopwatch:
    """The timer within its budget."""

    build: Build
    timer: Timer
    budget_s: float
    clock: Callable[[], float]
    spent: float = 0.0
    last: tuple[float, int] = (0.0, 0)
    """Seconds of the measurement before, and of how many models."""

    @property
    def share(self) -> float:
        """Seconds for the blocks of one measurement."""
        return self.budget_s * SHARE

    def room(self, current: Names, reserved: float = 0.0) -> int:
        """How many things can be timed against ``current`` now, leaving the ``reserved`` share of the budget.

        A measurement takes about as long as the one before; what that took beyond its blocks, for each model.
        """
        base, (took, models) = self.build(current), self.last
        size = 0 if isinstance(base, str) else base.size_bytes
        largest = max(1, min(GROUP, int(GROUP_BYTES / max(1, size)) - 1))
        left = self.budget_s * (1 - reserved) - self.spent - min(took, self.share)
        start = max(took - self.share, 0.0) / max(1, models)
        if left < 0:
            return 0
        return max(0, min(largest, int(left / start) - 1)) if start else largest

    def gains(self, current: Names, names: Sequence[str]) -> dict[str, Ratio | str]:
        """Speedup of having each over not having it, all else as in ``current``; or why it cannot be told."""
        base = self.build(current)
        made = {name: base if isinstance(base, str) else self.build(flipped(current, name)) for name in names}
        models = {name: model for name, model in made.items() if isinstance(model, Model)}
        found: dict[str, Ratio | str] = {name: reason for name, reason in made.items() if isinstance(reason, str)}
        if isinstance(base, str) or not models:
            return found
        try:
            ratios = self._timed([base, *models.values()])[1:]
        except GivenError as error:
            if len(models) == 1:
                return found | dict.fromkeys(models, error.message)
            return found | {name: self.gains(current, [name])[name] for name in models}
        pairs = zip(models, ratios, strict=True)
        return found | {name: _inverse(ratio) if name in current else ratio for name, ratio in pairs}

    def _timed(self, models: Sequence[Model]) -> list[Ratio]:
        begin = self.clock()
        try:
            return self.timer(models, self.share)
        finally:
            self.last = self.clock() - begin, len(models)
            self.spent += self.last[0]


def _inverse(ratio: Ratio) -> Ratio:
    """The baseline against the candidate."""
    ends = {"speedup": 1 / ratio.speedup, "low": 1 / ratio.high, "high": 1 / ratio.low}
    return ratio.model_copy(update=ends | {"baseline_ms": ratio.candidate_ms, "candidate_ms": ratio.baseline_ms})


def _wanted(gain: Ratio | str) -> bool | None:
    """Whether to have it; None = nothing is sure."""
    if isinstance(gain, str):
        return None
    return True if gain.low > 1 else False if gain.high <= 1 + gain.margin else None


def _promising(start: Names, seen: Mapping[str, Ratio | str]) -> list[str]:
    """Those whose figure speaks for a change, surely or not; by the least that it says the change will bring."""
    least = {
        name: 1 / gain.high if name in start else gain.low
        for name, gain in seen.items()
        if isinstance(gain, Ratio) and _speaks_for_change(gain, name in start)
    }
    return sorted(least, key=least.__getitem__, reverse=True)


def _speaks_for_change(gain: Ratio, had: bool) -> bool:
    return _wanted(gain) is not had and (gain.speedup <= 1 + gain.margin if had else gain.speedup > 1)


def _decision(name: str, gain: Ratio | str, kept: bool, tried: bool) -> Decision:
    if isinstance(gain, str):
        return Decision(what=name, kept=kept, reason=gain)
    return Decision(
        what=name,
        kept=kept,
        speedup=gain.speedup,
        low=gain.low,
        high=gain.high,
        reason=_reason(gain, kept, tried),
    )


def _reason(gain: Ratio, kept: bool, tried: bool) -> str:
    wanted = _wanted(gain)
    if wanted is None:
        return TOO_CLOSE
    found = "faster" if wanted else "slower" if gain.high < 1 else f"brings at most {gain.margin:.0%}"
    if wanted is kept:
        return found
    return f"{found}, but another value more so" if tried else f"{found}, but no time was left to make sure"
