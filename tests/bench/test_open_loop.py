"""Time is simulated: the stubs and the sleep move the clock, and ``open_loop`` is the one of real runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from optkit.bench.facts import OpenLoop
from optkit.bench.open_loop import LoadSamples, arrivals, open_loop, percentiles, summarize, wait
from optkit.errors import UsageError


@dataclass
class Simulated:
    """A clock that only moves when something sleeps or is served."""

    service: Callable[[int, float], float]
    """(index, now) -> seconds the call takes."""
    late: float = 0.0
    """Every sleep ends so much too late."""
    now: float = 1000.0
    asked: list[int] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.late

    def call(self, index: int) -> None:
        self.asked.append(index)
        self.now += self.service(index, self.now)

    def load(self, rate: float, seconds: float, seed: int = 0) -> LoadSamples:
        return open_loop(self.call, rate=rate, seconds=seconds, seed=seed, clock=self.clock, sleep=self.sleep)

    def summary(self, rate: float, seconds: float) -> OpenLoop:
        return summarize(self.load(rate, seconds), "stub", rate)


def one_stall(at: int) -> Callable[[int, float], float]:
    return lambda index, now: 0.6 if index == at else 0.001


def p99(facts: OpenLoop) -> float:
    return next(each.ms for each in facts.percentiles if each.percent == 99)


@pytest.mark.parametrize("at", [5, 1000, 1970])
def test_a_stall_shows_in_p99_of_the_open_loop_and_not_of_the_closed_one(at: int) -> None:
    """1 ms a call, 200 requests/s for 10 s, one call of 600 ms: 120 requests come meanwhile."""
    simulated = Simulated(one_stall(at))
    closed = []
    for index in range(2000):
        begin = simulated.clock()
        simulated.call(index)
        closed.append(simulated.clock() - begin)
    assert np.percentile(closed, 99) == pytest.approx(0.001, rel=1e-6)

    facts = Simulated(one_stall(at)).summary(200, 10)
    assert facts.requests == 2000
    assert facts.service_ms == pytest.approx(1, rel=1e-6)
    assert facts.service_p99_ms == pytest.approx(1, rel=1e-6)
    assert 300 <= p99(facts) <= 600
    assert 600 <= facts.max_ms <= 602
    assert not facts.saturated


def test_without_a_stall_latency_is_service_and_the_little_queueing_there_is() -> None:
    """An M/D/1 queue at utilization .2 waits .2 * 1 ms / (2 * .8) = .125 ms on average."""
    facts = Simulated(lambda index, now: 0.001).summary(200, 500)
    assert np.mean(facts.samples_ms) == pytest.approx(1.125, abs=0.01)
    assert facts.achieved == pytest.approx(200, rel=0.001)
    assert (facts.lag_p50_ms, facts.lag_p99_ms) == (pytest.approx(0, abs=1e-6), pytest.approx(0, abs=1e-6))


def test_a_run_follows_lindleys_recursion() -> None:
    service = np.random.default_rng(3).exponential(0.004, 400)
    samples = Simulated(lambda index, now: float(service[index]), late=0.0003).load(200, 2)
    done = 0.0
    for index in range(400):
        started = max(samples.sent[index], done)
        done = started + service[index]
        assert samples.started[index] == pytest.approx(started, abs=1e-9)
        assert samples.done[index] == pytest.approx(done, abs=1e-9)


def test_a_late_sender_is_reported_and_counted() -> None:
    """Sleeps end 2 ms late; who comes while a call runs stands in line on time."""
    samples = Simulated(lambda index, now: 0.001, late=0.002).load(50, 20)
    lag = samples.sent - samples.scheduled
    in_line = samples.started > samples.sent
    assert in_line.sum() > 20
    assert np.all(lag[in_line] == 0)
    alone = lag[~in_line]
    assert np.all((alone >= -1e-9) & (alone <= 0.002 + 1e-9))
    facts = summarize(samples, "stub", 50)
    assert facts.lag_p99_ms == pytest.approx(2, abs=1e-6)
    assert facts.percentiles[0].ms == pytest.approx(3, abs=1e-6)


def test_more_than_can_be_done_is_saturated_and_ends() -> None:
    """10 ms a call at 200/s: of 200 requests in 1 s, 200 are done by 2 s, so the head of the line is 1 s late."""
    simulated = Simulated(lambda index, now: 0.010)
    facts = simulated.summary(200, 1)
    assert facts.saturated
    assert facts.achieved == pytest.approx(100, rel=0.02)
    assert p99(facts) == pytest.approx(1000, rel=0.05)


def test_what_is_never_served_counts_with_its_wait() -> None:
    """100 ms a call: the head of the line is 1 s late after about 1.1 s, and some 190 of 200 are left."""
    simulated = Simulated(lambda index, now: 0.100)
    samples = simulated.load(200, 1)
    served = ~np.isnan(samples.done)
    facts = summarize(samples, "stub", 200)
    assert simulated.asked == list(range(int(served.sum())))
    assert 9 <= served.sum() <= 12
    assert facts.saturated
    assert facts.requests == len(facts.samples_ms) == 200
    waited = np.array(facts.samples_ms)[~served] / 1000
    assert waited == pytest.approx(facts.seconds - samples.scheduled[~served], abs=1e-9)


@pytest.mark.parametrize(("utilization", "expected"), [(0.8, False), (1.1, True)])
def test_saturation_is_where_utilization_reaches_one(utilization: float, expected: bool) -> None:
    facts = Simulated(lambda index, now: utilization / 100).summary(100, 20)
    assert facts.saturated is expected


def test_a_machine_that_slows_down_half_way_is_saturated() -> None:
    facts = Simulated(lambda index, now: 0.002 if now < 1005 else 0.012).summary(100, 10)
    assert facts.saturated


def test_arrivals_are_poisson_and_repeat_with_the_seed() -> None:
    times = arrivals(200, 100, 7)
    gaps = np.diff(times)
    assert len(times) == 20_000
    assert np.all(gaps >= 0) and times[0] >= 0 and times[-1] < 100
    assert gaps.mean() == pytest.approx(0.005, rel=0.001)
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.03)
    assert np.mean(gaps > 0.010) == pytest.approx(np.exp(-2), abs=0.01)
    assert np.array_equal(times, arrivals(200, 100, 7))
    assert not np.array_equal(times, arrivals(200, 100, 8))


@pytest.mark.parametrize(("rate", "seconds"), [(0, 1), (-5, -1), (1, 0), (float("nan"), 1), (1e9, 10)])
def test_a_load_that_cannot_be_run_is_refused(rate: float, seconds: float) -> None:
    with pytest.raises(UsageError, match=r"cannot be run"):
        arrivals(rate, seconds, 0)


def test_percentiles_are_marked_where_samples_are_too_few() -> None:
    assert [each.enough for each in percentiles(np.ones(1000))] == [True, True, True, True]
    assert [each.enough for each in percentiles(np.ones(999))] == [True, True, True, False]
    assert [each.enough for each in percentiles(np.ones(100))] == [True, True, False, False]
    assert [each.ms for each in percentiles(np.arange(101) / 1000)] == pytest.approx([50, 90, 95, 99])


def test_a_short_real_run() -> None:
    samples = open_loop(lambda index: time.sleep(0.001), rate=100, seconds=0.3, seed=0)
    assert len(samples.done) == 30
    assert np.all(samples.sent >= samples.scheduled)
    assert np.all(samples.started >= samples.sent)
    assert np.all(samples.done >= samples.started + 0.001)
    assert np.all(samples.started[1:] >= samples.done[:-1])
    facts = summarize(samples, "sleeper", 100)
    assert (facts.label, facts.rate, facts.requests, len(facts.samples_ms)) == ("sleeper", 100, 30, 30)
    assert facts.max_ms >= facts.service_ms >= 1


def test_a_wait_is_never_short() -> None:
    for seconds in (0.0, 0.0001, 0.002):
        begin = time.perf_counter()
        wait(seconds)
        assert time.perf_counter() - begin >= seconds
