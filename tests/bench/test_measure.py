"""Processes and the clock are simulated; ``test_worker`` has real ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optkit.bench import measure as room
from optkit.bench.facts import Phases
from optkit.bench.measure import Candidate, Measured, Rules, calls_per_block, launches_within, measure, precise
from optkit.bench.worker import Ready
from optkit.errors import UsageError
from optkit.model.model import Model
from optkit.runner.base import RunnerAbout

X = [{"x": np.zeros((4, 16), np.float32)}, {"x": np.ones((4, 16), np.float32)}]


class Machine:
    """Where simulated processes live: each is faster or slower by luck, and each block and call a bit more."""

    def __init__(self, seed: int = 0, *, bias: float = 0.005, noise: float = 0.02, start_s: float = 0.4) -> None:
        self.random = np.random.default_rng(seed)
        self.bias, self.noise, self.start_s = bias, noise, start_s
        self.now, self.started = 0.0, 0
        self.starts: list[str] = []
        self.turns: list[tuple[int, int]] = []
        """(number of the process, start of the block)"""

    def worker(self, candidate: Candidate, inputs: list[Any]) -> Process:
        return Process(self, candidate)


class Process:
    """The face of ``Worker``. The candidate's label is its seconds per call."""

    def __init__(self, machine: Machine, candidate: Candidate) -> None:
        self.machine, self.peak = machine, 50_000_000 + machine.started
        self.number, self.true = machine.started, float(candidate.label)
        self.own = self.true * np.exp(machine.random.normal(0, machine.bias))
        machine.started += 1

    def __enter__(self) -> Process:
        self.machine.starts.append(f"start {self.number}")
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def ready(self) -> Ready:
        self.machine.now += self.machine.start_s
        self.machine.starts.append(f"ready {self.number}")
        phases = Phases(
            import_s=0.1, load_s=0, session_s=0.1, first_ms=self.number, warm_up_s=0.1, warm_up_calls=9, steady=True
        )
        return Ready(self.own, phases, RunnerAbout("onnxruntime", "1", 0.1, 0.0, 0.1))

    def block(self, calls: int, start: int) -> list[float]:
        self.machine.turns.append((self.number, start))
        disturbed = self.own * np.exp(self.machine.random.normal(0, self.machine.noise))
        seconds = disturbed * np.exp(self.machine.random.normal(0, 0.01, calls))
        seconds[0] += 0.002  # cold
        self.machine.now += float(seconds.sum())
        return [float(each) for each in seconds]


