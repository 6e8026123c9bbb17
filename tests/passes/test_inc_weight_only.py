from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from optkit.errors import PackageError, PassError
from optkit.evaluate.limits import Limits
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.passes._base import Outcome
from optkit.passes._quant import inc
from optkit.passes._quant.inc_layers import Settings, Taken, take
from optkit.passes._quant.nbits import unpack
from optkit.passes.export_onnx import ExportOnnx
from optkit.passes.inc_weight_only import ELSEWHERE, IncWeightOnly
from optkit.pipeline.cache import Cache
from optkit.pipeline.job import Job
from optkit.pipeline.steps import export
from tests.helpers import (
    as_dataset,
    fresh_dir,
    normal,
    onnx_model,
    open_any,
    ops_of,
    relative_error,
    run_onnx,
    run_pass,
)

real = pytest.mark.skipif(
    find_spec("neural_compressor") is None, reason="neural-compressor is not installed: pip install 'optkit[inc]'"
)
TOKENS = np.random.default_rng(0).integers(0, 64, (32, 12))
CALIBRATION = {"input_ids": TOKENS, "attention_mask": np.ones_like(TOKENS)}
FRESH = np.random.default_rng(1).integers(0, 64, (8, 12))
INPUTS = {"input_ids": FRESH, "attention_mask": np.ones_like(FRESH)}
LINEAR = 14
"""Linear layers of the llama without its head."""


@pytest.fixture(scope="module")
def llama() -> Model:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    folder = fresh_dir() / "llama"
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return Model.open(folder)


@pytest.fixture(scope="module")
def exported(llama: Model) -> Model:
    job = Job(
        original=llama,
        target=Target(threads=1),
        splits={"evaluation": as_dataset("evaluation", CALIBRATION)},
        limits=Limits(),
        exact=True,
        cache=Cache(fresh_dir()),
        exporter=ExportOnnx(),
    )
    return export(job, llama)


def quantized(exported: Model, llama: Model, **options: Any) -> Outcome:
    return run_pass(IncWeightOnly(**options), exported, data={"calibration": CALIBRATION}, original=llama)


def reference(llama: Model, method: str, *, symmetric: bool) -> tuple[Any, list[bytes]]:
    """neural-compressor by itself: the module with the weights it computes with, in float32; and all its integers."""
    import torch
    from neural_compressor.torch.algorithms.weight_only.modules import INCWeightOnlyLinear
    from neural_compressor.torch.quantization import GPTQConfig, RTNConfig, convert, prepare

    from optkit.model.huggingface import load_pretrained

    module = load_pretrained(llama.path)
    module.set_attn_implementation("eager")
    common = {"group_size": 32, "use_sym": symmetric, "use_layer_wise": False, "model_path": str(llama.path)}
    made = prepare(module, RTNConfig(**common) if method == "rtn" else GPTQConfig(**common, block_size=32))
    with torch.no_grad():
        for start in range(0, len(TOKENS), 8):
            batch = {name: torch.from_numpy(array[start : start + 8]) for name, array in CALIBRATION.items()}
            made(**batch)
    made = convert(made)
    codes = []
    for name, part in list(made.named_modules()):
        if isinstance(part, INCWeightOnlyLinear):
            found = part.unpack()
            codes.append(found["int_weight"].numpy().astype(np.uint8).tobytes())
            places = torch.arange(part.in_features) // 32
            weights = (found["int_weight"] - found["zp"][:, places]) * found["scales"].float()[:, places]
            plain = torch.nn.Linear(part.in_features, part.out_features, bias=False)
            plain.weight.data = weights
            made.set_submodule(name, plain)
    return made, sorted(codes)


def floats(taken: Taken) -> Any:
    """float32[N, K]: the weights that a layer computes with."""
    weights = taken.blocks.floats()
    if taken.rest is not None:
        rest = np.repeat(taken.rest * taken.blocks.scales, taken.blocks.grid.block, axis=1)
        weights = weights - rest[:, : taken.blocks.width]
    return weights if taken.factors is None else weights * taken.factors


