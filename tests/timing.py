"""A stopwatch that answers with known figures, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
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

    def __call__(self, job: Any, candidates: Sequence[Any], rules: Rules) -> list[Measured]:
        answer = self.answers[min(len(self.rules), len(self.answers) - 1)]
        self.rules.append(rules)
        self.jobs.append(job)
        self.candidates.append(list(candidates))
        self.clock.now += self.seconds
        return [measured(1.0), *(answer for _ in candidates[1:])]

    def ticking(self, clock: Clock, seconds: float) -> Stopwatch:
        """Each measurement takes so long on this clock."""
        self.clock, self.seconds = clock, seconds
        return self

    def installed(self, monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
        """In the place of the real one."""
        for place in ("stopwatch", "context"):
            monkeypatch.setattr(f"optkit.pipeline.{place}.time_candidates", self)
        return self
