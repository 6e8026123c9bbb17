"""``optkit run``'s work: outputs, placement, refusals, comparison, the .npz file."""

from __future__ import annotations

import dataclasses
import errno
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from optkit.data.dataset import Batch
from optkit.errors import AccuracyMissed, DataError, ModelError, OutputError, ProviderError, UsageError
from optkit.model.manifest import Manifest
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.pipeline import infer as infer_module
from optkit.pipeline import outputs as outputs_module
from optkit.pipeline.infer import _notes, infer
from optkit.pipeline.optimize import optimize
from optkit.pipeline.outputs import Collector, check_npz, write_npz
from optkit.report.run import run_lines, run_tables
from tests.helpers import MemoryData, normal, onnx_model, run_onnx

WEIGHTS = normal(4, 3, seed=1)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "linear.onnx"
    text = "g (float[batch,4] x) => (float[batch,3] logits) { h = MatMul(x, w) logits = Relu(h) }"
    onnx.save(onnx_model(text, {"w": WEIGHTS}), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "x.npz"
    np.savez(path, x=normal(11, 4))
    return path


def test_outputs_are_those_of_the_model_in_order(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "y.npz"
    seen: list[tuple[int, int]] = []
    ran = infer(model, inputs=data, output=out, batch=4, watch=lambda what, done, total: seen.append((done, total)))
    x = np.load(data)["x"]
    with np.load(out) as made:
        assert made.files == ["logits"]
        np.testing.assert_allclose(made["logits"], np.maximum(x @ WEIGHTS, 0), atol=1e-6)
    assert seen == [(0, 11), (4, 11), (8, 11), (11, 11)]
    assert ran.facts.written == str(out)
    assert (ran.facts.data.samples, ran.facts.data.batch, ran.facts.data.synthetic) == (11, 4, False)
    assert [file.name for file in out.parent.iterdir()] == ["y.npz"]


class Uneven(MemoryData):
    """Batches of 5, 1 and 5 samples, filled up to 8 rows, as a function may give them."""

    def batches(self) -> Iterator[Batch]:
        for first, size in ((0, 5), (5, 1), (6, 5)):
            rows = self.arrays["x"][first : first + size]
            yield Batch({"x": np.concatenate([rows, np.zeros((8 - size, 4), np.float32)])}, size)


def test_batches_count_by_their_own_sizes(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(11, 4)
    monkeypatch.setattr(infer_module, "open_inputs", lambda *_, **__: Uneven("input", {"x": x}))
    seen: list[int] = []
    out = tmp_path / "y.npz"
    facts = infer(model, inputs=tmp_path, output=out, watch=lambda what, done, total: seen.append(done)).facts
    assert seen == [0, 5, 6, 11]
    assert facts.outputs[0].shape == (11, 3)
    np.testing.assert_allclose(np.load(out)["logits"], np.maximum(x @ WEIGHTS, 0), atol=1e-6)


def test_figures_classes_and_placement(model: Path, data: Path) -> None:
    facts = infer(model, inputs=data, batch=2, threads=1).facts
    expected = np.maximum(np.load(data)["x"] @ WEIGHTS, 0)
    (output,) = facts.outputs
    assert (output.dtype, output.shape, output.nonfinite) == ("float32", (11, 3), 0)
    assert output.mean == pytest.approx(expected.mean(), rel=1e-5)
    assert (output.minimum, output.maximum) == (0, pytest.approx(expected.max(), rel=1e-5))
    assert [top.sample for top in output.top1] == [0, 1, 2, 3, 4]
    assert [top.index for top in output.top1] == expected[:5].argmax(axis=1).tolist()
    assert facts.placement == {"cpu": {"MatMul": 1, "Relu": 1}}
    assert (facts.provider, facts.threads, facts.written) == ("cpu", 1, None)
    rows = {table.title: table.rows for table in run_tables(facts)}
    assert rows["What ran where"] == (("cpu", "2", "1 MatMul, 1 Relu"),)
    assert rows["Outputs"][0][:3] == ("logits", "float32", "[11, 3]")


def test_without_data_it_says_synthetic(model: Path) -> None:
    facts = infer(model).facts
    assert facts.data.synthetic and facts.data.samples == 16
    assert "SYNTHETIC" in run_lines(facts)[-1]


def test_data_yaml_beside_the_model_is_found(model: Path, data: Path) -> None:
    (model.parent / "data.yaml").write_text("data: {evaluation: {source: x.npz, batch: 5}}\n")
    facts = infer(model).facts
    assert (facts.data.source, facts.data.samples, facts.data.batch) == ("x.npz", 11, 5)
    assert infer(model, batch=3).facts.data.batch == 3


def test_a_bundle_uses_its_originals_data_and_its_session(model: Path, data: Path, tmp_path: Path) -> None:
    (model.parent / "data.yaml").write_text("data: {evaluation: x.npz}\n")
    bundle = tmp_path / "bundle"
    _optimize(model, bundle)
    manifest = Manifest.model_validate_json((bundle / "manifest.json").read_bytes())
    changed = manifest.model_copy(update={"session": {"optimization.minimal_build_optimizations": "bogus"}})
    assert Path(infer(bundle).facts.data.source) == data
    (bundle / "manifest.json").write_text(changed.model_dump_json())
    with pytest.raises(ModelError, match="bogus"):
        infer(bundle)


def test_a_bundle_runs_on_the_provider_it_was_made_for(model: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    manifest = _optimize(model, bundle)
    elsewhere = {**manifest.recipe, "target": {**manifest.recipe["target"], "provider": "directml"}}
    (bundle / "manifest.json").write_text(manifest.model_copy(update={"recipe": elsewhere}).model_dump_json())
    with pytest.raises(ProviderError, match="'directml' is not there"):
        infer(bundle)
    assert infer(bundle, provider="cpu").facts.provider == "cpu"


def _optimize(model: Path, bundle: Path) -> Manifest:
    recipe = bundle.with_suffix(".yaml")
    recipe.write_text("version: 1\npasses: [quantize-dynamic]\nlimits: {cosine: 0.5, agreement: 0.1}\n")
    return optimize(model, recipe, bundle, bench=False)


def test_against_gives_the_verdict_and_the_run(model: Path, data: Path) -> None:
    ran = infer(model, inputs=data, against=model)
    assert ran.verdict is not None and ran.verdict.held
    assert ran.verdict.outputs[0].cosine == pytest.approx(1, abs=1e-6)
    assert (ran.verdict.measured_on.samples, ran.facts.data.samples) == (11, 11)


def test_against_another_model_misses_and_writes_nothing(model: Path, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    text = "g (float[batch,4] x) => (float[batch,3] logits) { h = MatMul(x, w) logits = Relu(h) }"
    onnx.save(onnx_model(text, {"w": normal(4, 3, seed=9)}), other)
    with pytest.raises(AccuracyMissed) as caught:
        infer(other, inputs=data, against=model, output=tmp_path / "y.npz")
    assert caught.value.facts.held is False
    assert not (tmp_path / "y.npz").exists()


def test_ragged_batches_are_filled_up_and_said(tmp_path: Path) -> None:
    collector = Collector(keep=True)
    collector.add({"hidden": np.ones((2, 3, 2), np.float32)}, 2)
    collector.add({"hidden": np.ones((1, 5, 2), np.float32)}, 1)
    (facts,) = collector.facts()
    assert facts.shape == (3, 5, 2) and "zeros fill them up" in facts.note
    ((name, array),) = collector.arrays()
    assert (name, array.shape, array[:2, 3:].sum(), array.sum()) == ("hidden", (3, 5, 2), 0, 22)


def test_outputs_without_samples_are_stacked_by_batch() -> None:
    collector = Collector(keep=True)
    for value in (1.0, 2.0):
        collector.add({"loss": np.float32(value)}, 4)
    (facts,) = collector.facts()
    assert facts.shape == (2,) and "one entry a batch" in facts.note
    assert dict(collector.arrays())["loss"].tolist() == [1, 2]


def test_not_finite_values_are_counted_not_averaged() -> None:
    collector = Collector(keep=False)
    collector.add({"y": np.array([[1.0, np.nan, np.inf], [3.0, -np.inf, 2.0]], np.float32)}, 2)
    (facts,) = collector.facts()
    assert (facts.nonfinite, facts.minimum, facts.mean, facts.maximum) == (3, 1, 2, 3)


def test_any_output_name_and_dtype_survives_the_file(tmp_path: Path) -> None:
    import ml_dtypes

    collector = Collector(keep=True)
    odd = {"file": np.arange(2), "a/b": np.array(["x", "yy"], object), "h": np.ones(2, ml_dtypes.bfloat16)}
    collector.add(odd, 2)
    write_npz(tmp_path / "y.npz", collector.arrays())
    with np.load(tmp_path / "y.npz", allow_pickle=False) as made:
        assert sorted(made.files) == ["a/b", "file", "h"]
        assert made["a/b"].tolist() == ["x", "yy"]
        assert (made["h"].dtype, made["h"].tolist()) == (np.float32, [1, 1])


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "y.npz"
    write_npz(out, {"y": np.zeros(3)})

    class Full(zipfile.ZipFile):
        def open(self, *args: object, **kwargs: object) -> None:  # type: ignore[override]
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs_module.zipfile, "ZipFile", Full)
    with pytest.raises(OutputError, match="No space left"):
        write_npz(out, {"y": np.ones(3)})
    monkeypatch.undo()
    assert np.load(out)["y"].tolist() == [0, 0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["y.npz"]


def test_an_existing_output_needs_force(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "y.npz"
    out.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists already"):
        infer(model, inputs=data, output=out)
    assert out.read_bytes() == b"precious"
    infer(model, inputs=data, output=out, force=True)
    assert np.load(out)["logits"].shape == (11, 3)


@pytest.mark.parametrize(("name", "words"), [("y.csv", "does not end in .npz"), ("d.npz", "is a folder")])
def test_places_that_cannot_take_outputs(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "d.npz").mkdir()
    with pytest.raises(OutputError, match=words):
        check_npz(tmp_path / name, force=True)


def test_a_provider_that_is_not_there_is_refused(model: Path) -> None:
    with pytest.raises(ProviderError, match="'coreml' is not there") as caught:
        infer(model, provider="coreml")
    assert "cpu" in caught.value.expected


def test_nodes_that_fell_to_the_cpu_are_named() -> None:
    opened = Model(Path("m.onnx"), "onnx", "onnx")
    placed = {"cuda": {"MatMul": 4}, "cpu": {"Shape": 2, "Gather": 1}}
    (note,) = _notes(placed, opened, Target("cuda"))
    assert note == "3 nodes fell to the CPU, because cuda does not take them: Shape, Gather"
    assert _notes(placed, opened, Target("cpu")) == []


def test_torch_models_run_on_the_cpu_alone(tmp_path: Path, data: Path) -> None:
    import torch

    module = torch.nn.Linear(4, 3)
    dims = {"input": {0: torch.export.Dim("batch")}}
    torch.export.save(torch.export.export(module, (torch.zeros(2, 4),), dynamic_shapes=dims), tmp_path / "m.pt2")
    np.savez(data, input=normal(3, 4))
    facts = infer(tmp_path / "m.pt2", inputs=data).facts
    assert (facts.provider, facts.placement, facts.outputs[0].shape) == ("torch", {}, (3, 3))
    with pytest.raises(ProviderError, match="not on 'cuda'"):
        infer(tmp_path / "m.pt2", inputs=data, provider="cuda")


def test_options_that_would_be_ignored_are_refused(model: Path, data: Path) -> None:
    with pytest.raises(UsageError, match="--limit judges"):
        infer(model, limits=["cosine=0.9"])
    with pytest.raises(UsageError, match="--input and --data"):
        infer(model, inputs=data, data=["y.npz"])


def test_wrong_data_are_refused(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", x=normal(3, 5))
    with pytest.raises(DataError):
        infer(model, inputs=tmp_path / "bad.npz")
    with pytest.raises(DataError, match="do not exist"):
        infer(model, inputs=tmp_path / "nothing.npz")


def test_ort_files_run_by_what_they_say_themselves(model: Path, tmp_path: Path) -> None:
    path = save_ort(model, tmp_path / "m.ort")
    facts = infer(path).facts
    assert facts.outputs[0].shape == (16, 3)
    assert facts.notes == ("onnxruntime does not say which nodes of an ORT file ran where",)


def save_ort(model: Path, path: Path) -> Path:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return path


def test_a_model_with_assets_lends_them_to_the_original(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    from PIL import Image

    text = "g (float[batch,1,2,2] image) => (float[batch,1,2,2] y) { y = Relu(image) }"
    onnx.save(onnx_model(text), tmp_path / "m.onnx")
    Image.fromarray(np.full((4, 4), 128, np.uint8)).save(tmp_path / "p.png")
    entry = {"kind": "image", "resize": [2, 2], "color": "gray", "scale": 0.5}
    opened = Model.open(tmp_path / "m.onnx")
    assets = dataclasses.replace(opened.assets, preprocess={"image": entry}, folder=tmp_path)
    opened = dataclasses.replace(opened, assets=assets)
    ran = infer(opened, inputs=tmp_path / "p.png", against=tmp_path / "m.onnx")
    assert ran.verdict is not None and ran.verdict.held
    assert ran.facts.outputs[0].maximum == 64
    assert run_onnx(opened, {"image": np.full((1, 1, 2, 2), 64, np.float32)})["y"].max() == 64
