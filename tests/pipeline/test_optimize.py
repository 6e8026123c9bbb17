"""``optkit.optimize`` from Python on the sample models: the manifest's facts are true."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import optkit
from optkit.errors import AccuracyMissed, BudgetMissed
from optkit.model.manifest import StepRecord
from optkit.passes.quantize_dynamic import QuantizeDynamic
from optkit.pipeline import optimize as optimize_module
from optkit.pipeline.cache import Cache
from optkit.recipe.recipe import Step
from tests.helpers import MemoryData
from tests.pipeline import toy
from tests.pipeline.toy import arrays
from tests.timing import Stopwatch

SAMPLES = Path(__file__).parents[2] / "sample_models"


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def outputs(file: Path, inputs: dict[str, np.ndarray], batch: int) -> np.ndarray:
    """The first output over all samples, in batches, by onnxruntime alone."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    count = len(next(iter(inputs.values())))
    parts = [
        session.run(None, {name: array[start : start + batch] for name, array in inputs.items()})[0]
        for start in range(0, count, batch)
    ]
    return np.concatenate(parts)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[optkit.Manifest, Path]:
    """The MLP through dynamic int8, with what data.yaml beside it names."""
    folder = tmp_path_factory.mktemp("digits")
    recipe = optkit.Recipe(name="tiny", passes=["simplify", QuantizeDynamic(per_channel=True)])
    manifest = optkit.optimize(SAMPLES / "digits_mlp.onnx", recipe, folder / "out", bench=False, threads=1)
    return manifest, folder / "out"


def test_sizes_and_digests_are_those_of_the_files(digits: tuple[optkit.Manifest, Path]) -> None:
    manifest, out = digits
    for artifact, file in (
        (manifest.original, SAMPLES / "digits_mlp.onnx"),
        (manifest.baseline, SAMPLES / "digits_mlp.onnx"),
        (manifest.result, out / "model.onnx"),
    ):
        assert artifact.size_bytes == file.stat().st_size
        assert artifact.digest == sha256(file)
        assert artifact.form == "onnx"
    assert manifest.result.size_bytes < manifest.original.size_bytes / 3
    assert manifest.steps[-1].digest == manifest.result.digest
    assert manifest.output == str(out)


def test_the_manifest_in_the_bundle_is_the_one_that_was_returned(digits: tuple[optkit.Manifest, Path]) -> None:
    manifest, out = digits
    assert optkit.Manifest.model_validate_json((out / "manifest.json").read_text()) == manifest
    assert manifest.recipe_name in (out / "report.md").read_text()


def test_the_verdict_is_what_numpy_and_onnxruntime_find(digits: tuple[optkit.Manifest, Path]) -> None:
    manifest, out = digits
    verdict = manifest.verdict
    with np.load(SAMPLES / "data" / "digits_evaluation.npz") as file:
        data = {name: file[name] for name in file.files}
    labels = data.pop("labels" if "labels" in data else "y")
    batch = verdict.measured_on.batch
    one = outputs(SAMPLES / "digits_mlp.onnx", data, batch).astype(np.float64)
    two = outputs(out / "model.onnx", data, batch).astype(np.float64)
    error = np.abs(two - one)
    cosines = (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
    (found,) = verdict.outputs
    expected = {
        "max_error": error.max(),
        "mean_error": error.mean(),
        "max_error_std": error.max() / one.std(),
        "cosine": cosines.mean(),
        "cosine_p1": np.percentile(cosines, 1),
        "cosine_worst": cosines.min(),
        "sqnr_db": 10 * np.log10((one**2).sum() / (error**2).sum()),
        "top1": (one.argmax(1) == two.argmax(1)).mean(),
    }
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-6), name
    assert (found.rows, found.worst_sample) == (len(one), int(cosines.argmin()))
    (metric,) = verdict.metrics
    accuracy = [(scores.argmax(1) == labels).mean() for scores in (one, two)]
    assert (metric.name, metric.samples) == ("top1", len(labels))
    assert metric.original == pytest.approx(accuracy[0], abs=1e-6)
    assert metric.result == pytest.approx(accuracy[1], abs=1e-6)
    assert metric.drop == pytest.approx(accuracy[0] - accuracy[1], abs=1e-6)
    assert accuracy[0] > 0.9
    assert verdict.measured_on.synthetic is False
    assert {limit.name: limit.held for limit in verdict.limits} == {"cosine": True, "agreement": True, "speedup": None}