def written_codes(path: Path) -> list[bytes]:
    graph = onnx.load(path).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            sizes = {attribute.name: attribute.i for attribute in node.attribute}
            codes = unpack(arrays[node.input[1]], 4).reshape(sizes["N"], -1)[:, : sizes["K"]]
            found.append(np.ascontiguousarray(codes).tobytes())
    return sorted(found)


@real
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_the_graph_computes_with_its_integers(llama: Model, exported: Model, method: str, symmetric: bool) -> None:
    import torch

    outcome = quantized(exported, llama, method=method, symmetric=symmetric, accuracy_level=0)
    module, codes = reference(llama, method, symmetric=symmetric)
    with torch.no_grad():
        expected = module(**{name: torch.from_numpy(array) for name, array in INPUTS.items()}).logits.numpy()
    assert outcome.changed == LINEAR and ops_of(outcome.model)["com.microsoft.MatMulNBits"] == LINEAR
    assert written_codes(outcome.model.path) == codes
    np.testing.assert_allclose(run_onnx(outcome.model, INPUTS)["logits"], expected, rtol=0, atol=1e-4)


@real
def test_gptq_awq_and_hqq_beat_rounding(llama: Model, exported: Model) -> None:
    expected = run_onnx(exported, INPUTS)["logits"]
    error = {
        method: relative_error(
            run_onnx(quantized(exported, llama, method=method, accuracy_level=0).model, INPUTS)["logits"], expected
        )
        for method in ("rtn", "gptq", "awq", "hqq")
    }
    assert error["gptq"] < 0.8 * error["rtn"], error
    assert error["awq"] < error["rtn"] and error["hqq"] < error["rtn"], error


@real
@pytest.mark.parametrize("method", ["awq", "hqq"])
def test_factors_and_rests_are_written_too(
    llama: Model, exported: Model, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from optkit.passes import inc_weight_only

    seen = {}

    def spied(*args: Any, **options: Any) -> Any:
        seen.update(inc.quantize(*args, **options))
        return seen

    monkeypatch.setattr(inc_weight_only, "quantize", spied)
    outcome = quantized(exported, llama, method=method, accuracy_level=0)
    from optkit.model.huggingface import load_pretrained

    module = load_pretrained(llama.path)
    for name, taken in seen.items():
        module.get_submodule(name).weight.data = torch.from_numpy(floats(taken))
    with torch.no_grad():
        expected = module(**{name: torch.from_numpy(array) for name, array in INPUTS.items()}).logits.numpy()
    assert len(seen) == LINEAR == ops_of(outcome.model)["com.microsoft.MatMulNBits"]
    np.testing.assert_allclose(run_onnx(outcome.model, INPUTS)["logits"], expected, rtol=0, atol=1e-4)


@real
def test_what_is_excluded_is_left_alone(llama: Model, exported: Model) -> None:
    label = quantized(exported, llama, method="rtn").changes[0][0]
    outcome = quantized(exported, llama, method="gptq", exclude=(label,))
    assert outcome.changed == LINEAR - 1
    assert (label, "excluded") in outcome.skipped
    assert any(reason == "neural-compressor's gptq left it in float" for _, reason in outcome.skipped)  # the head
    assert outcome.notes == ["only 384 positions of calibration text for a layer of 96 inputs: 960 are usual"]


@real
def test_it_leaves_no_traces(
    llama: Model, exported: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = quantized(exported, llama, method="gptq")
    assert list(tmp_path.iterdir()) == []
    assert [file.name for file in outcome.model.path.parent.parent.iterdir()] == [outcome.model.path.parent.name]
    assert capfd.readouterr() == ("", "")


@real
def test_layers_that_gpt2_keeps_the_other_way_round(tmp_path: Path) -> None:
    import torch
    import transformers
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=16, use_cache=False)
    module = transformers.GPT2LMHeadModel(config).eval()
    before = {name: part.weight.detach().T.numpy() for name, part in module.named_modules() if isinstance(part, Conv1D)}
    batch = {"input_ids": torch.from_numpy(TOKENS[:4])}
    found = inc.quantize(
        module,
        list(before),
        Settings("gptq", 8, 32, False),
        lambda: iter([batch]),
        source=tmp_path,
        folder=tmp_path,
    )
    assert found.keys() == before.keys() and len(before) == 4
    for name, weights in before.items():
        assert relative_error(floats(found[name]), weights) < 0.02


@real
def test_an_architecture_it_does_not_know(tmp_path: Path) -> None:
    import torch

    with pytest.raises(PassError) as caught:
        inc.quantize(
            torch.nn.Sequential(torch.nn.Linear(32, 32)),
            ["0"],
            Settings("awq", 4, 32, True),
            None,
            source=tmp_path,
            folder=tmp_path,
        )
    assert "awq finds no linear layer" in caught.value.message and "quantize-weights" in caught.value.fix


# --- without neural-compressor ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.6.1", "3.7", "4.0"])
def test_other_versions_are_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inc.metadata, "version", lambda _: version)
    with pytest.raises(PackageError) as caught:
        IncWeightOnly().applies_to(Target())
    assert version in caught.value.message
    assert "since 3.8 it has no ONNX code, no pruning and no distillation" in caught.value.expected
    assert "optkit[inc]" in caught.value.fix


