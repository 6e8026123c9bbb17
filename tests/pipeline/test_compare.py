"""``optkit.compare``: whose limits and data count, dropped outputs, results that optkit did not make."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import optkit
from optkit.bench.measure import Rules
from optkit.errors import DataError, ModelError, ProviderError, UsageError
from optkit.passes import _registry
from optkit.passes._base import Pass
from optkit.passes.quantize_dynamic import QuantizeDynamic
from optkit.pipeline import compare as compare_module
from optkit.pipeline import stopwatch as stopwatch_module
from optkit.pipeline.infer import infer
from optkit.pipeline.origin import default_exporter
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
    assert samples() == 14
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
    asked = spy(monkeypatch)
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


def tamper(bundle: Path, *keys: str, value: Any) -> None:
    """Write another value into the bundle's manifest."""
    file = bundle / "manifest.json"
    stated = place = json.loads(file.read_text())
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    file.write_text(json.dumps(stated))


def notes_of(verdict: optkit.Verdict) -> dict[str, str]:
    return {limit.name: limit.note.rpartition("; ")[2] for limit in verdict.limits}


def test_a_manifest_of_another_model_does_not_count(model: Path, tmp_path: Path) -> None:
    recipe = optkit.Recipe(passes=[toy.Drop()], limits={"cosine": 0.5})
    optkit.optimize(model, recipe, tmp_path / "out", bench=False)
    toy.write_model(tmp_path / "out" / "model.onnx", factor=1.5)
    with pytest.raises(ModelError, match="of another model than") as caught:
        optkit.compare(model, tmp_path / "out")
    assert (caught.value.exit_code, caught.value.file) == (3, str(tmp_path / "out" / "manifest.json"))
    with pytest.raises(ModelError, match="of another model"):
        infer(tmp_path / "out")
    plain = optkit.compare(model, tmp_path / "out" / "model.onnx")
    assert (limits_of(plain)["cosine"], plain.dropped_outputs, plain.held) == (">= 0.99", (), True)
    tamper(tmp_path / "out", "recipe", value="nonsense")
    assert optkit.compare(model, tmp_path / "out" / "model.onnx").held
    (tmp_path / "out" / "manifest.json").write_text("[" * 9)
    assert optkit.compare(model, tmp_path / "out" / "model.onnx").held