def test_the_steps_tell_what_happened(digits: tuple[optkit.Manifest, Path]) -> None:
    manifest, _ = digits
    by_id: dict[str, StepRecord] = {step.id: step for step in manifest.steps}
    assert by_id["quantize-dynamic"].status == "changed"
    assert len(by_id["quantize-dynamic"].changes) >= 2
    assert by_id["quantize-dynamic"].config["per_channel"] is True
    assert all(step.peak_mb for step in manifest.steps if step.status == "changed")
    assert (manifest.timing, manifest.timing_note) == (None, "not timed: --no-bench")
    assert (manifest.environment.provider, manifest.environment.threads) == ("cpu", 1)
    assert manifest.recipe["passes"][1]["quantize-dynamic"]["per_channel"] is True


def test_a_pass_a_list_of_passes_a_name_and_a_file_do_as_recipes(tmp_path: Path) -> None:
    model = SAMPLES / "digits_mlp.onnx"
    (tmp_path / "r.yaml").write_text("version: 1\nname: r\npasses: [quantize-dynamic]")
    recipes: list[Any] = [
        QuantizeDynamic(),
        [QuantizeDynamic()],
        optkit.Recipe(passes=["quantize-dynamic"]),
        tmp_path / "r.yaml",
        str(tmp_path / "r.yaml"),
    ]
    made = [optkit.optimize(model, recipe, bench=False) for recipe in recipes]
    assert len({manifest.result.digest for manifest in made}) == 1
    assert made[0].output is None
    opened = optkit.Model.open(model)
    assert optkit.optimize(opened, QuantizeDynamic(), bench=False).result.digest == made[0].result.digest


def test_a_torch_model_is_judged_against_itself_and_timed_against_its_export(tmp_path: Path) -> None:
    model = toy.torch_model(tmp_path)
    watched: list[str] = []
    passes = [toy.ToyExport(), toy.ScaleBy()]
    told = {"bench": False, "watch": lambda what, done, total: watched.append(what)}
    manifest = optkit.optimize(model, passes, tmp_path / "out", **told)
    assert (manifest.original.kind, manifest.baseline.kind, manifest.result.kind) == ("weights", "onnx", "onnx")
    assert manifest.baseline.digest == manifest.steps[0].digest
    assert manifest.baseline.digest != manifest.result.digest
    assert [output.name for output in manifest.verdict.outputs] == ["y", "side"]
    assert manifest.verdict.outputs[1].max_error == pytest.approx(0, abs=1e-5)
    assert watched[:2] == ["toy-export", "scale-by"]


def test_a_dropped_output_is_named_and_left_out(tmp_path: Path) -> None:
    manifest = optkit.optimize(toy.write_model(tmp_path / "m.onnx"), toy.Drop(), tmp_path / "out", bench=False)
    assert manifest.verdict.dropped_outputs == ("side",)
    assert [output.name for output in manifest.verdict.outputs] == ["y"]
    assert (manifest.verdict.held, manifest.verdict.problems) == (True, ())
    assert "a pass removed it by declaration: side." in (tmp_path / "out" / "report.md").read_text()