Simulate = Callable[..., Machine]


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Simulate:
    def use(*args: Any, **options: Any) -> Machine:
        machine = Machine(*args, **options)
        monkeypatch.setattr(room, "Worker", machine.worker)
        monkeypatch.setattr(time, "monotonic", lambda: machine.now)
        return machine

    return use


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10 ms, for which the numbers below are."""
    monkeypatch.setattr(room, "BLOCK_S", 0.01)


def timed(*seconds: float, rules: Rules | None = None, **options: Any) -> list[Measured]:
    model = Model(Path("m.onnx"), "onnx", "onnx")
    rules = rules or Rules(launches=5)
    return measure([Candidate(model, label=str(each)) for each in seconds], X, rules, **options)


def test_what_is_found(simulate: Simulate) -> None:
    simulate(noise=0.002)
    told: list[tuple[str, int, int]] = []
    base, other = timed(0.001, 0.0005, described="real", rows=4, watch=lambda *each: told.append(each))
    assert (base.ratio.speedup, base.ratio.low, base.ratio.high) == (1.0, 1.0, 1.0)
    assert other.ratio.speedup == pytest.approx(2, rel=0.02)
    assert (other.ratio.word, other.stable, other.ratio.inputs) == ("faster", True, "real, x float32[4,16]")
    assert other.steady.median_ms == pytest.approx(0.5, rel=0.02)
    assert other.steady.throughput == pytest.approx(4 / 0.0005, rel=0.02)
    assert {base.phases.first_ms, other.phases.first_ms} == {0, 1}  # of the first processes
    assert max(base.peak_mb, other.peak_mb) == pytest.approx(50.000009, rel=1e-12)  # of all
    assert told == [(f"launch {n + 1}", n, 5) for n in range(5)]


def test_blocks_are_kept_without_their_cold_first_call(simulate: Simulate) -> None:
    simulate(noise=0.002)
    one = timed(0.001, 0.001)[1]
    assert {len(block) for block in one.blocks} <= {9, 10}  # of 10 ms, and one dropped
    assert max(map(max, one.blocks)) < 0.0015
    assert one.launch_of == sorted(one.launch_of) and set(one.launch_of) == {0, 1, 2, 3, 4}
    assert len(one.launch_of) == len(one.blocks) == one.steady.blocks == one.ratio.blocks
    assert one.steady.calls == sum(map(len, one.blocks))


def test_a_fast_model_beside_a_slow_one_is_timed_as_it_is_alone(simulate: Simulate) -> None:
    machine = simulate(noise=0.002, bias=0.0)
    slow, fast = timed(0.35, 0.00012)
    assert fast.steady.median_ms == pytest.approx(0.12, rel=0.01)
    assert {len(block) for block in fast.blocks} == {83}  # 10 ms of 84, and the cold one dropped
    assert {len(block) for block in slow.blocks} == {1}  # of 3 at most, two for later launches' sake
    assert slow.steady.median_ms == pytest.approx(350, rel=0.01)
    assert machine.now < 0.8 + 10 + 3


def test_a_slow_model_takes_three_calls(simulate: Simulate) -> None:
    machine = simulate(noise=0.002, bias=0.0)
    one = timed(1.5, 0.001, rules=Rules(budget_s=1.0))[0]
    assert (one.steady.calls, one.steady.blocks, one.steady.launches) == (3, 3, 1)
    assert machine.now == pytest.approx(0.8 + 3 * (1.5 + 0.01), rel=0.01)


def test_processes_are_started_one_after_the_other(simulate: Simulate) -> None:
    machine = simulate()
    timed(0.01, 0.01, 0.01, rules=Rules(launches=2))
    assert machine.starts == [step for number in range(6) for step in (f"start {number}", f"ready {number}")]


def test_the_baseline_is_not_stable_where_its_own_time_is_not(simulate: Simulate) -> None:
    """But launches that differ are no fault of it: that is part of the ratios."""
    for seed in range(5):
        simulate(seed, bias=0.1, noise=0.002)
        assert timed(0.002, 0.002)[0].stable
    simulate(noise=0.3)
    assert [each.stable for each in timed(0.002, 0.002)] == [False, False]


def test_candidates_take_turns_in_any_order_and_inputs_rotate(simulate: Simulate) -> None:
    machine = simulate()
    timed(0.01, 0.01, 0.01, rules=Rules(launches=1))
    rounds = [tuple(number for number, _ in machine.turns[at : at + 3]) for at in range(0, len(machine.turns), 3)]
    assert all(sorted(each) == [0, 1, 2] for each in rounds)
    assert len(set(rounds)) > 3
    assert len({_first(seed, simulate) for seed in range(9)}) > 1
    assert {start for _, start in machine.turns} == {0, 1}


def _first(seed: int, simulate: Simulate) -> bool:
    """Whether the baseline's process is started first."""
    simulate(seed)
    return timed(0.01, 0.01, rules=Rules(launches=1, seed=seed))[0].phases.first_ms == 0


def test_twenty_runs_of_a_model_against_itself_are_same(simulate: Simulate) -> None:
    words = []
    for seed in range(20):
        simulate(seed)
        words.append(timed(0.0015, 0.0015)[1].ratio.word)
    assert words == ["same"] * 20


def test_twenty_runs_against_a_copy_that_is_5_percent_slower_find_it(simulate: Simulate) -> None:
    words = []
    for seed in range(20):
        simulate(seed, noise=0.01)
        words.append(timed(0.0015, 0.0015 * 1.05)[1].ratio.word)
    assert words.count("slower") >= 19


