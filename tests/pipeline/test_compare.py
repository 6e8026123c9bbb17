"""``optkit.compare``: whose limits and data count, dropped outputs, results that optkit did not make."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import optkit
from optkit.errors import DataError, ModelError
from optkit.passes.quantize_dynamic import QuantizeDynamic
from optkit.pipeline import compare as compare_module
from tests.pipeline import toy
from tests.pipeline.toy import arrays

SAMPLES = Path(__file__).parents[2] / "sample_models"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toy.write_model(tmp_path / "m.onnx")


def limits_of(verdict: optkit.Verdict) -> dict[str, str]:
    return {limit.name: limit.limit for limit in verdict.limits}


def test_check_repeats_the_verdict_of_optimize(tmp_path: Path) -> None:
    manifest = optkit.optimize(SAMPLES / "digits_mlp.onnx", QuantizeDynamic(), tmp_path / "out", bench=False)
    verdict = optkit.compare(SAMPLES / "digits_mlp.onnx", tmp_path / "out")
    assert isinstance(verdict, optkit.Verdict)
    assert verdict.held
    assert verdict.outputs == manifest.verdict.outputs
    assert verdict.metrics == manifest.verdict.metrics
    assert verdict.measured_on.samples == manifest.verdict.measured_on.samples == 450


def test_two_plain_files_are_compared_by_the_defaults(model: Path, tmp_path: Path) -> None:
    verdict = optkit.compare(model, toy.write_model(tmp_path / "r.onnx", factor=1.5))
    assert limits_of(verdict) == {"cosine": ">= 0.99", "speedup": "not-slower"}
    assert verdict.held
    assert verdict.measured_on.synthetic
    far = optkit.compare(model, toy.write_model(tmp_path / "f.onnx", factor=-1.0))
    assert (far.held, far.accuracy_held, far.budget_held) == (False, False, True)
    assert far.outputs[0].cosine == pytest.approx(-1, abs=1e-6)
    assert far.would_pass["cosine"] == pytest.approx(-1, abs=1e-3)


def test_the_figures_are_what_numpy_finds(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", **arrays(50, 6))
    verdict = optkit.compare(
        model, toy.write_model(tmp_path / "r.onnx", factor=1.25), data={"evaluation": tmp_path / "e.npz"}
    )
    y = arrays(50, 6)["x"].astype(np.float64) @ toy.WEIGHTS["w"]
    (first, second) = verdict.outputs
    assert first.max_error == pytest.approx(0.25 * np.abs(y).max(), abs=1e-5)
    assert first.sqnr_db == pytest.approx(-20 * np.log10(0.25), abs=1e-3)
    assert first.cosine == pytest.approx(1, abs=1e-6)
    assert second.max_error == 0
    assert verdict.measured_on.samples == 50


def test_limits_count_from_the_option_then_the_manifest_then_the_defaults(model: Path, tmp_path: Path) -> None:
    recipe = optkit.Recipe(passes=[toy.ScaleBy()], limits={"cosine": 0.9, "max_error": 0.5})
    optkit.optimize(model, recipe, tmp_path / "out", bench=False)
    assert limits_of(optkit.compare(model, tmp_path / "out")) == {
        "cosine": ">= 0.9",
        "max_error": "<= 0.5",
        "speedup": "not-slower",
    }
    assert limits_of(optkit.compare(model, tmp_path / "out", limits=["cosine=0.95"]))["cosine"] == ">= 0.95"
    bare = shutil.copy(tmp_path / "out" / "model.onnx", tmp_path / "bare.onnx")
    assert limits_of(optkit.compare(model, bare))["cosine"] == ">= 0.99"


def test_a_bundle_of_exact_passes_is_held_to_float_noise(tmp_path: Path) -> None:
    model = SAMPLES / "digits_mlp.onnx"
    optkit.optimize(model, optkit.Recipe(passes=["simplify"]), tmp_path / "out", bench=False)
    stated = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert limits_of(optkit.compare(model, tmp_path / "out"))["max_error"] == "<= 0.001"
    stated["steps"][0] |= {"name": "a-pass-of-somebody", "status": "changed"}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(stated))
    assert limits_of(optkit.compare(model, tmp_path / "out"))["cosine"] == ">= 0.99"


def test_a_declared_drop_is_no_problem_for_check_either(model: Path, tmp_path: Path) -> None:
    optkit.optimize(model, toy.Drop(), tmp_path / "out", bench=False)
    verdict = optkit.compare(model, tmp_path / "out")
    assert (verdict.held, verdict.problems, verdict.dropped_outputs) == (True, (), ("side",))
    bare = shutil.copy(tmp_path / "out" / "model.onnx", tmp_path / "bare.onnx")
    without = optkit.compare(model, bare)
    assert without.problems == ("output 'side': missing in the result, first in sample 0",)
    assert not without.held


def test_data_count_from_the_option_then_the_bundles_recipe_then_the_file_beside(model: Path, tmp_path: Path) -> None:
    for name, count in (("given", 3), ("recipe", 20), ("beside", 7)):
        np.savez(tmp_path / f"{name}.npz", **arrays(count, count))
    (tmp_path / "data.yaml").write_text("data: {evaluation: beside.npz}")
    source = {"evaluation": {"source": str(tmp_path / "recipe.npz")}}
    optkit.optimize(model, optkit.Recipe(passes=[toy.ScaleBy()], data=source), tmp_path / "out", bench=False)

    def samples(**options: object) -> int:
        return optkit.compare(model, tmp_path / "out", **options).measured_on.samples  # type: ignore[arg-type]

    assert samples(data={"evaluation": tmp_path / "given.npz"}) == 3
    assert samples() == 20
    (tmp_path / "recipe.npz").unlink()
    assert samples() == 7


def test_a_bundle_names_no_code(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optkit.optimize(model, toy.ScaleBy(), tmp_path / "out", bench=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil.py").write_text("raise RuntimeError('it ran')")
    (tmp_path / "evil:fn").write_text("")
    stated = json.loads((tmp_path / "out" / "manifest.json").read_text())
    stated["recipe"]["data"] = {"evaluation": {"source": "evil:fn", "format": "function"}}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(stated))
    assert optkit.compare(model, tmp_path / "out").measured_on.synthetic
    stated["recipe"]["data"], stated["recipe"]["metric"] = {}, "evil:Metric"
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(stated))
    assert optkit.compare(model, tmp_path / "out").metrics == ()


def test_session_entries_of_the_bundle_count(model: Path, tmp_path: Path) -> None:
    optkit.optimize(model, toy.Session(entries={"session.intra_op.allow_spinning": "0"}), tmp_path / "out", bench=False)
    assert optkit.Model.open(tmp_path / "out").session == {"session.intra_op.allow_spinning": "0"}
    assert optkit.compare(model, tmp_path / "out").held


def test_nothing_is_timed_unless_a_limit_asks(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def stopwatch(job: object, candidates: object, budget_s: float) -> list[object]:
        asked.append(budget_s)
        raise DataError("asked")

    monkeypatch.setattr(compare_module, "time_candidates", stopwatch)
    verdict = optkit.compare(model, model)
    (speedup,) = [limit for limit in verdict.limits if limit.name == "speedup"]
    assert (speedup.held, asked) == (None, [])
    for limit in ("speedup=1.1", "latency_ms=5", "memory_mb=100"):
        with pytest.raises(DataError, match="asked"):
            optkit.compare(model, model, limits=[limit])
    size = optkit.compare(model, model, limits=["size_ratio=1"])
    assert [limit.held for limit in size.limits if limit.name == "size_ratio"] == [True]
    assert len(asked) == 3


def test_a_manifest_that_is_broken_is_one_sentence(model: Path, tmp_path: Path) -> None:
    optkit.optimize(model, toy.ScaleBy(), tmp_path / "out", bench=False)
    (tmp_path / "out" / "manifest.json").write_text('{"recipe_name": "x"')
    with pytest.raises(ModelError, match="manifest"):
        optkit.compare(model, tmp_path / "out")


def test_different_names_dtypes_and_counts_are_problems_before_any_tolerance(model: Path, tmp_path: Path) -> None:
    narrow = optkit.optimize(model, toy.NarrowDeclared(), bench=False).result.path
    assert optkit.compare(model, narrow).problems == (
        "output 'y': the result has the dtype float16, the original float32",
    )
    with pytest.raises(DataError, match="x"):
        optkit.compare(model, SAMPLES / "digits_mlp.onnx")