def test_a_missed_accuracy_limit_names_the_costly_step_and_writes_nothing(tmp_path: Path) -> None:
    model = toy.write_model(tmp_path / "m.onnx")
    passes = [toy.ScaleBy(factor=1.001), toy.Aside(factor=-1.0)]
    with pytest.raises(AccuracyMissed, match="cosine of y is -") as error:
        optkit.optimize(model, passes, tmp_path / "out", bench=False)
    assert error.value.exit_code == 4
    assert "The step 'aside' cost most (cosine -2)." in error.value.message
    assert "--limit cosine=-" in error.value.fix
    assert isinstance(error.value.facts, optkit.Manifest)
    assert error.value.facts.verdict.held is False
    assert error.value.facts.output is None
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("limit", "missed"),
    [
        ("speedup=1.5", "speedup is 1.14"),
        ("size_mb=0.0001", "size_mb is 0.000"),
        ("size_ratio=0.5", "size_ratio is 1"),
        ("latency_ms=0.5", "latency_ms is 0.83"),
        ("memory_mb=50", "memory_mb is 70"),
    ],
)
def test_a_missed_budget_is_exit_code_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, missed: str
) -> None:
    Stopwatch(1.2).installed(monkeypatch)
    model = toy.write_model(tmp_path / "m.onnx")
    with pytest.raises(BudgetMissed, match=missed) as error:
        optkit.optimize(model, toy.Aside(), tmp_path / "out", limits=[limit])
    assert error.value.exit_code == 5
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("speed", "told"), [(0.8, "The step 'slow' cost most (0.80x the speed"), (1.1, "")])
def test_a_missed_speed_limit_names_the_step_that_cost_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speed: float, told: str
) -> None:
    slow = Step(id="slow", options=toy.ScaleBy(), keep="always")
    Stopwatch(speed, *([speed] if speed < 1 else []), 0.7, 0.7, 1.05).installed(monkeypatch)
    model, recipe = toy.write_model(tmp_path / "m.onnx"), optkit.Recipe(passes=[slow, toy.Aside()])
    with pytest.raises(BudgetMissed, match=r"speedup is 0\.7") as error:
        optkit.optimize(model, recipe, cache=Cache(tmp_path / "cache"))
    assert told in error.value.message
    assert ("cost most" in error.value.message) is bool(told)


def test_accuracy_outranks_the_budget_and_both_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Stopwatch(0.5).installed(monkeypatch)
    with pytest.raises(AccuracyMissed, match=r"cosine of y is -1.* speedup is 0\.5"):
        optkit.optimize(toy.write_model(tmp_path / "m.onnx"), toy.Aside(factor=-1.0))


def test_timings_are_told_with_torch_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Stopwatch(1.2).installed(monkeypatch)
    manifest = optkit.optimize(toy.torch_model(tmp_path), [toy.ToyExport(), toy.Aside()])
    assert manifest.timing is not None
    assert (manifest.timing.result.speedup, manifest.timing.peak_mb) == (1.2, 70.0)
    assert manifest.timing.torch_eager_ms == 1.0
    same = optkit.optimize(toy.write_model(tmp_path / "m.onnx"), toy.Nothing())
    assert (same.timing, same.timing_note) == (
        None,
        "not timed: the result is the baseline itself, no pass changed it",
    )


def test_a_slower_step_is_rolled_back_or_kept_by_wish_and_the_report_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy.write_model(tmp_path / "m.onnx")
    for keep, status, word in (("measured", "rolled back", "rolled back: "), ("always", "changed", "kept although ")):
        Stopwatch(0.5, 0.5, 1.0).installed(monkeypatch)
        recipe = optkit.Recipe(passes=[Step(id="slow", options=toy.ScaleBy(), keep=keep), toy.Aside()])
        manifest = optkit.optimize(model, recipe, tmp_path / keep, cache=Cache(tmp_path / f"cache-{keep}"))
        assert [step.status for step in manifest.steps] == [status, "changed"]
        report = (tmp_path / keep / "report.md").read_text()
        assert f"{word}measured slower: 0.50x [0.47, 0.53]" in report and "~0.50x" in report
        assert all(step.speedup is not None for step in manifest.steps)


def test_without_timing_the_manifest_and_the_report_say_so(tmp_path: Path) -> None:
    manifest = optkit.optimize(
        toy.write_model(tmp_path / "m.onnx"), [toy.ScaleBy(), toy.Aside()], tmp_path / "out", bench=False
    )
    assert [step.timing_note for step in manifest.steps] == ["not timed: --no-bench"] * 2
    assert (manifest.timing, manifest.timing_note, manifest.timing_s) == (None, "not timed: --no-bench", 0.0)
    table = (tmp_path / "out" / "report.md").read_text().partition("| step |")[2].partition("\n\n")[0]
    assert table.count("| not timed |") == 4


