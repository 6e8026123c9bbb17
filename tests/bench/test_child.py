from __future__ import annotations

import time

import numpy as np
import pytest

from optkit.bench import child
from optkit.bench.child import peak_bytes, time_block, warm_up


class Clock:
    """A clock that a call moves on by the next duration; the last one repeats."""

    def __init__(self, *durations: float) -> None:
        self.now, self.durations, self.seen = 0.0, list(durations), list[int]()

    def __call__(self, index: int) -> None:
        self.seen.append(index)
        self.now += self.durations.pop(0) if len(self.durations) > 1 else self.durations[0]


def clocked(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def test_a_block_times_every_call_from_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = clocked(Clock(0.5, 0.25, 0.125), monkeypatch)
    assert time_block(clock, 3, 7) == [0.5, 0.25, 0.125]
    assert clock.seen == [7, 8, 9]


def test_warm_up_ends_when_times_are_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = clocked(Clock(0.5, 0.2, 0.1, 0.05, 0.03125), monkeypatch)
    assert warm_up(clock) == 0.03125
    assert len(clock.seen) < 17  # five fast calls beside five that were as fast


def test_warm_up_of_times_that_never_settle_ends_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = clocked(Clock(*[0.01 * 1.1**n for n in range(100)]), monkeypatch)
    warm_up(clock)
    assert child.WARM_S <= clock.now < child.WARM_S + 0.15
    assert len(clock.seen) == 26


def test_a_slow_model_is_called_twice_to_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = clocked(Clock(9.0, 8.0), monkeypatch)
    assert warm_up(clock) == 8.5
    assert clock.seen == [0, 1]


def test_peak_memory_follows_what_is_touched() -> None:
    before = peak_bytes()
    block = np.ones(max(before, 50_000_000), np.uint8)
    assert peak_bytes() >= before // 2 + block.nbytes // 2
    assert peak_bytes() > 50_000_000