def test_more_rounds_are_made_where_noise_is_larger_and_never_more_than_the_budget_allows(simulate: Simulate) -> None:
    machine = simulate(noise=0.001)
    quiet = timed(0.002, 0.002)[1]
    assert 5 * room.ROUNDS <= quiet.steady.blocks <= 10 * room.ROUNDS
    assert machine.now < 7
    machine = simulate(noise=0.2)
    noisy = timed(0.002, 0.002)[1]
    assert noisy.steady.blocks > 3 * quiet.steady.blocks
    assert 10.0 < machine.now < 0.8 + 10.1  # the first start is not counted
    assert (noisy.steady.launches, noisy.stable, noisy.ratio.word) == (5, False, "same")


def test_launches_are_given_up_where_starting_takes_too_long(simulate: Simulate) -> None:
    machine = simulate(noise=0.2, start_s=20.0)
    one = timed(0.002, 0.002)[1]
    assert one.steady.launches == 1
    assert machine.now == pytest.approx(40 + 10, abs=0.1)


def test_a_model_that_takes_longer_than_the_budget_is_timed_all_the_same(simulate: Simulate) -> None:
    simulate()
    one = timed(8.0, 4.0)[1]
    assert (one.steady.launches, one.steady.blocks) == (1, room.MIN_ROUNDS)
    assert {len(block) for block in one.blocks} == {1}


@pytest.mark.parametrize(
    ("start_s", "round_s", "launches"),
    [
        (0.7, 0.003, 5),
        (1.5, 0.003, 3),  # 3 s each, half of them for the start
        (4.0, 0.003, 1),
        (60.0, 0.003, 1),
        (0.5, 0.3, 3),  # eight rounds take longer than the start
        (0.5, 5.0, 1),
    ],
)
def test_launches_within_a_budget(start_s: float, round_s: float, launches: int) -> None:
    assert launches_within(Rules(budget_s=10, launches=5), start_s, round_s) == launches


@pytest.mark.parametrize(
    ("speeds", "budget", "calls"),
    [
        ([0.0001, 0.0002], 5.0, [100, 50]),  # 10 ms of each
        ([0.02, 0.04], 5.0, [4, 4]),  # at least 4, so that three are left without the cold one
        ([0.3, 0.2], 5.0, [1, 1]),  # 8 rounds of .5 s are all that 5 s allow
        ([0.35, 0.00012], 10.0, [3, 84]),  # the fast one leaves 1.24 s of a round
        ([2.0, 0.005], 5.0, [1, 4]),
        ([1e-7, 1e-7], 5.0, [2000, 2000]),
        ([60.0], 5.0, [1]),
        ([0.01, 0.2, 0.002], -1.0, [2, 1, 5]),  # one that is warm, be there time or not
    ],
)
def test_block_length_follows_speed_and_budget(speeds: list[float], budget: float, calls: list[int]) -> None:
    assert calls_per_block(speeds, budget) == calls


def test_precision_is_the_worst_ratios() -> None:
    """Standard error of a ratio of two medians of 64 blocks with 1 %: .22 %; times 2.58, .57 %."""
    random = np.random.default_rng(0)
    steady = random.normal(1, 0.01, (64, 2))
    assert precise(steady, Rules(precision=0.01)) and not precise(steady, Rules(precision=0.002))
    assert not precise(np.hstack([steady, random.normal(1, 0.1, (64, 1))]), Rules(precision=0.01))


def test_a_model_alone_is_measured_until_its_own_time_is_known() -> None:
    random = np.random.default_rng(0)
    assert not precise(random.normal(1, 0.1, (64, 1)), Rules(precision=0.01))
    assert precise(np.ones((8, 1)), Rules())


def test_nothing_to_time_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="needs a candidate and a batch"):
        measure([], X)
    with pytest.raises(UsageError):
        measure([Candidate(Model(Path("m.onnx"), "onnx", "onnx"))], [])
