"""The loop over passes: what is timed, and what a step that is measured slower leads to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optkit.errors import BudgetMissed, PassError
from optkit.model.manifest import StepRecord
from optkit.pipeline.allowance import USED_UP, Allowance
from optkit.pipeline.job import Job
from optkit.pipeline.steps import NO_BENCH, Done, Policy, estimate_others, run_steps
from optkit.recipe.recipe import Step
from tests.pipeline import offenders, toy
from tests.pipeline.toy import CALM, make_job, run
from tests.timing import Stopwatch, measured, ratio


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path)


@pytest.mark.parametrize(
    ("speedup", "keep", "status", "reason"),
    [
        (0.5, "measured", "rolled back", "measured slower: 0.50x [0.47, 0.53]"),
        (0.5, "always", "changed", "kept although measured slower: 0.50x [0.47, 0.53] (keep: always)"),
        (0.97, "measured", "changed", ""),
        (2.0, "measured", "changed", ""),
    ],
)
def test_a_measured_slower_step_is_rolled_back_unless_it_is_kept_always(
    job: Job, monkeypatch: pytest.MonkeyPatch, speedup: float, keep: Any, status: str, reason: str
) -> None:
    Stopwatch(speedup).installed(monkeypatch)
    result, (record,) = run(job, Step(id="s", options=toy.ScaleBy(), keep=keep), policy=Policy())
    assert (record.status, record.reason) == (status, reason)
    assert record.speedup == ratio(speedup)
    assert (result is job.original) == (status == "rolled back")


def test_only_steps_meant_for_speed_are_timed(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(0.5).installed(monkeypatch)
    _, records = run(job, toy.Aside(), toy.Nothing(), offenders.Rename(), policy=Policy())
    assert toy.statuses(records) == ["changed", "no effect", "rolled back"]
    assert watch.rules == []
    assert run(job, toy.ScaleBy(), policy=CALM)[1][0].speedup is None


def test_a_step_that_was_slower_only_once_or_in_noise_is_kept(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    for answers, note in (
        ((0.5, 1.1), "second measurement; the first said 0.50x"),
        ((0.9, measured(0.9, stable=False)), "not steady: the machine was too noisy"),
        ((measured(1.0, stable=False),), "not steady: the machine was too noisy"),
    ):
        Stopwatch(*answers).installed(monkeypatch)
        _, (record,) = run(job, toy.ScaleBy(), policy=Policy(remeasure=True))
        assert (record.status, record.reason) == ("changed", "")
        assert note in record.timing_note


def test_without_timing_every_changed_step_says_so(job: Job) -> None:
    done = run_steps(job, [Step(id="a", options=toy.ScaleBy()), Step(id="b", options=toy.Nothing())], CALM)
    done += run_steps(job, [Step(id="c", options=toy.Aside())], CALM)
    records = estimate_others(job, done, CALM)
    assert [record.timing_note for record in records] == ["not timed: --no-bench", "", "not timed: --no-bench"]
    assert [record.speedup for record in records] == [None] * 3


def test_steps_that_are_not_there_for_speed_are_timed_last_only_to_be_seen(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Stopwatch(2.0, 0.5).installed(monkeypatch)
    steps = [Step(id="aside", options=toy.Aside()), Step(id="fast", options=toy.ScaleBy())]
    done = run_steps(job, steps, Policy())
    assert [each.record.speedup for each in done] == [None, ratio(2.0)]
    records = estimate_others(job, done, Policy())
    assert [record.speedup for record in records] == [ratio(0.5), ratio(2.0)]
    assert [record.status for record in records] == ["changed", "changed"]
    assert [[model for model, _ in asked] for asked in watch.candidates] == [
        [done[1].before, done[1].after],
        [done[0].before, done[0].after],
    ]


def test_a_torch_step_is_timed_as_it_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(2.0).installed(monkeypatch)
    model = toy.torch_model(tmp_path)
    job = make_job(tmp_path, model, exporter=toy.ToyExport())
    done = run_steps(job, [Step(id="export", options=toy.ToyExport()), Step(id="s", options=toy.ScaleBy())], Policy())
    records = estimate_others(job, done, Policy())
    assert [record.speedup for record in records] == [None, ratio(2.0)], "the export itself is the baseline"
    assert [model.form for model, _ in watch.candidates[0]] == ["onnx", "onnx"]


def test_what_was_chosen_by_timing_belongs_to_the_machine_and_can_be_measured_again(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def chosen(policy: Policy = CALM) -> Any:
        _, (record,) = run(job, toy.Chooses(calls=str(tmp_path / "calls")), policy=policy)
        return record.cached, record.decisions[0].speedup

    Stopwatch(1.5, 2.5, 3.5, 4.5).installed(monkeypatch)
    assert [chosen(), chosen(), chosen(Policy(bench=False, remeasure=True))] == [
        (False, 1.5),
        (True, 1.5),
        (False, 2.5),
    ]
    assert chosen() == (True, 2.5)
    monkeypatch.setattr("optkit.model.machine.ort_version", lambda: "onnxruntime 0.0")
    assert chosen() == (False, 3.5)
    assert run(job, toy.ScaleBy())[1][0].cached is False
    assert run(job, toy.ScaleBy(), policy=Policy(bench=False, remeasure=True))[1][0].cached is True


def test_a_pass_that_chooses_by_timing_has_to_say_so(job: Job) -> None:
    with pytest.raises(PassError, match="The pass 'chooses-silently-0' decides by time without having declared it"):
        run(job, offenders.ChoosesSilently())


def test_a_steps_timing_is_kept_until_it_is_measured_again(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    for speedup, policy, expected in (
        (2.0, Policy(), 2.0),
        (3.0, Policy(), 2.0),
        (4.0, Policy(remeasure=True), 4.0),
        (5.0, Policy(), 4.0),
    ):
        Stopwatch(speedup).installed(monkeypatch)
        _, (record,) = run(job, toy.ScaleBy(), policy=policy)
        assert record.speedup == ratio(expected)
        assert record.timing_note == ("" if speedup == expected else "timed in an earlier run on this machine")


def test_what_is_only_shown_is_never_from_another_run(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    for speedup in (2.0, 3.0):
        Stopwatch(speedup).installed(monkeypatch)
        (record,) = estimate_others(job, run_steps(job, [Step(id="a", options=toy.Aside())], Policy()), Policy())
        assert (record.speedup, record.timing_note) == (ratio(speedup), "")


@pytest.mark.parametrize(("policy", "note"), [(CALM, NO_BENCH), (Policy(allowance=Allowance(spent=99.0)), USED_UP)])
def test_nothing_is_exported_for_a_timing_that_will_not_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Policy, note: str
) -> None:
    calls = tmp_path / "calls"
    model = toy.torch_model(tmp_path)
    job = make_job(tmp_path, model, exporter=toy.ToyExport(calls=str(calls)))
    watch = Stopwatch(2.0).installed(monkeypatch)
    record = StepRecord(
        id="s", name="n", title="t", config={}, status="changed", size_bytes=model.size_bytes, digest=model.digest
    )
    done = [Done(Step(id="s", options=toy.Nothing()), model, model, record)]
    assert [each.timing_note for each in estimate_others(job, done, policy)] == [note]
    assert not calls.exists() and watch.rules == []


def test_the_timing_of_other_session_entries_is_another_one(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    for entries in ({}, {"session.intra_op.allow_spinning": "0"}):
        watch = Stopwatch(2.0).installed(monkeypatch)
        run(job, toy.Session(entries=entries), toy.ScaleBy(), policy=Policy())
        assert len(watch.rules) == 1


def test_a_required_step_that_is_measured_slower_stops_the_run(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    Stopwatch(0.5).installed(monkeypatch)
    with pytest.raises(BudgetMissed) as caught:
        run(job, Step(id="mine", options=toy.ScaleBy(), required=True), policy=Policy())
    assert caught.value.message == "The step 'mine' is required but measured slower: 0.50x [0.47, 0.53]."
    assert caught.value.fix.startswith("--set passes.mine.keep=always to have it anyway")
    _, (record,) = run(job, Step(id="mine", options=toy.ScaleBy(), required=True, keep="always"), policy=Policy())
    assert record.status == "changed"


@pytest.mark.parametrize("speedup", [0.97, 1.0])
def test_noise_around_1_does_not_stop_a_required_step(
    job: Job, monkeypatch: pytest.MonkeyPatch, speedup: float
) -> None:
    Stopwatch(speedup).installed(monkeypatch)
    _, (record,) = run(job, Step(id="mine", options=toy.ScaleBy(), required=True), policy=Policy())
    assert record.status == "changed"
