"""Real architectures through every fusion, and through the recipe fp32: the outputs stay, and no step is taken back."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import optkit
from optkit.data.dataset import Arrays
from optkit.model.manifest import Manifest, StepRecord
from optkit.passes import _base
from optkit.passes._fusion.families import NAMES
from optkit.passes.export_onnx import ExportOnnx
from optkit.passes.fuse_graph import FuseGraph
from optkit.passes.simplify import Simplify
from tests import zoo
from tests.helpers import normal, ops_of
from tests.test_zoo_optimize import SILERO, save, sounds, written

EXACT = 1e-3
"""Largest error over the output's standard deviation, as for any chain of exact passes."""
ALL: tuple[_base.Pass, ...] = (ExportOnnx(), Simplify(), FuseGraph(families=NAMES))
"""Every family, also those that are slower on CPUs."""
WIDTH = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
Given = tuple[Path, Arrays, dict[str, Any]]


@cache
def transformer(kind: str, folder: Path) -> Path:
    """A folder of transformers' own classes with random weights: 4 layers, 256 wide, 4 heads."""
    import torch
    import transformers as hf

    torch.manual_seed(0)
    if kind == "vit":
        module = hf.ViTForImageClassification(hf.ViTConfig(**WIDTH, image_size=64, patch_size=8))
    else:
        module = hf.LlamaForCausalLM(
            hf.LlamaConfig(**WIDTH, num_key_value_heads=2, vocab_size=2000, max_position_embeddings=256)
        )
    for index, weight in enumerate(module.parameters()):  # fresh scales are all ones, and exported as nothing
        weight.data += normal(*weight.shape, seed=index, scale=0.05)
    module.save_pretrained(folder)
    return folder


def padded(rows: int, tokens: int) -> Arrays:
    """Ids of as many rows, each with a token more of padding than the one before it."""
    keep = np.arange(tokens) < tokens - np.arange(rows)[:, None]
    ids = np.random.default_rng(0).integers(0, 2000, (rows, tokens))
    return {"input_ids": np.where(keep, ids, 0), "attention_mask": keep.astype(np.int64)}


def text(part: str) -> Given:
    words = ["invoice", "total", "42.90", "EUR", "optimize", "BUNDLE"]
    sides = {"detector": (96, 224), "recognizer": (48, 224), "classifier": (48, 192)}
    return zoo.rapidocr()[part], {"x": written(sides[part], words)}, {}


def silero(form: str) -> Given:
    state = normal(2, 16, 128, seed=1, scale=0.3)
    inputs: Arrays = {"input": sounds(16, 576), "state": state, "sr": np.array(16_000, np.int64)}
    return zoo.silero()[form], inputs, {"signature": SILERO}


def speakers() -> Given:
    from tests.test_zoo_optimize import FACTORIES

    mels = np.abs(normal(16, 60, 40, scale=0.05))
    code = {"factory": f"{FACTORIES}:speaker_encoder", "signature": "mels=float32[batch,frames,40]"}
    return zoo.speaker_encoder(), {"mels": mels}, code


def photos() -> Given:
    weights, factory = zoo.efficientnet_lite0()
    code = {"factory": factory, "signature": "image=float32[batch,3,224,224]"}
    return weights, {"image": normal(8, 3, 224, 224)}, code


MODELS: dict[str, Callable[[], Given]] = {
    "detector": lambda: text("detector"),
    "recognizer": lambda: text("recognizer"),
    "classifier": lambda: text("classifier"),
    "silero, weights in branches": lambda: silero("onnx"),
    "silero": lambda: silero("onnx_ifless"),
    "lstm": speakers,
    "efficientnet": photos,
}


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Given]:
    """A ViT and a decoder like llama, both with random weights."""
    folder = tmp_path_factory.mktemp("decoders")
    inputs: dict[str, Arrays] = {"vit": {"pixel_values": normal(8, 3, 64, 64)}, "llama": padded(8, 24)}
    return {kind: (transformer(kind, folder / kind), given, {}) for kind, given in inputs.items()}


def optimized(given: Given, recipe: Any, folder: Path, *, bench: bool = False) -> tuple[Manifest, optkit.Model]:
    """The manifest and the bundle, whose outputs are those of the original."""
    model, inputs, more = given
    data = [str(save(folder / "data.npz", inputs))]
    manifest = optkit.optimize(model, recipe, folder / "out", data=data, bench=bench, **more)
    assert manifest.verdict.held
    errors = {output.name: output.max_error_std for output in manifest.verdict.outputs}
    assert all(error is not None and error <= EXACT for error in errors.values()), errors
    assert [step.reason for step in manifest.steps if is_taken_back(step)] == []
    return manifest, optkit.Model.open(folder / "out")


def is_taken_back(step: StepRecord) -> bool:
    """For another reason than its time."""
    cannot_open = any("cannot open" in each.what for each in step.skipped)
    return cannot_open or (step.status == "rolled back" and not step.reason.startswith("measured slower"))


@pytest.mark.zoo
@pytest.mark.parametrize("recipe", ["fp32", ALL], ids=["fp32", "all families"])
@pytest.mark.parametrize("name", MODELS)
def test_real_models_go_through(name: str, recipe: Any, tmp_path: Path) -> None:
    optimized(MODELS[name](), recipe, tmp_path)


def attention_ops(model: optkit.Model) -> dict[str, int]:
    """How many of the operators that attention is fused into, or is left as."""
    kinds = ("MultiHeadAttention", "Attention", "RotaryEmbedding", "Gelu", "SkipSimplifiedLayerNormalization")
    names = [*(f"com.microsoft.{kind}" for kind in kinds), "Softmax", "SimplifiedLayerNormalization", "Cos"]
    found = ops_of(model)
    return {name.removeprefix("com.microsoft."): found[name] for name in names if name in found}


@pytest.mark.zoo
@pytest.mark.parametrize("recipe", ["fp32", ALL], ids=["fp32", "all families"])
def test_a_decoder_has_every_fusion_of_its_kind(recipe: Any, decoders: dict[str, Given], tmp_path: Path) -> None:
    _, bundle = optimized(decoders["llama"], recipe, tmp_path)
    found = attention_ops(bundle)
    assert (found["MultiHeadAttention"], found["RotaryEmbedding"], found["Cos"]) == (4, 8, 1)
    assert "Softmax" not in found
    skipped = found.get("SkipSimplifiedLayerNormalization", 0)
    assert found["SimplifiedLayerNormalization"] + skipped == 9
    assert bool(skipped) == (recipe is ALL)


@pytest.mark.zoo
@pytest.mark.parametrize("recipe", ["fp32", ALL], ids=["fp32", "all families"])
def test_a_vit_has_every_fusion_of_its_kind(recipe: Any, decoders: dict[str, Given], tmp_path: Path) -> None:
    _, bundle = optimized(decoders["vit"], recipe, tmp_path)
    found = attention_ops(bundle)
    assert found.get("Attention" if recipe is ALL else "MultiHeadAttention") == 4
    assert "Softmax" not in found


@pytest.mark.zoo
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["vit", "llama"])
def test_what_measuring_keeps_is_as_exact(kind: str, decoders: dict[str, Given], tmp_path: Path) -> None:
    manifest, _ = optimized(decoders[kind], "fp32", tmp_path, bench=True)
    decisions = {step.id: [each.what for each in step.decisions] for step in manifest.steps}
    assert "attention" in decisions["fuse-graph"]
    assert decisions["tune-session"]
    assert manifest.timing is not None and manifest.timing.result.high >= 1 - manifest.timing.result.margin
