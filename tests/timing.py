"""A stopwatch that answers with known figures, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from optkit.bench.facts import Phases, Steady
from optkit.bench.measure import Measured, Rules
from optkit.model.manifest import Ratio
from optkit.runner.base import RunnerAbout

PHASES = Phases(import_s=0.1, load_s=0.0, session_s=0.1, first_ms=1.0, warm_up_s=0.1, warm_up_calls=9, steady=True)


def ratio(speedup: float, *, width: float = 0.05, baseline_ms: float = 1.0) -> Ratio:
    """``speedup``, with an interval of ``width`` (a share) to both sides."""
    return Ratio(
        baseline_ms=baseline_ms,
        candidate_ms=baseline_ms / speedup,
        speedup=speedup,
        low=speedup * (1 - width),
        high=speedup * (1 + width),
        confidence=0.99,
        blocks=10,
        inputs="real",
    )


def measured(speedup: float, *, stable: bool = True, width: float = 0.05) -> Measured:
    """One candidate, ``speedup`` times as fast as a baseline of 1 ms."""
    found = ratio(speedup, width=width)
    steady = Steady(
        median_ms=found.candidate_ms,
        mean_ms=found.candidate_ms,
        percentiles=(),
        throughput=1.0,
        calls=30,
        blocks=10,
        launches=2,
        spread=0.01,
    )
    about = RunnerAbout("onnxruntime", "1.31.1", 0.1, 0.0, 0.1)
    return Measured(PHASES, [[1e-3]], [0], 70.0, about, found, steady, stable)


class Clock:
    """Stands still until it is moved."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Stopwatch:
    """Stands for ``time_candidates``: each answer is for one call, the last one also for those after it."""

    def __init__(self, *answers: float | Measured) -> None:
        self.answers = [measured(each) if isinstance(each, int | float) else each for each in answers]
        self.rules: list[Rules] = []
        """As they were asked for, call by call."""
        self.jobs: list[Any] = []
        self.candidates: list[list[Any]] = []
        self.clock, self.seconds = Clock(), 0.0
        self.call_s = 0.0
        """Seconds of one call of any model, on this clock; 0 = as the answers say, in no time."""
        self.probed: list[Any] = []
        """Models that were called once to see how slow they are."""

    def __call__(self, job: Any, candidates: Sequence[Any], rules: Rules) -> list[Measured]:
        answer = self.answers[min(len(self.rules), len(self.answers) - 1)]
        self.rules.append(rules)
        self.jobs.append(job)
        self.candidates.append(list(candidates))
        self.clock.now += self.seconds
        found = [measured(1.0), *(answer for _ in candidates[1:])]
        return [self._slowed(each) for each in found] if self.call_s else found

    def call_seconds(self, model: Any, target: Any, inputs: Any) -> float:
        """Stands for the function of that name."""
        self.probed.append(model)
        self.clock.now += self.call_s and 0.5 + self.call_s
        return self.call_s or 1e-3

    def _slowed(self, found: Measured) -> Measured:
        """Tells the time of a call; and the clock moves on by a candidate's share: start, 5 calls, warm-up, blocks."""
        share, warm = self.rules[-1].budget_s / len(self.candidates[-1]), 2
        while warm < 10 and warm * self.call_s < 1:
            warm += 1
        self.clock.now += 0.5 + (5 + warm) * self.call_s + max(share, 3 * self.call_s)
        return replace(found, steady=found.steady.model_copy(update={"mean_ms": self.call_s * 1e3}))

    def ticking(self, clock: Clock, seconds: float) -> Stopwatch:
        """Each measurement takes so long on this clock."""
        self.clock, self.seconds = clock, seconds
        return self

    def slow(self, clock: Clock, call_s: float) -> Stopwatch:
        """Each call of each model takes so long on this clock."""
        self.clock, self.call_s = clock, call_s
        return self

    def installed(self, monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
        """In the place of the real one."""
        for place in ("stopwatch", "context"):
            monkeypatch.setattr(f"optkit.pipeline.{place}.time_candidates", self)
        monkeypatch.setattr("optkit.pipeline.stopwatch.call_seconds", self.call_seconds)
        return self


class Speeds:
    """Stands for ``time_candidates`` of passes that choose by time: a call takes as long as ``milliseconds`` says."""

    def __init__(self, milliseconds: Callable[[Any], float], *, width: float = 0.005) -> None:
        self.milliseconds, self.width = milliseconds, width
        self.asked: list[list[Any]] = []
        """The models of each measurement."""
        self.rules: list[Rules] = []

    def __call__(self, job: Any, candidates: Sequence[Any], rules: Rules) -> list[Measured]:
        models = [model for model, _ in candidates]
        self.asked.append(models)
        self.rules.append(rules)
        base = self.milliseconds(models[0])
        return [measured(base / self.milliseconds(model), width=self.width) for model in models]

    def installed(self, monkeypatch: pytest.MonkeyPatch) -> Speeds:
        """In the place of the real one."""
        monkeypatch.setattr("optkit.pipeline.context.time_candidates", self)
        return self
