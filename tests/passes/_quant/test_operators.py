from __future__ import annotations

import numpy as np
import pytest

from optkit.data.dataset import Arrays
from optkit.passes._base import Pass
from optkit.passes.quantize_dynamic import QuantizeDynamic
from optkit.passes.quantize_static import QuantizeStatic
from optkit.passes.quantize_weights import QuantizeWeights
from optkit.passes.smooth_quant import SmoothQuant
from tests.helpers import normal, onnx_model, open_any, relative_error, run_onnx, run_pass

X: Arrays = {"x": normal(16, 64, seed=5)}
PASSES = [QuantizeStatic(), QuantizeDynamic(), QuantizeWeights(), SmoothQuant(mul=True)]
HOLES = np.where(np.eye(64) > 0, np.inf, normal(64, 64)).astype(np.float32)


@pytest.mark.parametrize("pass_", PASSES, ids=lambda each: each.name())
@pytest.mark.parametrize("weights", [HOLES, np.where(np.inf == HOLES, np.nan, HOLES)], ids=["infinite", "nan"])
def test_weights_that_are_not_finite_stay_with_the_reason(pass_: Pass, weights: np.ndarray) -> None:
    model = onnx_model("g (float[n,64] x) => (float[n,64] y) { [odd] y = MatMul(x, w) }", {"w": weights})
    outcome = run_pass(pass_, model, data={"calibration": X})
    assert outcome.changed == 0
    assert list(outcome.skipped) == [("odd", "some of its weights are infinite or NaN")]


@pytest.mark.parametrize("pass_", [PASSES[0], PASSES[1], PASSES[3]], ids=lambda each: each.name())
def test_empty_weights_stay_with_the_reason(pass_: Pass) -> None:
    model = onnx_model("g (float[n,64] x) => (float[n,0] y) { [none] y = MatMul(x, w) }", {"w": normal(64, 0)})
    outcome = run_pass(pass_, model, data={"calibration": X})
    assert (outcome.changed, list(outcome.skipped)) == (0, [("none", "its weights are empty")])


def test_a_bias_for_each_row_is_no_bias_for_each_channel() -> None:
    text = "g (float[16,64] x) => (float[16,16] y) { [rows] y = Gemm(x, w, b) }"
    model = open_any(onnx_model(text, {"w": normal(64, 16), "b": normal(16, 1, scale=100)}))
    static = run_pass(QuantizeStatic(), model, data={"calibration": X})
    assert list(static.skipped) == [("rows", "its bias differs from row to row, or is scaled")]
    dynamic = run_pass(QuantizeDynamic(), model)
    assert dynamic.changed == 1
    assert relative_error(run_onnx(dynamic.model, X)["y"], run_onnx(model, X)["y"]) < 0.01


@pytest.mark.parametrize("alpha", [-2.0, 0.5])
@pytest.mark.parametrize("size", [1, 1e9])
def test_products_may_be_scaled_beside_a_bias_of_any_size(alpha: float, size: float) -> None:
    text = f"g (float[n,64] x) => (float[n,8] y) {{ y = Gemm<alpha = {alpha}>(x, w, b) }}"
    model = open_any(onnx_model(text, {"w": normal(64, 8), "b": normal(8, scale=size)}))
    outcome = run_pass(QuantizeStatic(), model, data={"calibration": X})
    assert relative_error(run_onnx(outcome.model, X)["y"], run_onnx(model, X)["y"]) < 0.02


def test_products_that_are_dropped_are_not_quantized() -> None:
    text = "g (float[n,64] x) => (float[n,8] y) { [none] y = Gemm<alpha = 0.0>(x, w, b) }"
    outcome = run_pass(
        QuantizeStatic(), onnx_model(text, {"w": normal(64, 8), "b": normal(8)}), data={"calibration": X}
    )
    assert list(outcome.skipped) == [("none", "its products are multiplied by 0 (alpha)")]


@pytest.mark.parametrize("shape", [(1, 16), (16,), (1, 1), ()])
def test_other_biases_are_quantized(shape: tuple[int, ...]) -> None:
    text = "g (float[16,64] x) => (float[16,16] y) { y = Gemm(x, w, b) }"
    bias = np.asarray(normal(*shape, scale=100), np.float32).reshape(shape)
    model = open_any(onnx_model(text, {"w": normal(64, 16), "b": bias}))
    outcome = run_pass(QuantizeStatic(), model, data={"calibration": X})
    assert outcome.changed == 1
    assert relative_error(run_onnx(outcome.model, X)["y"], run_onnx(model, X)["y"]) < 0.02


def test_a_scale_of_no_bias_does_not_scale_the_correction() -> None:
    data = {"x": np.abs(X["x"])}
    means: Arrays = {}
    for beta in (0.0, 1.0):
        text = f"g (float[n,64] x) => (float[n,8] y) {{ y = Gemm<beta = {beta}>(x, w) }}"
        outcome = run_pass(QuantizeStatic(), onnx_model(text, {"w": normal(64, 8)}), data={"calibration": data})
        means[str(beta)] = run_onnx(outcome.model, data)["y"].mean(axis=0)
    np.testing.assert_array_equal(means["0.0"], means["1.0"])
