"""The contract on its own: what counts as float noise, which samples are looked at, what integers may do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from optkit.model.model import Model
from optkit.pipeline.contract import (
    CHECK_SAMPLES,
    Check,
    check_batches,
    check_notes,
    check_split,
    check_step,
    may_change,
)
from optkit.pipeline.job import Job
from optkit.pipeline.plan import make_plan
from tests.helpers import MemoryData, normal, onnx_model
from tests.pipeline import toy
from tests.pipeline.toy import arrays, make_job

CLASSES = "g (float[batch,4] x) => (int64[batch,1] k) { y = MatMul(x, w) k = ArgMax<axis = 1, keepdims = 1>(y) }"


def classes(path: Path, shift: float = 0.0) -> Model:
    """The class with the highest score; ``shift`` turns the scores."""
    weights = toy.WEIGHTS["w"] + np.float32(shift) * normal(4, 3, seed=9)
    onnx.save(onnx_model(CLASSES, {"w": weights}), path)
    return Model.open(path)


def scaled(job: Job, folder: Path, factor: float) -> Model:
    return Model.open(toy.write_model(folder / f"{factor}.onnx", factor=factor))


def test_at_most_32_samples_of_the_search_split_are_looked_at(tmp_path: Path) -> None:
    many = MemoryData("search", arrays(100))
    job = make_job(tmp_path, splits={"search": many, "evaluation": MemoryData("evaluation", arrays(7))})
    looked = check_split(job)
    assert (looked.split, looked.count, CHECK_SAMPLES) == ("search", 32, 32)
    spread = np.linspace(0, 99, 32).astype(int)
    np.testing.assert_array_equal(np.concatenate([b.inputs["x"] for b in looked.batches()]), many.arrays["x"][spread])
    alone = check_split(replace(job, splits={"evaluation": MemoryData("evaluation", arrays(7))}))
    assert alone.count == 7


@pytest.mark.parametrize(("allowed", "batches"), [(479, 2), (480, 3), (1, 1)])
def test_large_outputs_are_compared_on_their_first_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int, batches: int
) -> None:
    """Five outputs of 4 bytes a sample, 8 samples a batch, 3 batches; the files' own heads count too."""
    monkeypatch.setattr("optkit.pipeline.contract.CHECK_BYTES", allowed + 3 * 2 * 128)
    grows = arrays(24, 5)["x"] * np.repeat(np.float32([1, 2, 4]), 8)[:, None]
    job = make_job(tmp_path)
    job = replace(job, splits={**job.splits, "search": MemoryData("search", {"x": grows})})
    assert check_batches(job) == batches
    told = f"steps are checked on {8 * batches} of 24 samples, because the outputs are large"
    assert check_notes(job) == ((told,) if batches < 3 else ())
    check = check_step(job, job.original, scaled(job, tmp_path, 2.0), toy.ScaleBy(), [])
    y = grows[: 8 * batches].astype(np.float64) @ toy.WEIGHTS["w"]
    assert check.drift is not None
    assert check.drift.max_error_std == pytest.approx(np.abs(y).max() / y.std(), rel=1e-5)


def test_the_plan_says_that_few_samples_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optkit.pipeline.contract.CHECK_BYTES", 1)
    np.savez(tmp_path / "e.npz", **arrays(40))
    model, data = toy.write_model(tmp_path / "m.onnx"), {"evaluation": tmp_path / "e.npz"}
    note = "steps are checked on 8 of 12 samples, because the outputs are large"
    assert note in make_plan(model, toy.ScaleBy(), None, {"data": data}).notes
    assert note not in make_plan(model, toy.ScaleBy(), None, {"data": data}, write=False).notes


@pytest.mark.parametrize(("excess", "breach"), [(0.9, False), (1.1, True)])
def test_the_tolerance_of_an_exact_pass_is_a_thousandth_of_the_standard_deviation(
    tmp_path: Path, excess: float, breach: bool
) -> None:
    job = make_job(tmp_path)
    y = arrays(24, 5)["x"].astype(np.float64) @ toy.WEIGHTS["w"]
    factor = 1 + excess * 1e-3 * y.std() / np.abs(y).max()
    check = check_step(job, job.original, scaled(job, tmp_path, factor), toy.ExactScale(), [])
    assert check.breach is breach
    assert bool(check.problem) is breach
    assert check.drift is not None
    assert check.drift.max_error_std == pytest.approx(excess * 1e-3, rel=0.02)
    assert check.drift.output == "y"


