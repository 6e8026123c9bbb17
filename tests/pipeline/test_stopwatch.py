"""What is measured, how long, and what a verdict of slower takes: with known figures, on a clock of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optkit.bench.measure import Measured, Rules
from optkit.model.model import Model
from optkit.pipeline.allowance import USED_UP, Allowance, warming_seconds
from optkit.pipeline.job import Job
from optkit.pipeline.stopwatch import (
    COARSE,
    EARLIER,
    Estimate,
    estimate,
    full_rules,
    is_slower,
    time_fully,
    time_result,
)
from tests.pipeline import toy
from tests.pipeline.toy import make_job
from tests.timing import Clock, Stopwatch, measured, ratio


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path)


@pytest.fixture
def models(job: Job, tmp_path: Path) -> list[Model]:
    return [job.original, Model.open(toy.write_model(tmp_path / "after.onnx", factor=1.5))]


def coarse(job: Job, models: list[Model], allowance: Allowance, **asked: Any) -> Estimate:
    return estimate(job, models, allowance, **{"decides": True, "remeasure": False, **asked})


@pytest.mark.parametrize(
    ("found", "slower"),
    [
        (measured(0.9), True),
        (measured(0.9, width=0.1), False),
        (measured(0.97, width=0.005), True),
        (measured(0.985, width=0.001), False),
        (measured(0.9, stable=False), False),
        (measured(0.5, stable=False), True),
        (measured(2.0), False),
    ],
)
def test_slower_is_an_interval_below_the_margin_and_in_noise_far_below(found: Measured, slower: bool) -> None:
    assert is_slower(found) is slower


def test_one_measurement_suffices_where_nothing_is_slower(
    job: Job, models: list[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Stopwatch(1.3).installed(monkeypatch)
    assert coarse(job, models, Allowance(Clock())) == Estimate(ratio(1.3))
    assert watch.rules == [COARSE]


def test_slower_is_measured_again_for_twice_as_long_from_another_seed(
    job: Job, models: list[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Stopwatch(0.5, 0.6).installed(monkeypatch)
    found = coarse(job, models, Allowance(Clock()))
    assert (found.ratio, found.slower) == (ratio(0.6), True)
    assert found.note == "second measurement; the first said 0.50x"
    assert [(rules.budget_s, rules.seed, rules.launches) for rules in watch.rules] == [(1.0, 0, 1), (2.0, 1, 1)]


def test_an_estimate_that_is_only_shown_is_made_once_and_never_counts(
    job: Job, models: list[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Stopwatch(0.5).installed(monkeypatch)
    assert coarse(job, models, Allowance(Clock()), decides=False) == Estimate(ratio(0.5))
    assert len(watch.rules) == 1


def test_estimates_leave_half_of_the_time_to_the_final_measurement(
    job: Job, models: list[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    watch, allowance = Stopwatch(1.5).ticking(clock, 3.1).installed(monkeypatch), Allowance(clock)
    found = [coarse(job, models, allowance, remeasure=True) for _ in range(3)]
    assert found == [Estimate(ratio(1.5)), Estimate(ratio(1.5)), Estimate(note=USED_UP)]
    assert USED_UP == "not timed: too little of the time for timing is left"
    shown = [coarse(job, models, allowance, decides=False, remeasure=True) for _ in range(9)]
    assert [each.ratio for each in shown] == [ratio(1.5)] * 2 + [None] * 7
    assert allowance.spent == pytest.approx(4 * 3.1) and len(watch.rules) == 4


def test_to_make_sure_a_step_may_take_more(job: Job, models: list[Model], monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(0.5).installed(monkeypatch)
    for spent, note, count in ((5.5, USED_UP, 0), (5.4, "second measurement", 2), (7.0, USED_UP, 2)):
        assert note in coarse(job, models, Allowance(Clock(), spent, planned=spent), remeasure=True).note
        assert len(watch.rules) == count


def test_a_long_run_has_more_time_for_estimates(job: Job, models: list[Model], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    Stopwatch(1.5).ticking(clock, 3.0).installed(monkeypatch)
    allowance = Allowance(clock)
    clock.now = 180.0
    assert all(coarse(job, models, allowance, remeasure=True).ratio for _ in range(6))


def test_slower_without_time_to_make_sure_does_not_count_and_is_not_kept(
    job: Job, models: list[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    watch, allowance = Stopwatch(0.5).ticking(clock, 5.0).installed(monkeypatch), Allowance(clock)
    found = coarse(job, models, allowance)
    assert found == Estimate(ratio(0.5), "looked slower, no time left to make sure")
    assert coarse(job, models, Allowance(Clock())).slower is True
    assert len(watch.rules) == 3


def test_estimates_are_cached_but_those_of_a_noisy_machine_are_not(
    job: Job, models: list[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Stopwatch(measured(1.2, stable=False), 1.3, 1.4).installed(monkeypatch)
    first = coarse(job, models, Allowance(Clock()))
    assert (first.ratio, first.note) == (ratio(1.2), "not steady: the machine was too noisy")
    empty = Allowance(Clock(), spent=15.0)
    assert coarse(job, models, empty).note == USED_UP
    again = [coarse(job, models, Allowance(Clock())) for _ in range(2)]
    assert again == [Estimate(ratio(1.3)), Estimate(ratio(1.3), EARLIER)]
    assert coarse(job, models, empty) == Estimate(ratio(1.3), EARLIER), "what is known costs nothing"
    assert coarse(job, models, empty, decides=False).note == USED_UP, "and yet is not shown where nothing is decided"
    assert coarse(job, models, Allowance(Clock()), remeasure=True) == Estimate(ratio(1.4))
    assert len(watch.rules) == 3


@pytest.mark.parametrize(
    ("left", "start", "budget"), [(15.0, 1.0, 13 / 3), (100.0, 2.0, 10.0), (3.0, 1.0, 1.0), (-5.0, 1.0, 1.0)]
)
def test_the_full_measurement_leaves_room_for_a_second_one_twice_as_long(
    left: float, start: float, budget: float
) -> None:
    rules = full_rules(left, start)
    assert rules.budget_s == pytest.approx(budget)
    assert (rules.launches, rules.confidence, rules.margin) == (Rules().launches, 0.99, 0.02)


def test_the_result_is_measured_even_where_no_time_is_left_but_only_once(
    job: Job, models: list[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Stopwatch(0.5, 0.6).installed(monkeypatch)
    pair = time_fully(job, *models, Allowance(Clock(), spent=99.0))
    assert (pair.found.ratio, pair.slower, pair.settled) == (ratio(0.5), False, False)
    assert pair.found.ratio.word == "slower", "which is not delivered"
    assert pair.note == "looked slower, no time left to make sure"
    assert [rules.budget_s for rules in watch.rules] == [1.0]


@pytest.mark.parametrize(
    ("spent", "budgets"),
    [(0.0, [13 / 3, 26 / 3]), (9.0, [4 / 3, 8 / 3]), (10.3, [1.0, 1.7]), (10.9, [1.0, 1.1]), (11.1, [1.0])],
)
def test_a_second_full_measurement_is_as_long_as_there_is_room_for(
    job: Job, models: list[Model], monkeypatch: pytest.MonkeyPatch, spent: float, budgets: list[float]
) -> None:
    watch = Stopwatch(0.5, 0.6).slow(clock := Clock(), 1e-6).installed(monkeypatch)
    time_fully(job, *models, Allowance(clock, spent=spent, planned=spent))
    assert [rules.budget_s for rules in watch.rules] == pytest.approx(budgets, abs=1e-3)


@pytest.mark.parametrize("call_s", [1e-3, 0.05, 0.2, 0.3, 0.5, 0.8, 1.5, 6.0])
@pytest.mark.parametrize("speedup", [0.5, 1.5])
@pytest.mark.parametrize("elapsed", [0.0, 120.0])
def test_a_slow_model_keeps_to_the_allowance_but_for_the_least_measurement_of_the_result(
    job: Job, models: list[Model], monkeypatch: pytest.MonkeyPatch, call_s: float, speedup: float, elapsed: float
) -> None:
    clock = Clock()
    watch = Stopwatch(speedup).slow(clock, call_s).installed(monkeypatch)
    allowance = Allowance(clock)
    clock.now += elapsed
    for decides in (True, True):
        coarse(job, models, allowance, decides=decides, remeasure=True)
    before = allowance.spent
    time_fully(job, *models, allowance)
    coarse(job, models, allowance, decides=False)
    least = 1.0 + 2 * warming_seconds(call_s) + max(1.0, 6 * call_s)
    assert allowance.spent <= max(15.0, clock.now / 3, before + least) + 1e-6
    assert before <= max(15.0, clock.now / 3) * (2 / 3)
    assert len(watch.probed) <= 2, "each once"


def test_a_slow_model_is_not_timed_coarsely_at_all(
    job: Job, models: list[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, allowance = Stopwatch(1.5).slow(clock := Clock(), 1.5).installed(monkeypatch), Allowance(clock)
    assert coarse(job, models, allowance).note == USED_UP
    assert (watch.probed, watch.rules, allowance.spent) == (models[:1], [], pytest.approx(2.0))
    assert time_fully(job, *models, allowance).found.ratio == ratio(1.5)
    assert [rules.budget_s for rules in watch.rules] == [1.0]
    assert allowance.calls == {model.digest: 1.5 for model in models}


def test_how_slow_a_model_is_comes_from_the_measurements_of_this_run(
    job: Job, models: list[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, allowance = Stopwatch(2.0).installed(monkeypatch), Allowance(Clock())
    time_fully(job, *models, allowance)
    assert list(allowance.calls.values()) == pytest.approx([1e-3, 0.5e-3])
    assert coarse(job, models, allowance).ratio == ratio(2.0) and watch.probed == []


def test_the_baseline_itself_is_not_timed_but_with_other_session_entries_it_is(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    Stopwatch(1.1).installed(monkeypatch)
    timing, note = time_result(job, job.original, job.original, Allowance(Clock()))
    assert (timing, note) == (None, "not timed: the result is the baseline itself, no pass changed it")
    other = replace(job.original, session={"session.intra_op.allow_spinning": "0"})
    timing, note = time_result(job, job.original, other, Allowance(Clock()))
    assert timing is not None and (timing.result, timing.launches, note) == (ratio(1.1), 2, "")


def test_torch_eager_is_timed_alone_with_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path, toy.torch_model(tmp_path))
    baseline, result = (Model.open(toy.write_model(tmp_path / f"{f}.onnx", factor=f)) for f in (1.0, 1.5))
    for seconds, eager, why in ((2.0, 1.0, ""), (11.0, None, USED_UP)):
        clock = Clock()
        watch = Stopwatch(1.5).ticking(clock, seconds).installed(monkeypatch)
        timing, _ = time_result(job, baseline, result, Allowance(clock))
        assert timing is not None
        assert (timing.torch_eager_ms, timing.torch_note) == (eager, why)
        assert [len(asked) for asked in watch.candidates] == ([2, 1] if eager else [2])
