"""Models with some layers given back, judged by how much of what the limits allow they use up."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from optkit.model.manifest import LimitResult, MetricResult, Verdict
from optkit.passes._base import Context
from optkit.passes._quant.layered import Built, Layered, discard

RESERVE = 0.1
"""Share of the allowed loss that is kept back: the verdict is on other samples than those that repairs look at, and of
all ways to hold the limits they pick one that just does."""

RESERVE_MAX = 0.5
"""The same of ``max_error``: the largest of many errors is larger on more samples. (On four repairs of a small
transformer it was 1.3 to 1.9 times that of the split search on evaluation data of three times the size.)"""

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
    idle: set[Levels] = field(default_factory=set)
    """Where giving back left nothing quantized, as layers that are alone may not pay."""
    notes: list[str] = field(default_factory=list)

    def built(self, levels: Levels) -> Built:
        """The model at these levels, made again where its files are gone."""
        if levels not in self.files:
            self.files[levels] = self.layered.build(dict(levels))
            if not self.files[levels].changes:
                self.idle.add(levels)
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
            elif metric and limit.name.endswith("metric_drop") and (limit.allowed or 0.0) * self.goal < _flip(metric):
                self.notes.append(
                    f"one of the {metric.samples} samples of the split search is {_flip(metric):.2g} of {metric.name}, "
                    f"more than the limit {limit.limit} leaves room for: what is given back may hang on a single one; "
                    "more search data make it surer"
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
        able = [levels for levels in self.judged if levels not in self.idle] or [NONE]
        return min(able, key=lambda levels: (self._used(self.judged[levels]), len(levels)))

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
        share = used_share(limit, verdict.metrics[0].drop if by_drop else limit.measured)
        more = limit.name.endswith("max_error") and self.goal < 1
        return share * (1 - RESERVE) / (1 - RESERVE_MAX) if more else share


def _flip(metric: MetricResult) -> float:
    """What one sample moves a metric that counts right ones; 0 for any other."""
    right = metric.original * metric.samples
    return 1 / metric.samples if 0 <= metric.original <= 1 and math.isclose(right, round(right), abs_tol=1e-6) else 0.0


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
