"""What a pass may use: inner tensors, the search split alone, samples, the cached export, the stopwatch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from optkit.bench.measure import Candidate
from optkit.data.dataset import Batch
from optkit.errors import DataError, PassError
from optkit.evaluate.limits import Limits
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.pipeline import context as context_module
from optkit.pipeline.context import StepContext, bench_inputs, judge_on
from optkit.pipeline.job import Job
from optkit.pipeline.reference import ensure_references
from tests.helpers import MemoryData, onnx_model
from tests.pipeline import toy
from tests.pipeline.toy import WEIGHTS, arrays, make_job
from tests.timing import measured


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path)


def ctx(job: Job, tmp_path: Path) -> StepContext:
    return StepContext(job, tmp_path / "work", "step")


def test_the_facts_are_those_of_the_job(job: Job, tmp_path: Path) -> None:
    context = ctx(replace(job, seed=7), tmp_path)
    assert (context.original, context.target, context.seed) == (job.original, job.target, 7)
    assert context.workdir == tmp_path / "work"


def test_run_gives_outputs_batch_by_batch_and_inner_tensors_where_they_are_named(tmp_path: Path) -> None:
    import onnx

    text = "g (float[batch,4] x) => (float[batch,3] y) { inner = MatMul(x, w) y = Relu(inner) }"
    onnx.save(onnx_model(text, {"w": WEIGHTS["w"]}), tmp_path / "deep.onnx")
    job = make_job(tmp_path, Model.open(tmp_path / "deep.onnx"))
    data = MemoryData("calibration", arrays(11), batch=4)
    plain = list(ctx(job, tmp_path).run(job.original, data))
    assert [list(found) for found in plain] == [["y"]] * 3
    assert [len(found["y"]) for found in plain] == [4, 4, 3]
    inner = [found["inner"] for found in ctx(job, tmp_path).run(job.original, data, outputs=["inner", "y"])]
    np.testing.assert_allclose(np.concatenate(inner), data.arrays["x"] @ WEIGHTS["w"], atol=1e-5)
    assert (np.concatenate(inner) < 0).any()


def test_judge_looks_at_the_search_split_and_nothing_else(job: Job, tmp_path: Path) -> None:
    class Forbidden(MemoryData):
        def batches(self):  # type: ignore[no-untyped-def]
            raise AssertionError("the evaluation split was opened")

    hidden = replace(job, splits={**job.splits, "evaluation": Forbidden("evaluation", arrays(40, 6))})
    scaled = Model.open(toy.write_model(tmp_path / "s.onnx", factor=1.01))
    verdict = ctx(hidden, tmp_path).judge(scaled)
    assert (verdict.measured_on.split, verdict.measured_on.samples) == ("search", 24)
    y = arrays(24, 5)["x"].astype(np.float64) @ WEIGHTS["w"]
    assert verdict.outputs[0].max_error_std == pytest.approx(0.01 * np.abs(y).max() / y.std(), rel=1e-3)


def test_judge_holds_the_limits_of_the_job(job: Job, tmp_path: Path) -> None:
    scaled = Model.open(toy.write_model(tmp_path / "s.onnx", factor=1.01))
    for limit, held in ((1.0, True), (0.001, False)):
        strict = replace(job, limits=Limits(max_error=limit))
        assert ctx(strict, tmp_path).judge(scaled).held is held


def test_a_sample_is_two_of_the_search_samples(job: Job, tmp_path: Path) -> None:
    sample = ctx(job, tmp_path).batches("sample")
    (batch,) = sample.batches()
    assert (sample.count, batch.size) == (2, 2)
    np.testing.assert_array_equal(batch.inputs["x"], arrays(24, 5)["x"][:2])
    bare = replace(job, splits={"evaluation": MemoryData("evaluation", arrays(1, 6))})
    assert ctx(bare, tmp_path).batches("sample").count == 1


def test_splits_that_are_not_there_are_refused(job: Job, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There are no calibration data") as error:
        ctx(job, tmp_path).batches("calibration")
    assert "--data calibration=" in error.value.fix
    made_up = replace(MemoryData("calibration", arrays(4)), synthetic=True)
    synthetic = replace(job, splits={**job.splits, "calibration": made_up})
    with pytest.raises(DataError, match="made-up ones give wrong ranges") as error:
        ctx(synthetic, tmp_path).batches("calibration")
    assert "--allow-synthetic-calibration" in error.value.fix
    assert ctx(replace(synthetic, synthetic_calibration=True), tmp_path).batches("calibration") is made_up


def test_to_onnx_uses_the_recipes_own_export_once(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    model = toy.torch_model(tmp_path)
    job = make_job(tmp_path, model, exporter=toy.ToyExport(calls=str(calls)))
    made = [ctx(job, tmp_path).to_onnx(model) for _ in range(2)]
    assert (made[0].form, made[0].digest, made[0].path) == ("onnx", made[1].digest, made[1].path)
    assert calls.read_text() == "."
    assert ctx(job, tmp_path).to_onnx(made[0]) is made[0]
    with pytest.raises(PassError, match="the recipe has no pass that exports it to ONNX") as error:
        ctx(replace(job, exporter=None), tmp_path).to_onnx(model)
    assert "export-onnx" in error.value.fix


def test_load_torch_gives_the_live_module(tmp_path: Path) -> None:
    import torch

    model = toy.torch_model(tmp_path)
    module = ctx(make_job(tmp_path, model), tmp_path).load_torch(model)
    assert not module.training
    x = arrays(3)["x"]
    np.testing.assert_allclose(module(torch.from_numpy(x))["y"].detach().numpy(), x @ WEIGHTS["w"], atol=1e-5)


def test_time_asks_the_stopwatch_once_for_all(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[Candidate], int, str]] = []

    def stopwatch(candidates, inputs, rules, *, described):  # type: ignore[no-untyped-def]
        asked.append((list(candidates), len(inputs), described))
        return [measured(1.0 + index) for index in range(len(candidates))]

    monkeypatch.setattr(context_module, "measure", stopwatch)
    wanting = replace(job.original, session={"session.intra_op.allow_spinning": "0"})
    ratios = ctx(job, tmp_path).time([job.original, wanting])
    assert [ratio.speedup for ratio in ratios] == [1.0, 2.0]
    ((candidates, batches, described),) = asked
    assert [dict(candidate.session) for candidate in candidates] == [{}, {"session.intra_op.allow_spinning": "0"}]
    assert (batches, described) == (3, "real")


def test_only_a_pass_that_says_so_decides_by_time(job: Job, tmp_path: Path) -> None:
    with pytest.raises(PassError, match="The pass 'step' decides by time without having declared it") as error:
        replace(ctx(job, tmp_path), times=False).time([job.original])
    assert "decides_by_time" in error.value.expected


def test_batches_for_timing_are_full_ones_of_real_data_unless_shapes_are_asked_for(job: Job) -> None:
    ragged = replace(job, splits={"evaluation": MemoryData("evaluation", arrays(11), batch=4)})
    inputs, described = bench_inputs(ragged)
    assert [len(batch["x"]) for batch in inputs] == [4, 4]
    assert described == "real"
    shaped = replace(job, target=Target("cpu", 1, {"batch": 5}))
    inputs, described = bench_inputs(shaped)
    assert [batch["x"].shape for batch in inputs] == [(5, 4)] * 4
    assert described == "synthetic"


def test_progress_goes_to_whoever_watches(job: Job, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    context = StepContext(job, tmp_path, "calibrate", lambda *told: seen.append(told))
    context.progress(3, 10)
    ctx(job, tmp_path).progress(1, 2)
    assert seen == [("calibrate", 3, 10)]


def test_judging_reads_the_data_once(tmp_path: Path) -> None:
    class Counting(MemoryData):
        reads = 0

        def batches(self) -> Iterator[Batch]:
            type(self).reads += 1
            return super().batches()

    job = make_job(tmp_path)
    data = Counting("evaluation", arrays(40, 6))
    ensure_references(job, [data])
    Counting.reads = 0
    assert judge_on(job, job.original, data).measured_on.samples == 40
    assert Counting.reads == 1
