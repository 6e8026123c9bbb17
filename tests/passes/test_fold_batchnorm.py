from __future__ import annotations

import numpy as np
import pytest

from optkit.passes.fold_batchnorm import FoldBatchnorm
from tests.helpers import normal, onnx_model, open_any, ops_of, run_onnx, run_pass

NORM = {
    "scale": np.float32([0.5, 1, 1.5, 2]),
    "shift": normal(4, seed=2),
    "mean": normal(4, seed=3),
    "var": np.float32([1, 2, 3, 4]),
}
IMAGE = {"x": normal(2, 3, 8, 8, seed=5)}
CONV = """g (float[n,3,8,8] x) => (float[n,4,h,w2] y) {
    c = Conv<pads = [1,1,1,1]>(x, w{bias}) y = BatchNormalization<epsilon = 0.001>(c, scale, shift, mean, var)
}"""


@pytest.mark.parametrize("bias", ["", ", b"])
def test_into_a_convolution(bias: str) -> None:
    weights = NORM | {"w": normal(4, 3, 3, 3)} | ({"b": normal(4, seed=1)} if bias else {})
    model = open_any(onnx_model(CONV.replace("{bias}", bias), weights))
    outcome = run_pass(FoldBatchnorm(), model)
    assert (outcome.changed, outcome.changes) == (1, [("BatchNormalization", "1 -> 0")])
    assert ops_of(outcome.model) == {"Conv": 1}
    np.testing.assert_allclose(
        run_onnx(outcome.model, IMAGE)["y"], run_onnx(model, IMAGE, plain=True)["y"], rtol=0, atol=1e-5
    )


def test_into_a_transposed_convolution_with_groups() -> None:
    text = """g (float[n,4,5,5] x) => (float[n,4,h,w2] y) {
        c = ConvTranspose<group = 2>(x, w) y = BatchNormalization(c, scale, shift, mean, var)
    }"""
    model = open_any(onnx_model(text, NORM | {"w": normal(4, 2, 3, 3)}))
    outcome = run_pass(FoldBatchnorm(), model)
    assert ops_of(outcome.model) == {"ConvTranspose": 1}
    x = {"x": normal(2, 4, 5, 5)}
    np.testing.assert_allclose(run_onnx(outcome.model, x)["y"], run_onnx(model, x, plain=True)["y"], rtol=0, atol=1e-5)


def test_into_a_matrix_product() -> None:
    text = "g (float[n,6] x) => (float[n,4] y) { c = Gemm(x, w, b) y = BatchNormalization(c, scale, shift, mean, var) }"
    model = open_any(onnx_model(text, NORM | {"w": normal(6, 4), "b": normal(4, seed=1)}))
    outcome = run_pass(FoldBatchnorm(), model)
    assert ops_of(outcome.model) == {"Gemm": 1}
    x = {"x": normal(3, 6)}
    np.testing.assert_allclose(run_onnx(outcome.model, x)["y"], run_onnx(model, x, plain=True)["y"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("c = Relu(x)", "it follows Relu, which has no weights to fold into"),
        ("c = Conv<pads = [1,1,1,1]>(x, w) z = Neg(c)", "the output of Conv is used elsewhere too"),
        (
            "c = Conv<pads = [1,1,1,1]>(x, w) z = Conv<pads = [1,1,1,1]>(x, w)",
            "its parameters or the weights before it are computed, or shared with another node",
        ),
    ],
)
def test_near_misses_stay_and_say_why(body: str, reason: str) -> None:
    second = ", float[n,4,h,w2] z" if "z =" in body else ""
    text = f"g (float[n,4,8,8] x) => (float[n,4,h,w2] y{second}) {{ {body} "
    text += "y = BatchNormalization(c, scale, shift, mean, var) }"
    weights = NORM | ({"w": normal(4, 4, 3, 3)} if "w" in body else {})
    outcome = run_pass(FoldBatchnorm(), onnx_model(text, weights))
    assert outcome.changed == 0
    assert [why for _, why in outcome.skipped] == [reason]


def test_nothing_to_fold() -> None:
    outcome = run_pass(FoldBatchnorm(), onnx_model("g (float[n,4] x) => (float[n,4] y) { y = Relu(x) }"))
    assert (outcome.changed, outcome.notes) == (0, ["the graph has no batch normalization"])


def test_a_bias_whose_name_the_new_one_takes_stays() -> None:
    """The rule calls the bias that it makes ``w_bias``."""
    text = """g (float[n,2,4,4] x) => (float[n,3,2,2] y) {
        c = Conv(x, w) b = BatchNormalization(c, gamma, beta, mean, variance) y = Add(b, w_bias) }"""
    values = {"w": normal(3, 2, 3, 3), "gamma": normal(3, seed=1), "beta": normal(3, seed=2), "mean": normal(3, seed=3)}
    values |= {"variance": np.abs(normal(3, seed=4)) + 1, "w_bias": normal(3, 1, 1, seed=5)}
    model = open_any(onnx_model(text, values))
    outcome = run_pass(FoldBatchnorm(), model)
    assert outcome.changed == 1
    inputs = {"x": normal(2, 2, 4, 4, seed=6)}
    np.testing.assert_allclose(run_onnx(outcome.model, inputs)["y"], run_onnx(model, inputs)["y"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("outputs", ["y", "y, running_mean, running_variance"])
@pytest.mark.parametrize("layer", ["Conv", "ConvTranspose", "Gemm"])
def test_in_training_it_stays(outputs: str, layer: str) -> None:
    sizes, kernel = ("", (4, 4)) if layer == "Gemm" else (",8,8", (4, 4, 3, 3))
    text = f"""g (float[n,4{sizes}] x) => (float[n,4{sizes and ",h,v"}] y) {{ c = {layer}(x, w)
        {outputs} = BatchNormalization<training_mode = 1>(c, scale, shift, mean, var) }}"""
    outcome = run_pass(FoldBatchnorm(), onnx_model(text, NORM | {"w": normal(*kernel)}))
    assert (outcome.changed, [why for _, why in outcome.skipped]) == (0, ["it normalizes by the batch"])
