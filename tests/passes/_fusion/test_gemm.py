from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from optkit.passes._fusion.apply import apply_rules
from optkit.passes._fusion.gemm import gemm_rules
from tests.helpers import normal, onnx_model, ops_of, run_onnx
from tests.passes._fusion.rewritten import assert_same, rewritten

X = {"x": normal(2, 3, 8, seed=1)}


def layer(attributes: str = "", *, inputs: str = "r, w, b", sizes: Any = (2, 3, 8), **held: Any) -> onnx.ModelProto:
    """Square weights, so that nothing but the numbers tells whether they are transposed."""
    weights = {"rows": np.int64([-1, 8]), "back": np.int64(sizes), "w": normal(8, 8, seed=2), "b": normal(8, seed=3)}
    used = {name: array for name, array in (weights | held).items() if name not in "wb" or name in inputs.split(", ")}
    text = f"r = Reshape(x, rows) m = Gemm{attributes}({inputs}) y = Reshape(m, back)"
    return onnx_model(f"g (float[2,3,8] x) => (float[p,q,8] y) {{ {text} }}", used)


@pytest.mark.parametrize("attributes", ["", "<transB = 1>", "<alpha = 1.0, beta = 1.0, transB = 0>"])
@pytest.mark.parametrize("bias", [(8,), (1, 8), (1,), ()])
def test_a_layer_keeps_the_dimensions_of_its_tensor(attributes: str, bias: tuple[int, ...]) -> None:
    proto = layer(attributes, b=normal(*bias, seed=3))
    before, after, fired = rewritten(lambda model: apply_rules(model, gemm_rules()), proto)
    assert (fired.count, ops_of(after)) == (1, {"MatMul": 1, "Add": 1})
    assert_same(after, before, X, 1e-6)


def test_without_bias() -> None:
    proto = layer("<transB = 1>", inputs="r, w")
    before, after, _ = rewritten(lambda model: apply_rules(model, gemm_rules()), proto)
    assert ops_of(after) == {"MatMul": 1}
    assert_same(after, before, X, 1e-6)


@pytest.mark.parametrize(
    "proto",
    [
        layer("<alpha = 2.0>"),
        layer("<beta = 0.5>"),
        layer(sizes=(2, 3, 8), b=normal(6, 8, seed=3)),
        layer(sizes=(3, 2, 8)),
    ],
)
def test_what_is_another_layer_stays(proto: onnx.ModelProto) -> None:
    before, after, fired = rewritten(lambda model: apply_rules(model, gemm_rules()), proto)
    assert (fired.count, ops_of(after)) == (0, ops_of(before))
    assert run_onnx(after, X)["y"].shape == run_onnx(before, X)["y"].shape


def test_transposed_weights_that_others_read_stay() -> None:
    proto = layer("<transB = 1>")
    proto.graph.node.append(onnx.helper.make_node("Relu", ["w"], ["z"]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, [8, 8]))
    before, after, fired = rewritten(lambda model: apply_rules(model, gemm_rules()), proto)
    assert (fired.count, ops_of(after)) == (0, ops_of(before))