def test_known_versions_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("3.10", "3.11.2"):
        monkeypatch.setattr(inc.metadata, "version", lambda _, version=version: version)
        assert IncWeightOnly().applies_to(Target()) == ""


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise inc.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(inc.metadata, "version", missing)
    with pytest.raises(PackageError) as caught:
        inc.check_version()
    assert caught.value.message == "neural-compressor is not installed." and "optkit[inc]" in caught.value.fix


def test_models_given_as_onnx_are_refused() -> None:
    graph = onnx_model("g (float[N,32] x) => (float[N,32] y) {y = MatMul(x, w)}", {"w": normal(32, 32)})
    path = fresh_dir() / "model.onnx"
    onnx.save(graph, path)
    model = Model.open(path)
    assert "was given as ONNX; use quantize-weights" in IncWeightOnly().applies(model, Target())
    assert IncWeightOnly().applies(model.derive(path, "onnx", "export-onnx"), Target()) == ""
    with pytest.raises(PassError) as caught:
        run_pass(IncWeightOnly(method="rtn"), model)
    assert "quantizes Hugging Face models, and model.onnx is none (onnx)" in caught.value.message


def hand_made(shape: tuple[int, int], block: int, *, fraction: float, factors: bool, seed: int) -> Taken:
    rng = np.random.default_rng(seed)
    blocks = -(-shape[1] // block)
    return take(
        rng.integers(0, 16, shape),
        rng.uniform(0.01, 0.02, (shape[0], blocks)).astype(np.float32),
        (rng.integers(0, 16, (shape[0], blocks)) + fraction).astype(np.float32),
        Settings("hqq", 4, block, False),
        rng.uniform(0.5, 2, shape[1]).astype(np.float32) if factors else None,
    )


def test_taken_weights_are_those_given() -> None:
    codes = np.array([[0, 3, 15, 8, 1]])
    made = take(
        codes, np.array([[0.5, 2]], np.float32), np.array([[8.25, 3]], np.float32), Settings("hqq", 4, 4, False), None
    )
    np.testing.assert_array_equal(made.blocks.codes(), codes)
    np.testing.assert_array_equal(made.blocks.zeros, [[8, 3]])
    np.testing.assert_array_equal(made.rest, [[0.25, 0]])
    np.testing.assert_allclose(floats(made), [[-4.125, -2.625, 3.375, -0.125, -4]])


@pytest.mark.parametrize("fraction", [0.0, 0.375])
@pytest.mark.parametrize("factors", [False, True])
@pytest.mark.parametrize("width", [64, 72])
def test_bridge_writes_integers_zeros_rests_and_factors(
    fraction: float, factors: bool, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module is made up: nothing here needs neural-compressor."""
    weights = {"a": normal(48, width, seed=1), "b": normal(40, 48, seed=2)}
    taken = {
        name: hand_made(array.shape, 32, fraction=fraction, factors=factors, seed=3) for name, array in weights.items()
    }
    model = onnx_model(
        f"g (float[N,{width}] x) => (float[N,40] y) {{h = MatMul(x, A) r = Relu(h) y = Gemm<transB=1>(r, B, c)}}",
        {"A": weights["a"].T.copy(), "B": weights["b"], "c": normal(40, seed=4)},
    )
    outcome = bridged(model, weights, taken, monkeypatch)
    x = normal(5, width, seed=5)
    hidden = np.maximum(x @ floats(taken["a"]).T, 0)
    assert outcome.changed == 2
    assert ops_of(outcome.model)["com.microsoft.MatMulNBits"] == 2
    np.testing.assert_allclose(
        run_onnx(outcome.model, {"x": x})["y"], hidden @ floats(taken["b"]).T + normal(40, seed=4), rtol=0, atol=1e-3
    )


def bridged(
    model: onnx.ModelProto, weights: dict[str, Any], taken: dict[str, Any], patch: pytest.MonkeyPatch
) -> Outcome:
    from optkit.passes import inc_weight_only

    patch.setattr(inc_weight_only, "_require_folder", lambda original: None)
    patch.setattr(inc_weight_only, "linear_layers", lambda module: weights)
    patch.setattr(inc_weight_only, "quantize", lambda *args, **options: taken)
    patch.setattr("optkit.pipeline.context.StepContext.load_torch", lambda self, model: None)
    return run_pass(IncWeightOnly(method="hqq", accuracy_level=0), model)


def test_layers_take_the_precision_they_are_told() -> None:
    from optkit.passes._ir import load_ir
    from optkit.passes._quant.inc_graph import Bridge
    from optkit.passes._quant.nbits import Grid
    from optkit.passes._quant.sites import find_sites

    weights = normal(64, 48)
    model = open_any(onnx_model("g (float[N,64] x) => (float[N,48] y) {y = MatMul(x, w)}", {"w": weights}))
    graph = load_ir(model.path)
    (site,), _, _ = find_sites(graph, ("MatMul",), (), Grid(4, 32, False))
    taken = hand_made((48, 64), 32, fraction=0, factors=True, seed=1)
    context: Any = SimpleNamespace(workdir=fresh_dir())
    build = Bridge(model, graph, {site.index: (site, taken)}, 0, "inc-weight-only", context)
    x = normal(5, 64, seed=2)
    made = {level: build({site.label: level}) for level in ("int4", "int8", "float32")}
    results = {level: run_onnx(built.model, {"x": x})["y"] for level, built in made.items()}
    np.testing.assert_allclose(results["int4"], x @ floats(taken).T, rtol=0, atol=1e-4)
    assert 1e-4 < relative_error(results["int8"], x @ weights) < 0.01
    np.testing.assert_allclose(results["float32"], x @ weights, rtol=0, atol=1e-4)
    assert [len(built.changes) for built in made.values()] == [1, 1, 0]
    assert len({built.model.path for built in made.values()}) == 3


def test_weights_of_another_model_have_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx_model("g (float[N,64] x) => (float[N,48] y) {y = MatMul(x, w)}", {"w": normal(64, 48)})
    outcome = bridged(model, {"a": normal(48, 64, seed=7)}, {}, monkeypatch)
    assert outcome.changed == 0
    assert [reason for _, reason in outcome.skipped] == [ELSEWHERE]
    assert "right behind the export" in outcome.notes[-1]


def test_what_the_library_leaves_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx_model("g (float[N,64] x) => (float[N,48] y) {y = MatMul(x, w)}", {"w": normal(64, 48)})
    outcome = bridged(model, {"a": normal(64, 48).T}, {}, monkeypatch)
    assert outcome.changed == 0
    assert [reason for _, reason in outcome.skipped] == ["neural-compressor's hqq left it in float"]