def test_the_load_before_the_run_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optkit.pipeline.optimize.load_average", lambda: 1.25)
    manifest = optkit.optimize(toy.write_model(tmp_path / "m.onnx"), toy.Aside(), bench=False)
    assert manifest.environment.load_average == 1.25


def test_the_verdict_is_given_on_evaluation_what_is_chosen_looks_at_search(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", **arrays(50, 6))
    model = toy.write_model(tmp_path / "m.onnx")
    manifest = optkit.optimize(model, toy.ScaleBy(), data={"evaluation": tmp_path / "e.npz"}, bench=False)
    assert (manifest.verdict.measured_on.split, manifest.verdict.measured_on.samples) == ("evaluation", 35)


def test_unlabelled_data_beside_a_metric_that_was_only_found_are_no_mistake(tmp_path: Path) -> None:
    with np.load(SAMPLES / "data" / "digits_evaluation.npz") as file:
        np.savez(tmp_path / "bare.npz", x=file[file.files[0]])
    manifest = optkit.optimize(
        SAMPLES / "digits_mlp.onnx", QuantizeDynamic(), data={"evaluation": tmp_path / "bare.npz"}, bench=False
    )
    assert manifest.verdict.metrics == ()
    assert manifest.verdict.held


def test_results_of_one_run_lie_in_the_cache_that_was_named(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "mine")
    manifest = optkit.optimize(toy.write_model(tmp_path / "m.onnx"), toy.ScaleBy(), cache=cache, bench=False)
    assert Path(manifest.result.path).is_relative_to(tmp_path / "mine")
    assert {entry.what for entry in cache.entries()} == {
        "scale-by",
        "check of scale-by",
        "verdict",
        "outputs of m.onnx",
    }


def test_the_manifest_is_plain_json_without_numbers_that_are_none(tmp_path: Path) -> None:
    session = toy.Session(entries={"session.intra_op.allow_spinning": "0"})
    manifest = optkit.optimize(toy.write_model(tmp_path / "m.onnx"), session, tmp_path / "out", bench=False)
    assert manifest.verdict.outputs[0].sqnr_db == float("inf")

    def refuse(text: str) -> None:
        raise AssertionError(text)

    stated = json.loads((tmp_path / "out" / "manifest.json").read_text(), parse_constant=refuse)
    assert stated["verdict"]["outputs"][0]["sqnr_db"] is None
    assert stated["nonfinite"]["verdict.outputs.0.sqnr_db"] == "inf"
    again = optkit.Manifest.model_validate(stated)
    assert again.verdict.held


def test_a_dataset_of_ones_own_may_be_in_memory(tmp_path: Path) -> None:
    """Jobs take any Dataset; the public options take paths and sources."""
    job = toy.make_job(tmp_path, splits={"evaluation": MemoryData("evaluation", arrays(9))})
    verdict = optimize_module.final_verdict(job, job.original, frozenset())
    assert (verdict.held, verdict.measured_on.samples) == (True, 9)


def test_what_was_given_beside_the_recipe_is_told_with_the_command(tmp_path: Path) -> None:
    original = toy.torch_model(tmp_path)
    given = {"seed": 7, "allow_synthetic_calibration": True}
    manifest = optkit.optimize(original, toy.ToyExport(), tmp_path / "out", bench=False, **given)  # type: ignore[arg-type]
    assert manifest.options == {**given, "factory": f"{tmp_path / 'two.py'}:make", "bench": False}
    report = (tmp_path / "out" / "report.md").read_text()
    assert (
        f"optkit optimize {tmp_path / 'two.pt'} --recipe {tmp_path / 'out' / 'recipe.yaml'} "
        f"--factory {tmp_path / 'two.py'}:make --allow-synthetic-calibration --seed 7 --no-bench\n"
    ) in report
    plain = optkit.optimize(toy.write_model(tmp_path / "m.onnx"), toy.Aside(), bench=False)
    assert plain.options == {"bench": False}
