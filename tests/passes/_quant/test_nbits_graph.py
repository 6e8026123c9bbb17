from __future__ import annotations

import numpy as np
import pytest

from optkit.data.dataset import Arrays
from optkit.passes.quantize_weights import QuantizeWeights
from tests.helpers import normal, onnx_model, open_any, ops_of, relative_error, run_onnx, run_pass

BRANCHES = """g (float[n,32] x, bool c) => (float[n,32] y) {
    h = MatMul(x, w)
    y = If (c) <then_branch = t () => (float[n,32] t1) { [a] tm = MatMul(h, w) t1 = Relu(tm) },
        else_branch = e () => (float[n,32] e1) { [a] em = MatMul(h, w) e1 = Gemm(em, w, b) }>
}"""


@pytest.mark.parametrize("format_", ["qdq", "matmul-nbits"])
@pytest.mark.parametrize("chosen", [True, False])
def test_branches_that_share_weights_run(format_: str, chosen: bool) -> None:
    model = open_any(onnx_model(BRANCHES, {"w": normal(32, 32, scale=0.2), "b": normal(32)}))
    outcome = run_pass(QuantizeWeights(bits=8, block_size=16, format=format_), model)
    feeds: Arrays = {"x": normal(4, 32, seed=1), "c": np.array(chosen)}
    assert [name for name, _ in outcome.changes] == ["MatMul -> h", "a", "a #2", "Gemm -> e1"]
    assert relative_error(run_onnx(outcome.model, feeds)["y"], run_onnx(model, feeds)["y"]) < 0.02


@pytest.mark.parametrize("symmetric", [True, False])
def test_embeddings_of_odd_width_get_8_bits(symmetric: bool) -> None:
    model = open_any(onnx_model("g (int64[n] ids) => (float[n,33] y) { y = Gather(w, ids) }", {"w": normal(90, 33)}))
    outcome = run_pass(QuantizeWeights(embedding_bits=4, block_size=16, symmetric=symmetric), model)
    assert dict(outcome.changes) == {"Gather -> y": "Gather -> GatherBlockQuantized, 8 bits, weights [90, 33]"}
    ids: Arrays = {"ids": np.arange(-90, 90)}
    assert relative_error(run_onnx(outcome.model, ids)["y"], run_onnx(model, ids)["y"]) < 0.01


def test_a_scaled_bias_keeps_its_type() -> None:
    text = """g (float[n,32] x) => (float[n,32] y, float16[n,32] z)
        { y = MatMul(x, w) h = Cast<to = 10>(x) z = Gemm<beta = 2.0>(h, v, b) }"""
    weights = {"w": normal(32, 32), "v": normal(32, 32).astype(np.float16), "b": normal(32).astype(np.float16)}
    model = open_any(onnx_model(text, weights))
    outcome = run_pass(QuantizeWeights(bits=8), model)
    x: Arrays = {"x": normal(4, 32, seed=1)}
    assert ops_of(outcome.model)["Gemm"] == 1
    assert relative_error(run_onnx(outcome.model, x)["z"], run_onnx(model, x)["z"]) < 1e-3