def test_a_bundle_with_external_data_is_its_manifests_model(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    onnx.save(proto, tmp_path / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    recipe = optkit.Recipe(passes=[toy.Session(entries={})], limits={"cosine": 0.9})
    optkit.optimize(tmp_path / "e.onnx", recipe, tmp_path / "out", bench=False)
    assert limits_of(optkit.compare(model, tmp_path / "out"))["cosine"] == ">= 0.9"
    (data,) = (tmp_path / "out").glob("*.data")
    data.write_bytes(bytes(data.stat().st_size))
    with pytest.raises(ModelError, match="of another model"):
        optkit.compare(model, tmp_path / "out")


def test_a_model_made_of_weights_with_a_factory_is_its_manifests_model(tmp_path: Path) -> None:
    original = toy.torch_model(tmp_path)
    manifest = optkit.optimize(original, toy.ToyExport(), tmp_path / "out", limits=["cosine=0.9"], bench=False)
    assert optkit.Model.open(tmp_path / "out").digest == manifest.result.digest
    assert limits_of(optkit.compare(original, tmp_path / "out"))["cosine"] == ">= 0.9"


def test_each_limit_says_where_it_came_from(model: Path, tmp_path: Path) -> None:
    recipe = optkit.Recipe(passes=[toy.ScaleBy()], limits={"cosine": 0.9, "max_error": 0.5})
    optkit.optimize(model, recipe, tmp_path / "out", bench=False)
    told = notes_of(optkit.compare(model, tmp_path / "out", limits=["max_error=0.4", "labelled.agreement=0.9"]))
    assert told == {
        "cosine": "limit of the manifest",
        "max_error": "limit asked for",
        "labelled.agreement": "limit asked for",
        "speedup": "limit by default",
    }


def spy(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the stopwatch is given: (job, candidates); it then raises."""
    seen: list[Any] = []

    def stopwatch(job: Any, candidates: Any, rules: Rules) -> Any:
        seen.append((job, candidates))
        raise DataError("asked")

    monkeypatch.setattr(stopwatch_module, "time_candidates", stopwatch)
    return seen


def test_speed_and_size_count_from_the_bundles_own_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> type[Pass]:
        return {"toy-export": toy.ToyExport, "scale-by": toy.ScaleBy}[name]

    monkeypatch.setattr(_registry, "find", find)
    np.savez(tmp_path / "e.npz", **arrays(50, 6))
    original, calls = toy.torch_model(tmp_path), tmp_path / "calls"
    passes = [toy.ToyExport(calls=str(calls)), toy.ScaleBy()]
    data = {"evaluation": tmp_path / "e.npz"}
    manifest = optkit.optimize(original, passes, tmp_path / "out", data=data, bench=False)
    seen = spy(monkeypatch)
    with pytest.raises(DataError, match="asked"):
        optkit.compare(original, tmp_path / "out", limits=["speedup=1.1"])
    (baseline, _), (result, _) = seen[0][1]
    assert (baseline.form, baseline.digest) == ("onnx", manifest.baseline.digest)
    assert result.digest == manifest.result.digest
    (size,) = [
        limit
        for limit in optkit.compare(original, tmp_path / "out", limits=["size_ratio=1.5"]).limits
        if limit.name == "size_ratio"
    ]
    assert size.measured == pytest.approx(manifest.result.size_bytes / manifest.baseline.size_bytes)
    assert calls.read_text() == "."


def test_without_an_export_speed_and_size_are_not_checked(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_module, "default_exporter", lambda: toy.ToyExport(lazy=True))
    limits = ["speedup=1.1", "size_ratio=0.5", "size_mb=1"]
    verdict = optkit.compare(toy.torch_model(tmp_path), model, limits=limits)
    held = {limit.name: limit.held for limit in verdict.limits if limit.kind == "budget"}
    assert held == {"speedup": None, "size_ratio": None, "size_mb": True}
    why = "not checked: the original could not be exported: the export had no effect; limit asked for"
    assert [limit.note for limit in verdict.limits if limit.held is None] == [why, why]


def test_the_default_export_is_optkits_own() -> None:
    assert default_exporter().forms == {"torch": "onnx"}


def test_the_bundles_target_counts_unless_an_option_says_otherwise(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = {"threads": 3, "shapes": {"batch": 5}}
    optkit.optimize(model, optkit.Recipe(passes=[toy.ScaleBy()], target=target), tmp_path / "out", bench=False)
    seen = spy(monkeypatch)
    for options in ({}, {"threads": 1}):
        with pytest.raises(DataError, match="asked"):
            optkit.compare(model, tmp_path / "out", limits=["speedup=1.1"], **options)  # type: ignore[arg-type]
    used = [job.target for job, _ in seen]
    assert [(each.provider, each.threads, each.shapes) for each in used] == [
        ("cpu", 3, {"batch": 5}),
        ("cpu", 1, {"batch": 5}),
    ]
    tamper(tmp_path / "out", "recipe", "target", "provider", value="directml")
    with pytest.raises(ProviderError, match="'directml' is not there"):
        optkit.compare(model, tmp_path / "out")
    assert optkit.compare(model, tmp_path / "out", provider="cpu").held


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("recipe", "limits"), {"cosine": "high"}, "limits.cosine"),
        (("recipe", "limits"), {"cosin": 0.9}, "limits.cosin"),
        (("recipe", "limits"), 3, "limits"),
        (("recipe", "target", "threads"), -1, "target.threads"),
        (("recipe", "outputs"), {"y": {"pool": 7}}, "outputs.y"),
        (("recipe", "data"), {"evaluation": {"sauce": "x"}}, "data.evaluation"),
        (("recipe", "of_version_0"), 1, "of_version_0"),
        (("options",), {"seed": -1}, "greater than or equal to 0"),
        (("steps", 0, "status"), "fine", "steps.0.status"),
    ],
)
def test_a_tampered_manifest_is_one_sentence(
    model: Path, tmp_path: Path, keys: tuple[str, ...], value: Any, words: str
) -> None:
    optkit.optimize(model, toy.ScaleBy(), tmp_path / "out", bench=False)
    tamper(tmp_path / "out", *keys, value=value)
    with pytest.raises(ModelError, match="manifest") as caught:
        optkit.compare(model, tmp_path / "out")
    assert words in caught.value.message
    assert caught.value.file == str(tmp_path / "out" / "manifest.json")
    with pytest.raises(ModelError, match="manifest"):
        infer(tmp_path / "out")


def test_the_part_that_was_searched_on_is_left_out_again(model: Path, tmp_path: Path) -> None:
    for name in "es":
        np.savez(tmp_path / f"{name}.npz", **arrays(50, ord(name)))
    data = {"evaluation": tmp_path / "e.npz"}
    manifest = optkit.optimize(model, toy.ScaleBy(), tmp_path / "out", data=data, seed=3, bench=False)
    again = optkit.compare(model, tmp_path / "out")
    assert again.measured_on.samples == manifest.verdict.measured_on.samples == 35
    assert again.outputs == manifest.verdict.outputs
    assert optkit.compare(model, tmp_path / "out", data=data).measured_on.samples == 50
    data["search"] = tmp_path / "s.npz"
    optkit.optimize(model, toy.ScaleBy(), tmp_path / "two", data=data, bench=False)
    assert optkit.compare(model, tmp_path / "two").measured_on.samples == 50


def test_the_two_in_the_wrong_order_are_refused(model: Path, tmp_path: Path) -> None:
    optkit.optimize(model, toy.ScaleBy(), tmp_path / "out", bench=False)
    with pytest.raises(UsageError, match="was made from") as error:
        optkit.compare(tmp_path / "out", model)
    assert error.value.fix == "swap the two"
