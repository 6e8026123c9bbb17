from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from optkit.passes.quantize_static import QuantizeStatic
from tests.helpers import normal, onnx_model, open_any, ops_of, relative_error, run_onnx
from tests.passes._quant.static_layers import layered_of

W = {"w": normal(4, 3, 1, 1), "v": normal(4, 5)}
DATA: dict[str, Any] = {"x": normal(40, 3, 6, 6)}


@pytest.mark.parametrize("kept", [0, 1])
def test_means_over_pictures_become_pooling(kept: int) -> None:
    shape = "n,4,1,1" if kept else "n,4"
    text = f"""g (float[n,3,6,6] x) => (float[{shape}] y) {{ c = Conv(x, w)
        y = ReduceMean<axes = [2, -1], keepdims = {kept}>(c) }}"""
    model = open_any(onnx_model(text, {"w": W["w"]}, opset=13))
    layered = layered_of(QuantizeStatic(), model, {"calibration": DATA})
    assert ops_of(layered.model)["GlobalAveragePool"] == 1
    found = run_onnx(layered.model, DATA)["y"]
    np.testing.assert_allclose(found, run_onnx(model, DATA)["y"], atol=1e-6)


def test_other_means_stay() -> None:
    text = "g (float[n,3,6,6] x) => (float[n,1,6,6] y) { c = Conv(x, w) y = ReduceMean<axes = [1]>(c) }"
    layered = layered_of(QuantizeStatic(), onnx_model(text, {"w": W["w"]}, opset=13), {"calibration": DATA})
    assert ops_of(layered.model)["ReduceMean"] == 1


def test_gelu_stays_in_one_piece_between_convolutions() -> None:
    text = """g (float[n,3,6,6] x) => (float[n,3,6,6] y) { c = Conv(x, w) d = Div(c, root) e = Erf(d)
        a = Add(e, one) m = Mul(c, a) h = Mul(m, half) y = Conv(h, back) }"""
    numbers = {"root": np.float32(math.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5)}
    model = open_any(onnx_model(text, {"w": W["w"], "back": normal(3, 4, 1, 1, seed=2), **numbers}))
    layered = layered_of(QuantizeStatic(), model, {"calibration": DATA})
    made = layered.build({}).model
    assert ops_of(made)["com.microsoft.Gelu"] == 1 and "Erf" not in ops_of(made)
    assert relative_error(run_onnx(made, DATA)["y"], run_onnx(model, DATA)["y"]) < 0.03


def test_weights_in_constant_nodes_are_weights() -> None:
    text = """g (float[n,2] x) => (float[n,2] y) { w = Constant<value = float[2,2] {1, 2, 3, 4}>() y = MatMul(x, w) }"""
    layered = layered_of(QuantizeStatic(), onnx_model(text), {"calibration": {"x": normal(40, 2)}})
    assert layered.layers == {"MatMul_y": "y"}
