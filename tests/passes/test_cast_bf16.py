"""onnxruntime computes no bfloat16 on CPUs: numbers come from onnx's reference evaluator, which rounds every result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import optkit
from optkit.data.dataset import Arrays
from optkit.errors import RecipeError
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.passes.cast_bf16 import CastBf16, cpu_multiplies
from tests.helpers import normal, onnx_model, open_any, relative_error, run_onnx, run_pass

SAMPLES = Path(__file__).parents[2] / "sample_models"
MLP = """mlp (float[batch,32] x) => (float[batch,16] y) {
    m = MatMul(x, w1)
    a = Add(m, b1)
    r = Relu(a)
    [soft] s = Softmax(r)
    y = Gemm<transB = 1>(s, w2, b2)
}"""
WEIGHTS = {
    "w1": normal(32, 64, seed=1),
    "b1": normal(64, seed=2),
    "w2": normal(16, 64, seed=3),
    "b2": normal(16, seed=4),
}
X = {"x": normal(8, 32, seed=5)}
GPU = Target("cuda")


def emulated(model: Model, inputs: Arrays) -> Arrays:
    proto = onnx.load(model.path)
    onnx.checker.check_model(proto, full_check=True)
    found = ReferenceEvaluator(proto).run(None, inputs)
    return dict(zip([value.name for value in proto.graph.output], found, strict=True))


def test_the_outputs_move_by_less_than_two_percent_and_keep_their_type() -> None:
    model = open_any(onnx_model(MLP, WEIGHTS))
    outcome = run_pass(CastBf16(), model, data={"search": X}, target=GPU)
    assert dict(outcome.changes) == dict.fromkeys(("MatMul", "Add", "Relu", "Gemm"), "1 in bfloat16")
    assert [label for label, _ in outcome.skipped] == ["soft"]
    assert outcome.model.signature == model.signature
    found = emulated(outcome.model, X)["y"]
    assert found.dtype == np.float32
    assert 1e-3 < relative_error(found, run_onnx(model, X)["y"]) < 2e-2


def test_weights_are_rounded_to_the_nearest() -> None:
    outcome = run_pass(CastBf16(), onnx_model(MLP, WEIGHTS), data={"search": X}, target=GPU)
    held = {each.name: each for each in onnx.load(outcome.model.path).graph.initializer}
    rounded = onnx.numpy_helper.to_array(held["w1_bfloat16"]).astype(np.float32)
    np.testing.assert_allclose(rounded, WEIGHTS["w1"], rtol=2**-8)
    bits = WEIGHTS["w1"].view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    np.testing.assert_array_equal(rounded, nearest.view(np.float32))


def test_values_beyond_float16_are_no_reason_to_stay() -> None:
    weights = {**WEIGHTS, "w1": WEIGHTS["w1"] * np.float32(1e6)}
    outcome = run_pass(CastBf16(), onnx_model(MLP, weights), data={"search": X}, target=GPU)
    assert dict(outcome.changes)["MatMul"] == "1 in bfloat16"


CONV = "g (float[n,1,4,4] x) => (float[n,2,4,4] y) { y = Conv<pads = [1, 1, 1, 1]>(x, k) }"


@pytest.mark.parametrize(("opset", "changed"), [(13, 0), (22, 1)])
def test_operators_without_bfloat16_at_the_opset_stay(opset: int, changed: int) -> None:
    model = onnx_model(CONV, {"k": normal(2, 1, 3, 3)}, opset=opset)
    outcome = run_pass(CastBf16(), model, data={"search": {"x": normal(2, 1, 4, 4)}}, target=GPU)
    assert outcome.changed == changed
    assert [reason for _, reason in outcome.skipped] == ["Conv takes no bfloat16 at this opset"] * (1 - changed)


def test_an_older_opset_is_raised() -> None:
    outcome = run_pass(CastBf16(), onnx_model(MLP, WEIGHTS, opset=11), data={"search": X}, target=GPU)
    assert {each.domain: each.version for each in onnx.load(outcome.model.path).opset_import} == {"": 13}
    assert relative_error(emulated(outcome.model, X)["y"], run_onnx(open_any(onnx_model(MLP, WEIGHTS)), X)["y"]) < 2e-2


def test_what_the_installed_onnxruntime_can_is_asked_of_it() -> None:
    assert cpu_multiplies("float16")
    refused = CastBf16().applies_to(Target("cpu"))
    assert bool(refused) != cpu_multiplies("bfloat16")
    assert CastBf16().applies_to(GPU) == ""


@pytest.mark.skipif(cpu_multiplies("bfloat16"), reason="this onnxruntime computes bfloat16 on CPUs")
def test_optimize_refuses_it_for_the_cpu_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the installed onnxruntime has no bfloat16 kernels for CPUs"):
        optkit.optimize(SAMPLES / "digits_mlp.onnx", CastBf16(), tmp_path / "out", bench=False, threads=1)
    assert not (tmp_path / "out").exists()
