from __future__ import annotations

import time

import numpy as np
import pytest

from optkit.bench import child
from optkit.bench.child import least_calls, peak_bytes, steady, time_block, warm_up


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
    clock = clocked(Clock(0.25, 0.125, 0.03125), monkeypatch)
    warm = warm_up(clock, 0.5)
    assert (warm.seconds_per_call, warm.steady) == (0.03125, True)
    assert warm.calls == len(clock.seen) == 10  # five that differ in their median from none of the five before
    assert warm.seconds == clock.now


def test_fast_calls_warm_up_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    warm = warm_up(clocked(Clock(0.001), monkeypatch), 0.002)
    assert warm.seconds == pytest.approx(child.SETTLE_S, abs=0.0021)


def test_warm_up_of_times_that_never_settle_ends_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = clocked(Clock(*[0.01 * 1.1**n for n in range(100)]), monkeypatch)
    warm = warm_up(clock, 0.01)
    assert child.WARM_S <= clock.now < child.WARM_S + 0.15
    assert (warm.calls, warm.steady) == (26, False)


@pytest.mark.parametrize(("first_s", "steady"), [(1.52, True), (9.0, False)])
def test_a_slow_model_is_called_once_to_warm_up(first_s: float, steady: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is steady is told by the first inference."""
    clock = clocked(Clock(1.5), monkeypatch)
    warm = warm_up(clock, first_s)
    assert (warm.seconds_per_call, warm.calls, warm.steady) == (1.5, 1, steady)
    assert clock.seen == [0]


@pytest.mark.parametrize("durations", [(0.6, 0.02), (0.02,)])
def test_one_stall_makes_no_slow_model(durations: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a first inference that compiles."""
    warm = warm_up(clocked(Clock(*durations), monkeypatch), 30.0 if len(durations) == 1 else 0.02)
    assert (warm.seconds_per_call, warm.calls, warm.steady) == (pytest.approx(0.02), 10, True)


def test_every_shape_is_run_before_the_clock_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = np.zeros((1, 8)), np.zeros((1, 16))
    assert least_calls([{"x": short}] * 4) == 1
    assert least_calls([{"x": short}, {"x": short}, {"x": long}, {"x": long}]) == 3
    assert warm_up(clocked(Clock(1.5), monkeypatch), 1.5, least=3).calls == 3


def test_few_calls_are_judged_by_halves() -> None:
    assert steady([1.0, 1.04])
    assert not steady([1.0, 1.06])
    assert steady([9.0, 1.0, 1.0, 1.0, 1.0])
    assert not steady([2.0] * 5 + [1.0] * 5)


def test_peak_memory_follows_what_is_touched() -> None:
    before = peak_bytes()
    block = np.ones(max(before, 50_000_000), np.uint8)
    assert peak_bytes() >= before // 2 + block.nbytes // 2
    assert peak_bytes() > 50_000_000