@pytest.mark.parametrize(("excess", "breach"), [(0.9, False), (1.1, True)])
def test_the_looser_tolerance_behind_a_lossy_pass_is_a_twentieth_against_the_step_before(
    tmp_path: Path, excess: float, breach: bool
) -> None:
    job = make_job(tmp_path)
    y = arrays(24, 5)["x"].astype(np.float64) @ toy.WEIGHTS["w"]
    before = scaled(job, tmp_path, 3.0)
    factor = 3.0 * (1 + excess * 0.05 * y.std() / np.abs(y).max())
    check = check_step(job, before, scaled(job, tmp_path, factor), toy.ExactScale(), [toy.ScaleBy()])
    assert check.breach is breach
    assert check.drift is not None
    assert check.drift.max_error_std == pytest.approx((factor - 1) * np.abs(y).max() / y.std(), rel=1e-4)


def test_a_lossy_pass_may_move_the_outputs_as_far_as_it_likes(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    check = check_step(job, job.original, scaled(job, tmp_path, -1.0), toy.ScaleBy(), [])
    assert (check.problem, check.breach) == ("", False)
    assert check.drift is not None
    assert check.drift.cosine == pytest.approx(-1.0, abs=1e-6)


def test_an_exact_pass_may_not_change_a_single_integer(tmp_path: Path) -> None:
    job = make_job(tmp_path, classes(tmp_path / "c.onnx"))
    turned = classes(tmp_path / "t.onnx", 0.4)
    scores = [arrays(24, 5)["x"] @ (toy.WEIGHTS["w"] + shift * normal(4, 3, seed=9)) for shift in (0, np.float32(0.4))]
    share = float(np.mean(scores[0].argmax(1) != scores[1].argmax(1)))
    assert 0.05 < share < 0.5
    check = check_step(job, job.original, turned, toy.ExactScale(), [])
    expected = f"it should keep the outputs but changed {share:.2%} of k (allowed: 0%)"
    assert check == Check(expected, breach=True, drift=None)
    assert check_step(job, job.original, turned, toy.ScaleBy(), []) == Check()


def test_behind_a_lossy_pass_a_twentieth_of_the_integers_may_differ_from_the_step_before(tmp_path: Path) -> None:
    job = make_job(tmp_path, classes(tmp_path / "c.onnx"))
    far = classes(tmp_path / "t.onnx", 0.4)
    check = check_step(job, job.original, far, toy.ExactScale(), [toy.ScaleBy()])
    assert check.breach
    assert check.problem.endswith("of k (allowed: 5%)")
    assert check_step(job, far, far, toy.ExactScale(), [toy.ScaleBy()]) == Check()


def test_what_the_original_lacks_is_no_fault_of_the_result(tmp_path: Path) -> None:
    weights = {"w": toy.WEIGHTS["w"].copy(), "v": toy.WEIGHTS["v"]}
    weights["w"][:, 0] = np.nan
    onnx.save(onnx_model(toy.TEXT, weights), tmp_path / "nan.onnx")
    job = make_job(tmp_path, Model.open(tmp_path / "nan.onnx"))
    assert check_step(job, job.original, job.original, toy.ExactScale(), []).problem == ""
    good = check_step(job, job.original, scaled(job, tmp_path, 1.0), toy.ExactScale(), [])
    assert "the original has NaN or Inf where the result has something else" in good.problem


def test_may_change_adds_up_over_the_chain() -> None:
    assert may_change([toy.ScaleBy(), toy.Drop(), toy.NarrowDeclared()]) == {"outputs", "dtypes"}
    assert may_change([]) == frozenset()


def test_a_rewritten_ort_file_of_an_onnx_pass_is_refused_by_its_form(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    given = replace(job.original, form="ort")
    check = check_step(job, job.original, given, toy.ScaleBy(), [])
    assert check == Check("it promised the form onnx and gave ort")
