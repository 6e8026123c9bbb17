"""The loop over passes: what is kept, what is rolled back and why, what stops the run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from optkit.errors import OutputError, PassError, RecipeError
from optkit.model.target import Target
from optkit.pipeline.job import Job
from optkit.pipeline.steps import Policy
from optkit.recipe.recipe import Step, When
from tests.helpers import run_onnx
from tests.pipeline import offenders, toy
from tests.pipeline.toy import WEIGHTS, arrays, make_job, run

STRICT = Policy(bench=False, strict=True)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path)


BROKEN = [
    (offenders.WrongForm(), "promised the form onnx and gave ort"),
    (offenders.Unloadable(), "Wish"),
    (offenders.Garbage(), "Unable to parse proto"),
    (offenders.Garbage(missing=True), "no such file|No such file"),
    (offenders.NotANumber(), "output 'y': the result has NaN where the original has none"),
    (offenders.Rename(), "output 'y': missing in the result"),
    (toy.Narrow(), "output 'y': the result has the dtype float16, the original float32"),
    (offenders.DropSilently(), "output 'side': missing in the result"),
]


@pytest.mark.parametrize(("pass_", "reason"), BROKEN, ids=lambda x: x.sentence() if isinstance(x, toy.Toy) else "")
def test_a_broken_promise_is_rolled_back_with_its_reason_and_the_chain_goes_on(
    job: Job, pass_: toy.Toy, reason: str
) -> None:
    result, (first, second) = run(job, pass_, toy.ScaleBy(factor=1.001))
    assert first.status == "rolled back"
    assert re.search(reason, first.reason), first.reason
    assert (first.digest, first.size_bytes) == (job.original.digest, job.original.size_bytes)
    assert second.status == "changed"
    assert result.lineage == ("scale-by",)


@pytest.mark.parametrize(("pass_", "reason"), BROKEN, ids=lambda x: x.sentence() if isinstance(x, toy.Toy) else "")
def test_a_broken_promise_stops_a_strict_run_and_a_required_step(job: Job, pass_: toy.Toy, reason: str) -> None:
    with pytest.raises(PassError, match=reason) as strict:
        run(job, Step(id="mine", options=pass_), policy=STRICT)
    assert "The step 'mine' broke its promise" in strict.value.message
    assert "--strict stops here" in strict.value.fix
    with pytest.raises(PassError, match=reason):
        run(job, Step(id="mine", options=pass_, required=True))


def test_declared_changes_are_kept(job: Job) -> None:
    result, records = run(job, toy.NarrowDeclared(), toy.ScaleBy())
    assert toy.statuses(records) == ["changed", "changed"]
    assert run_onnx(result, arrays(2))["y"].dtype == np.float16


def test_a_declared_drop_is_kept_and_stays_allowed_for_the_steps_after_it(job: Job) -> None:
    result, records = run(job, toy.Drop(), toy.ExactScale(factor=1.0 + 1e-6))
    assert toy.statuses(records) == ["changed", "changed"]
    assert [spec.name for spec in result.signature.outputs] == ["y"]


def test_an_exact_pass_that_moves_the_outputs_is_rolled_back(job: Job) -> None:
    result, (moved, kept) = run(job, toy.ExactScale(factor=1.01), toy.ExactScale(factor=1.00001))
    assert moved.status == "rolled back"
    assert re.fullmatch(
        r"it should keep the outputs but moved y by 0\.0\d+ of its standard deviation \(allowed: 0\.001\)", moved.reason
    )
    assert kept.status == "changed"
    assert result.digest == kept.digest
    with pytest.raises(PassError, match="it should keep the outputs but moved y"):
        run(job, toy.ExactScale(factor=1.01), policy=STRICT)


def test_the_drift_of_a_rolled_back_step_is_its_true_error(job: Job) -> None:
    _, (moved,) = run(job, toy.ExactScale(factor=1.01))
    y = job.splits["search"].arrays["x"].astype(np.float64) @ WEIGHTS["w"]  # type: ignore[attr-defined]
    assert moved.drift is not None
    assert moved.drift.max_error_std == pytest.approx(np.abs(0.01 * y).max() / y.std(), rel=1e-3)
    assert moved.drift.cosine == pytest.approx(1.0, abs=1e-6)


def test_behind_a_lossy_pass_an_exact_one_is_held_to_the_looser_tolerance_against_the_step_before(job: Job) -> None:
    lossy, near, far = toy.ScaleBy(factor=1.5), toy.ExactScale(factor=1.01), toy.ExactScale(factor=1.2)
    _, (first, kept) = run(job, lossy, near)
    assert (first.status, kept.status) == ("changed", "changed"), kept.reason
    _, (_, back) = run(job, lossy, far)
    assert back.status == "rolled back"
    assert back.reason.endswith("(allowed: 0.05)")


def test_drift_is_against_the_original_not_the_step_before(job: Job) -> None:
    _, records = run(job, toy.ScaleBy(factor=1.1), toy.ScaleBy(factor=1.2, calls=""))
    x = job.splits["search"].arrays["x"].astype(np.float64)  # type: ignore[attr-defined]
    y = x @ WEIGHTS["w"]
    unit = np.abs(y).max() / y.std()
    drifts = [record.drift.max_error_std for record in records if record.drift is not None]
    assert drifts == [pytest.approx(0.1 * unit, rel=1e-4), pytest.approx((1.1 * 1.2 - 1) * unit, rel=1e-4)]


def test_no_effect_comes_with_its_reason(job: Job) -> None:
    result, records = run(
        job, toy.Nothing(notes=("no Conv here",)), toy.Nothing(skipped=(("a", "excluded"), ("b", "shared")))
    )
    assert [(record.status, record.reason) for record in records] == [
        ("no effect", "no Conv here"),
        ("no effect", "a: excluded; b: shared"),
    ]
    assert result is job.original


def test_no_effect_of_a_required_step_is_an_error(job: Job) -> None:
    with pytest.raises(PassError, match=r"The step 'only' is required but had no effect: no Conv here\."):
        run(job, Step(id="only", options=toy.Nothing(notes=("no Conv here",)), required=True))


def test_a_change_that_leaves_the_same_bytes_is_no_effect(job: Job) -> None:
    result, (record,) = run(job, offenders.Copy())
    assert (record.status, record.reason) == ("no effect", "its result is the same model, byte for byte")
    assert result is job.original
    with pytest.raises(PassError, match="required but had no effect: its result is the same model"):
        run(job, Step(id="copy", options=offenders.Copy(), required=True))


@pytest.mark.parametrize("how", ["write", "garble", "unlink"])
def test_a_pass_that_touches_its_input_is_an_error(job: Job, how: str) -> None:
    with pytest.raises(PassError, match="The pass 'vandal-0' changed its input"):
        run(job, offenders.Vandal(how=how))


@pytest.mark.parametrize("link", [False, True])
def test_a_pass_that_writes_outside_its_folder_is_an_error(job: Job, tmp_path: Path, link: bool) -> None:
    with pytest.raises(PassError, match="outside its own folder"):
        run(job, offenders.Outside(place=str(tmp_path), link=link))


@pytest.mark.parametrize(
    "error", ["ValueError", "KeyError", "RuntimeError", "MemoryError", "FileNotFoundError", "OSError", "SystemExit"]
)
def test_whatever_a_pass_raises_names_the_pass(job: Job, error: str) -> None:
    with pytest.raises(PassError, match=r"The pass 'mine' failed: .*the reason") as failure:
        run(job, Step(id="mine", options=toy.Raises(error=error)))
    assert failure.value.exit_code == 3


def test_an_interrupt_passes_through(job: Job) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(job, toy.Raises(error="KeyboardInterrupt"))
    assert list((job.cache.root / "work").iterdir()) == []


def test_a_full_disk_is_not_the_fault_of_the_pass(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save", full)
    with pytest.raises(OutputError, match="No space left on device"):
        run(job, toy.ScaleBy())


def test_a_pass_that_forgets_its_outcome_is_an_error(job: Job) -> None:
    with pytest.raises(PassError, match="The pass 'mine' gave back a NoneType"):
        run(job, Step(id="mine", options=offenders.ReturnsNone()))


@pytest.mark.parametrize(
    ("when", "reason"),
    [
        (When(form="torch"), "only for form torch"),
        (When(provider="cuda"), "only for provider cuda"),
        (When(form="onnx", provider="cuda"), "only for provider cuda"),
        (When(form="onnx", provider="cpu"), ""),
        (When(), ""),
    ],
)
def test_when_decides_whether_a_step_runs(job: Job, when: When, reason: str) -> None:
    result, (record,) = run(job, Step(id="s", options=toy.ScaleBy(), when=when))
    assert (record.status, record.reason) == ("skipped" if reason else "changed", reason)
    assert (result is job.original) == bool(reason)


def test_an_export_is_skipped_on_a_model_that_is_onnx_already(job: Job) -> None:
    _, (record,) = run(job, toy.ToyExport())
    assert (record.status, record.reason) == ("skipped", "the model is ONNX already")


def test_session_entries_merge_and_later_ones_win(job: Job) -> None:
    a, b = "session.intra_op.allow_spinning", "session.use_env_allocators"
    result, records = run(
        job,
        toy.Session(entries={a: "0", b: "0"}),
        toy.ScaleSession(entries={a: "1"}),
        toy.Session(entries={b: "1"}),
    )
    assert toy.statuses(records) == ["changed"] * 3
    assert [record.session for record in records] == [{a: "0", b: "0"}, {a: "1"}, {b: "1"}]
    assert result.session == {a: "1", b: "1"}
    assert len(result.lineage) == 3


def test_a_step_that_only_sets_session_entries_is_kept_on_the_same_file(job: Job) -> None:
    result, (record,) = run(job, toy.Session(entries={"session.intra_op.allow_spinning": "0"}))
    assert record.status == "changed"
    assert result.path == job.original.path
    assert result.digest == job.original.digest == record.digest


def test_session_entries_of_a_rolled_back_step_are_gone(job: Job) -> None:
    class_ = toy.ScaleSession
    bad = class_(entries={"optimization.disable_specified_optimizers": "X"})
    result, _ = run(job, bad)
    assert result.session == {"optimization.disable_specified_optimizers": "X"}

    result, (record, _) = run(job, offenders.Rename(), toy.ScaleBy())
    assert (result.session, record.session) == ({}, {})


def test_seconds_and_memory_are_recorded_and_kept_for_the_cached_run(job: Job) -> None:
    (first,), (again,) = run(job, toy.ScaleBy())[1], run(job, toy.ScaleBy())[1]
    assert (first.cached, again.cached) == (False, True)
    assert first.seconds > 0
    assert first.peak_mb is not None
    assert first.peak_mb > 10
    assert again == first.model_copy(update={"cached": True})


def test_records_say_what_was_done(job: Job) -> None:
    _, (record,) = run(job, Step(id="mine", options=toy.ScaleBy(factor=1.001)))
    assert (record.id, record.name, record.title) == ("mine", "scale-by", "Multiply w by a factor.")
    assert record.config == {"factor": 1.001, "calls": ""}
    assert [(change.where, change.what) for change in record.changes] == [("w", "changed")]


def test_a_torch_pass_that_breaks_its_promise_is_rolled_back_and_the_export_goes_on(tmp_path: Path) -> None:
    model = toy.torch_model(tmp_path)
    job = make_job(tmp_path, model, exporter=toy.ToyExport())
    result, records = run(job, toy.Surgery(factory=str(model.factory)), toy.ToyExport())
    assert toy.statuses(records) == ["rolled back", "changed"], records
    assert "moved y" in records[0].reason
    assert (result.form, result.lineage) == ("onnx", ("toy-export",))


@pytest.mark.parametrize(
    ("export", "why"),
    [
        (toy.ToyExport(broken=True), "broke its promise: it should keep the outputs but moved y"),
        (toy.ToyExport(lazy=True), "had no effect: too tired"),
    ],
)
def test_a_failed_export_stops_the_chain(tmp_path: Path, export: toy.ToyExport, why: str) -> None:
    job = make_job(tmp_path, toy.torch_model(tmp_path), exporter=export)
    with pytest.raises(PassError, match=why) as error:
        run(job, export, toy.ScaleBy())
    assert "cannot go on" in error.value.message + error.value.fix


def test_a_cuda_target_is_another_step(tmp_path: Path) -> None:
    job = make_job(tmp_path, target=Target("cuda", 1))
    _, (record,) = run(job, Step(id="s", options=toy.ScaleBy(), when=When(provider="cpu")))
    assert record.reason == "only for provider cpu"


def test_a_pass_is_asked_again_before_it_runs(job: Job, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="The step 'late' cannot work on this model: it was scaled"):
        run(job, toy.ScaleBy(), Step(id="late", options=toy.UnfitLater()))
    assert run(job, toy.UnfitLater())[1][0].status == "no effect"
    cuda = make_job(tmp_path / "cuda", target=Target("cuda", 1))
    with pytest.raises(RecipeError, match="'cpu' cannot work on this model: it is for cpu, not for cuda"):
        run(cuda, Step(id="cpu", options=toy.CpuOnly()))
