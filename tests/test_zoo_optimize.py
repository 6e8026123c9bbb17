"""Real models end to end: speech, text and vision, in the forms in which their packages carry them."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import optkit
from optkit.data.dataset import Arrays
from optkit.model.manifest import Manifest
from tests import zoo
from tests.command import ROOT, call
from tests.helpers import relative_error, run_onnx

FACTORIES = ROOT / "tests" / "zoo_factories.py"


def optimize(model: Path, recipe: str, out: Path, data: Path, **more: Any) -> tuple[Manifest, optkit.Model]:
    """The manifest and the bundle opened; its limits held, or it would have raised."""
    manifest = optkit.optimize(model, recipe, out, data=[str(data)], bench=False, **more)
    assert manifest.verdict.held
    assert not manifest.verdict.measured_on.synthetic
    return manifest, optkit.Model.open(out)


def status(manifest: Manifest) -> dict[str, str]:
    return {step.id: step.status for step in manifest.steps}


def save(path: Path, inputs: Arrays) -> Path:
    np.savez(path, **inputs)  # type: ignore[arg-type]
    return path


# --- text: MiniLM ---------------------------------------------------------------------------------------------------


def pooled(states: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Sentence vectors of unit length: float[rows, seq, 384] -> float64[rows, 384]."""
    summed = (states.astype(np.float64) * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    return summed / np.linalg.norm(summed, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return zoo.movie_reviews()["evaluation"].texts


@pytest.fixture(scope="module")
def encoded(sentences: list[str]) -> tuple[Arrays, np.ndarray[Any, Any]]:
    """48 sentences that no optimization saw, as MiniLM's inputs, and what transformers makes of them."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(zoo.minilm())
    inputs = dict(tokenizer(sentences[-48:], padding=True, return_tensors="np"))
    with torch.inference_mode():
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        states = AutoModel.from_pretrained(zoo.minilm()).eval()(**tensors).last_hidden_state.numpy()
    return {name: np.asarray(array, np.int64) for name, array in inputs.items()}, states


@pytest.mark.zoo
@pytest.mark.parametrize(("recipe", "cosine"), [("fp32", 0.999999), ("int8", 0.99)])
def test_minilm(
    recipe: str,
    cosine: float,
    sentences: list[str],
    encoded: tuple[Arrays, np.ndarray[Any, Any]],
    tmp_path: Path,
) -> None:
    (tmp_path / "reviews.txt").write_text("\n".join(sentences[:120]) + "\n")
    manifest, bundle = optimize(zoo.minilm(), recipe, tmp_path / "out", tmp_path / "reviews.txt")
    inputs, wanted = encoded
    given = {spec.name: inputs[spec.name] for spec in bundle.signature.inputs}
    states = run_onnx(bundle, given)["last_hidden_state"]
    ours, theirs = pooled(states, inputs["attention_mask"]), pooled(wanted, inputs["attention_mask"])
    assert (ours * theirs).sum(axis=1).mean() >= cosine
    if recipe == "fp32":
        real = inputs["attention_mask"].astype(bool)
        assert relative_error(states[real], wanted[real]) < 1e-3
        assert status(manifest)["fuse-graph"] == "changed"
    else:
        assert manifest.result.size_bytes < 0.7 * manifest.baseline.size_bytes  # the embeddings stay
    assert (tmp_path / "out" / "preprocess.json").is_file()
    assert call("run", tmp_path / "out", "--input", tmp_path / "reviews.txt", "--json").code == 0


# --- vision: EfficientNet-Lite0 -------------------------------------------------------------------------------------


@pytest.mark.zoo
@pytest.mark.timeout(900)
def test_efficientnet_static_int8_keeps_its_accuracy_on_labelled_photos(tmp_path: Path) -> None:
    weights, factory = zoo.efficientnet_lite0()
    manifest = optkit.optimize(
        weights,
        "int8-static",
        tmp_path / "out",
        factory=factory,
        signature="image=float32[batch,3,224,224]",
        data={"calibration": zoo.calibration_photos(), "evaluation": zoo.photos()},
        metric="top1",
        bench=False,
    )
    (metric,) = manifest.verdict.metrics
    (output,) = manifest.verdict.outputs
    assert manifest.verdict.held
    assert metric.original == pytest.approx(0.87, abs=0.02)
    assert metric.drop <= 0.01
    assert output.top1 is not None and output.top1 >= 0.97
    assert manifest.result.size_bytes < 0.35 * manifest.baseline.size_bytes
    operators = {node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= operators


# --- vision: text in images -----------------------------------------------------------------------------------------

WORDS = ["invoice", "total", "42.90", "EUR", "optimize", "BUNDLE", "ready", "quick", "brown", "fox", "1987", "seven"]


def written(side: tuple[int, int], words: list[str]) -> np.ndarray[Any, Any]:
    """Dark words on a light ground: float32[words, 3, height, width] in [-1, 1]."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = side
    font = ImageFont.load_default(size=34)
    pictures = []
    for word in words:
        picture = Image.new("RGB", (width, height), (235, 232, 225))
        ImageDraw.Draw(picture).text((8, height // 2 - 22), word, font=font, fill=(20, 24, 40))
        pictures.append(np.asarray(picture, np.float32).transpose(2, 0, 1) / 127.5 - 1)
    return np.stack(pictures)


def read(logits: np.ndarray[Any, Any]) -> list[list[int]]:
    """Greedy CTC decoding; class 0 is the blank."""
    found = []
    for row in logits.argmax(axis=2):
        changes = np.concatenate([[True], row[1:] != row[:-1]])
        found.append(row[changes & (row != 0)].tolist())
    return found


@pytest.mark.zoo
@pytest.mark.parametrize("recipe", ["fp32", "int8"])
def test_the_text_recognizer_reads_the_same(recipe: str, tmp_path: Path) -> None:
    model, inputs = zoo.rapidocr()["recognizer"], {"x": written((48, 224), WORDS)}
    original = next(iter(run_onnx(model, inputs).values()))
    _, bundle = optimize(model, recipe, tmp_path / "out", save(tmp_path / "words.npz", inputs))
    result = next(iter(run_onnx(bundle, inputs).values()))
    assert read(original) == read(result)
    assert 3 * len(WORDS) < sum(map(len, read(result))) <= sum(map(len, WORDS))
    if recipe == "fp32":
        assert np.abs(result - original).max() < 1e-3


@pytest.mark.zoo
@pytest.mark.parametrize("part", ["detector", "classifier"])
def test_the_text_detector_and_the_angle_classifier_keep_their_answers(part: str, tmp_path: Path) -> None:
    model = zoo.rapidocr()[part]
    inputs = {"x": written((96, 224) if part == "detector" else (48, 192), WORDS)}
    original = next(iter(run_onnx(model, inputs).values()))
    data = save(tmp_path / "words.npz", inputs)
    manifest, bundle = optimize(model, "fp32", tmp_path / "out", data)
    assert status(manifest)["simplify"] == "changed"
    assert relative_error(next(iter(run_onnx(bundle, inputs).values())), original) < 1e-3
    assert original.std() > 0.01


@pytest.mark.zoo
def test_dynamic_int8_of_a_convolutional_detector_is_a_truthful_refusal(tmp_path: Path) -> None:
    data = save(tmp_path / "words.npz", {"x": written((96, 224), WORDS)})
    flags = ("--recipe", "int8", "--data", data, "--no-bench", "-o", tmp_path / "out", "--json")
    answer = call("optimize", zoo.rapidocr()["detector"], *flags)
    assert answer.code == 3
    assert "no MatMul or Gemm with constant float32 weights" in answer.body["error"]["message"]
    assert not (tmp_path / "out").exists()


@pytest.mark.zoo
def test_dynamic_int8_of_the_angle_classifier_finds_the_weights_in_constant_nodes(tmp_path: Path) -> None:
    model, inputs = zoo.rapidocr()["classifier"], {"x": written((48, 192), WORDS)}
    manifest, bundle = optimize(model, "int8", tmp_path / "out", save(tmp_path / "words.npz", inputs))
    original, result = (next(iter(run_onnx(each, inputs).values())) for each in (model, bundle))
    assert len(next(step for step in manifest.steps if step.id == "quantize-dynamic").changes) == 1
    assert np.abs(result - original).max() < 0.02


# --- sound: voice activity, speakers --------------------------------------------------------------------------------


def sounds(rows: int, samples: int) -> np.ndarray[Any, Any]:
    """Tones that swell and fade over noise, 16 kHz: float32[rows, samples]."""
    rng = np.random.default_rng(0)
    time = np.arange(samples) / 16_000
    pitch, loudness = rng.uniform(90, 400, (rows, 1)), rng.uniform(0, 0.6, (rows, 1))
    voiced = sum(np.sin(2 * np.pi * pitch * time * harmonic) / harmonic for harmonic in range(1, 6))
    return (loudness * voiced + rng.normal(0, 0.01, (rows, samples))).astype(np.float32)


SILERO = "input=float32[batch,sequence];state=float32[2,batch,128];sr=int64[]"


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("form", "recipe", "allowed"),
    [("onnx", "fp32", 1e-5), ("onnx_ifless", "fp32", 1e-5), ("onnx", "int8", 0.02), ("onnx_ifless", "int8", 0.02)],
)
def test_silero_voice_activity_with_its_state(form: str, recipe: str, allowed: float, tmp_path: Path) -> None:
    model = zoo.silero()[form]
    state = np.random.default_rng(1).normal(0, 0.3, (2, 64, 128)).astype(np.float32)
    inputs: Arrays = {"input": sounds(64, 576), "state": state, "sr": np.array(16_000, np.int64)}
    data = save(tmp_path / "sounds.npz", inputs)
    manifest, bundle = optimize(model, recipe, tmp_path / "out", data, signature=SILERO)
    original, result = run_onnx(model, inputs), run_onnx(bundle, inputs)
    assert {name: relative_error(result[name], original[name]) < allowed for name in original} == {
        "output": True,
        "stateN": True,
    }
    assert manifest.result.size_bytes < (1.0 if recipe == "fp32" else 0.65) * manifest.original.size_bytes


@pytest.mark.zoo
def test_a_model_that_made_up_inputs_do_not_fit_says_so(tmp_path: Path) -> None:
    answer = call("optimize", zoo.silero()["onnx"], "--recipe", "fp32", "-o", tmp_path / "out", "--no-bench")
    assert answer.code == 3
    assert "does not run on inputs made up from its signature" in answer.err
    assert "--data FILE" in answer.err


@pytest.mark.zoo
@pytest.mark.parametrize(("recipe", "cosine"), [("fp32", 0.999999), ("int8", 0.999)])
def test_the_speaker_encoder_from_its_checkpoint(recipe: str, cosine: float, tmp_path: Path) -> None:
    import torch

    from tests.zoo_factories import speaker_encoder

    module = speaker_encoder().eval()
    module.load_state_dict(torch.load(zoo.speaker_encoder(), map_location="cpu", weights_only=True)["model_state"])
    mels = np.abs(np.random.default_rng(0).normal(0, 0.05, (32, 60, 40))).astype(np.float32)
    with torch.inference_mode():
        wanted = module(torch.from_numpy(mels))["embedding"].numpy()
    data = save(tmp_path / "mels.npz", {"mels": mels})
    code = {"factory": f"{FACTORIES}:speaker_encoder", "signature": "mels=float32[batch,frames,40]"}
    manifest, bundle = optimize(zoo.speaker_encoder(), recipe, tmp_path / "out", data, **code)
    result = run_onnx(bundle, {"mels": mels})["embedding"]
    assert (result * wanted).sum(axis=1).mean() >= cosine
    assert np.linalg.norm(result, axis=1) == pytest.approx(1, abs=1e-5)
    assert run_onnx(bundle, {"mels": mels[:3, :25]})["embedding"].shape == (3, 256)
    assert status(manifest)["export-onnx"] == "changed"
    operators = [node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node]
    kept, quantized = operators.count("LSTM"), operators.count("DynamicQuantizeLSTM")
    assert (kept, quantized) == ((3, 0) if recipe == "fp32" else (1, 2)), "the first one reads mels"


# --- 3 GB -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 3 GB MLP of 48 tensors with external data."""
    from benchmarks.mlp import write_mlp

    path = write_mlp(tmp_path_factory.mktemp("large") / "large.onnx", width=5600, layers=24)
    assert path.with_name("large.onnx.data").stat().st_size > 3_000_000_000
    return path


def measured(*command: object, cache: Path) -> Any:
    from benchmarks.bench_self import OPTKIT, run

    done = run([*OPTKIT, *map(str, command)], OPTKIT_CACHE=str(cache))
    assert done.code == 0, done.output
    return done


@pytest.mark.large
def test_inspect_does_not_load_the_weights_of_a_large_model(large: Path, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = measured("inspect", large, "--json", cache=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    facts = json.loads(done.output)["result"]["summary"]
    assert facts["parameters"] == 24 * (5600 * 5600 + 5600)
    assert done.peak_mb < 300
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5  # reading 3 GB takes longer


@pytest.mark.large
@pytest.mark.timeout(1200)
def test_a_large_model_goes_through_simplify_and_dynamic_int8_in_bounded_memory(large: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "large.yaml"
    recipe.write_text("version: 1\nname: large\npasses: [simplify, quantize-dynamic]\n")
    flags = ("--recipe", recipe, "-o", tmp_path / "out", "--no-bench")
    done = measured("optimize", large, *flags, cache=tmp_path / "cache")
    assert done.peak_mb < 12_000
    bundle = optkit.Model.open(tmp_path / "out")
    assert bundle.size_bytes < 0.27 * optkit.Model.open(large).size_bytes
    x = np.random.default_rng(0).standard_normal((4, 5600)).astype(np.float32)
    result = run_onnx(bundle, {"x": x})
    original = run_onnx(large, {"x": x})
    (name,) = original
    assert result[name].shape == (4, 5600)
    assert relative_error(result[name], original[name]) < 0.1
