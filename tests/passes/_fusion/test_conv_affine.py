from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from optkit.passes._fusion.conv_affine import fuse_conv_affine
from optkit.passes._fusion.family import Fired
from tests.helpers import normal, onnx_model, ops_of, run_onnx
from tests.passes._fusion.rewritten import assert_same, rewritten

X = {"x": normal(2, 4, 6, 6, seed=9)}
PARAMS: dict[str, Any] = {
    "w": normal(4, 4, 3, 3),
    "wg": normal(4, 2, 3, 3),
    "b": normal(4, seed=1),
    "s": np.abs(normal(1, 4, 1, 1, seed=2)) + np.float32(0.5),
    "t": np.abs(normal(4, 1, 1, seed=3)) + np.float32(0.5),
    "two": np.float32(2),
    "plane": normal(1, 4, 6, 6, seed=4),
    "scale": np.float32([0.5, 1, 1.5, 2]),
    "mean": normal(4, seed=5),
    "var": np.float32([1, 2, 3, 4]),
    "pads": np.int64([0, 0, 1, 1, 0, 0, 1, 1]),
    "zero": np.float32(0),
    "six": np.float32(6),
    "one": np.float32(1),
    "seven": np.float32(7),
    "ten": np.float32(10),
    "minus": np.float32(-5),
}
PADDED = "Conv<pads = [1,1,1,1]>"


def model(body: str, *, outputs: str = "float[n,4,h,v] y", dims: str = "n,4,6,6", opset: int = 20) -> onnx.ModelProto:
    """A graph of x with those of ``PARAMS`` that it reads."""
    graph = onnx.parser.parse_graph(f"g (float[{dims}] x) => ({outputs}) {{ {body} }}")
    nodes = [*graph.node, *(each for node in graph.node for attr in node.attribute for each in attr.g.node)]
    used = {name for node in nodes for name in node.input}
    held = {name: array for name, array in PARAMS.items() if name in used}
    return onnx_model(f"g (float[{dims}] x) => ({outputs}) {{ {body} }}", held, opset=opset)


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (f"c = {PADDED}(x, w) m = Mul(c, s) y = Add(t, m)", 2),
        (f"c = {PADDED}(x, w, b) d = Div(c, s) y = Sub(d, two)", 2),
        ("c = Conv<group = 2>(x, wg, b) m = Mul(two, c) y = Add(m, s)", 2),
        (f"m = Mul(x, s) d = Div(m, t) y = {PADDED}(d, w, b)", 2),
        ('m = Mul(s, x) y = Conv<group = 2, auto_pad = "SAME_UPPER">(m, wg)', 1),
        ("m = Mul(x, s) a = Add(m, t) y = Conv<group = 2>(a, wg, b)", 2),
        ("a = Sub(x, t) c = Conv(a, w) m = Mul(c, s) y = BatchNormalization(m, scale, b, mean, var)", 3),
        ("p = Pad(x, pads) c = Conv(p, w) m = Mul(c, s) y = BatchNormalization(m, scale, b, mean, var)", 3),
        (f"p = Pad(x, pads, zero) y = {PADDED}(p, w)", 1),
    ],
)
def test_steps_around_a_convolution_go_into_its_weights(body: str, count: int) -> None:
    before, after, fired = rewritten(fuse_conv_affine, model(body))
    assert (fired.count, fired.refused) == (count, ())
    assert ops_of(after) == {"Conv": 1}
    assert_same(after, before, X, 3e-5)


def test_normalization_behind_a_matrix_product() -> None:
    text = "g (float[n,3] x) => (float[n,4] y) { c = Gemm(x, v) y = BatchNormalization(c, scale, b, mean, var) }"
    held = {name: PARAMS[name] for name in ("scale", "b", "mean", "var")} | {"v": normal(3, 4, seed=6)}
    before, after, fired = rewritten(fuse_conv_affine, onnx_model(text, held))
    assert (fired.count, ops_of(after)) == (1, {"Gemm": 1})
    assert_same(after, before, {"x": normal(2, 3)}, 1e-5)


def test_half_precision_stays_half() -> None:
    text = f"g (float16[n,4,6,6] x) => (float16[n,4,6,6] y) {{ c = {PADDED}(x, w) y = Mul(c, s) }}"
    held = {name: PARAMS[name].astype(np.float16) for name in ("w", "s")}
    before, after, fired = rewritten(fuse_conv_affine, onnx_model(text, held))
    assert fired.count == 1
    assert_same(after, before, {"x": X["x"].astype(np.float16)}, 0.1)
    held["s"] = np.float16([60000]).reshape(1, 1, 1, 1)
    assert rewritten(fuse_conv_affine, onnx_model(text, held))[2].refused == (
        ("Mul -> y", "weights would be beyond what float16 holds"),
    )


ELSEWHERE = "an inner value is needed elsewhere"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"c = {PADDED}(x, w) y = Mul(c, plane)", "its constant is not one number for each channel"),
        (
            f"c = {PADDED}(x, w) e = {PADDED}(c, w) y = Mul(e, s)",
            "weights are used elsewhere too, and would be stored twice",
        ),
        (f"a = Add(x, t) y = {PADDED}(a, w)", "what is padded is zero only behind the shift"),
        ('a = Add(x, t) y = Conv<auto_pad = "SAME_LOWER">(a, w)', "what is padded is zero only behind the shift"),
        (f"c = {PADDED}(x, w) m = Mul(c, s) y = Sub(m, c)", ELSEWHERE),
        (f"m = Mul(x, s) c = {PADDED}(m, w) y = Sub(m, c)", ELSEWHERE),
        ("c = Clip(x, zero, six) y = Clip(c, seven, ten)", "their ranges do not meet: all values become one"),
        ("c = Clip(x, zero, six) r = Relu(c) y = Sub(r, c)", ELSEWHERE),
    ],
)
def test_near_misses_stay_and_say_why(body: str, reason: str) -> None:
    before, after, fired = rewritten(fuse_conv_affine, model(body))
    assert fired.count == 0
    assert {why for _, why in fired.refused} == {reason}
    assert ops_of(after) == ops_of(before)
    assert_same(after, before, X, 0)


def test_a_step_that_brings_channels_stays() -> None:
    text = "g (float[n,1,6,6] x) => (float[n,4,h,v] y) { m = Mul(x, s) y = Conv(m, w) }"
    _, _, fired = rewritten(fuse_conv_affine, onnx_model(text, {name: PARAMS[name] for name in "sw"}))
    assert [why for _, why in fired.refused] == [
        "it is not known to have as many channels before the step as behind it"
    ]


def test_a_residual_is_nothing_to_speak_of() -> None:
    assert rewritten(fuse_conv_affine, model(f"c = {PADDED}(x, w) y = Add(c, x)"))[2] == Fired()


def test_inner_values_may_be_outputs() -> None:
    body = f"c = {PADDED}(x, w) m = Mul(c, s) y = Add(m, t)"
    before, after, fired = rewritten(fuse_conv_affine, model(body, outputs="float[n,4,h,v] y, float[n,4,h,v] c"))
    assert (fired.count, fired.refused) == (0, (("Mul -> m", ELSEWHERE),))
    assert_same(after, before, X, 0)


@pytest.mark.parametrize(
    "body",
    [
        "c = Clip(x, minus, six) y = Clip(c, zero, one)",
        "c = Clip(x, minus) y = Clip(c, , one)",
        "c = Clip(x, minus, one) y = Relu(c)",
        "c = Relu(x) y = Clip(c, , one)",
        "r = Relu(x) c = Clip(r, minus, six) d = Relu(c) e = Relu(d) y = Clip(e, zero, one)",
    ],
)
def test_clamps_become_one(body: str) -> None:
    before, after, fired = rewritten(fuse_conv_affine, model(body))
    assert fired.count == body.count("=") - 1
    assert ops_of(after) == {"Clip": 1}
    assert_same(after, before, X, 0)


def test_two_clamps_of_one_tensor_keep_their_own_bounds() -> None:
    body = "a = Clip(x, zero, six) c = Relu(a) e = Clip(x, zero, one) d = Relu(e) y = Sub(c, d)"
    before, after, fired = rewritten(fuse_conv_affine, model(body))
    assert fired.count == 2
    assert_same(after, before, {"x": 4 * X["x"]}, 0)


def test_two_convolutions_with_one_name_for_their_weights_in_branches() -> None:
    body = f"""m = ReduceMax<keepdims = 0>(x) p = Greater(m, zero) y = If (p) <
        then_branch = t () => (float[n,4,h,v] o) {{ c = {PADDED}(x, w) o = Mul(c, s) }},
        else_branch = e () => (float[n,4,h,v] r) {{ d = Conv<pads = [1,1,1,1], group = 2>(x, wg) r = Mul(d, two) }}>"""
    before, after, fired = rewritten(fuse_conv_affine, model(body))
    assert fired.count == 2
    assert ops_of(after) == {"ReduceMax": 1, "Greater": 1, "If": 1, "Conv": 2}
    for sign in (1, -1):
        assert_same(after, before, {"x": sign * np.abs(X["x"])}, 1e-5)


def test_a_new_bias_takes_no_name_that_is_in_use() -> None:
    text = f"g (float[n,4,6,6] x) => (float[n,4,6,6] y) {{ c = {PADDED}(x, w) d = Mul(x, w_bias) "
    text += "e = BatchNormalization(c, scale, b, mean, var) y = Add(d, e) }"
    held = {name: PARAMS[name] for name in ("w", "scale", "b", "mean", "var")} | {"w_bias": PARAMS["plane"]}
    before, after, fired = rewritten(fuse_conv_affine, onnx_model(text, held))
    assert fired.count == 1
    assert_same(after, before, X, 2e-5)


def test_pads_that_are_attributes_are_left() -> None:
    body = "p = Pad<pads = [0,0,1,1,0,0,1,1]>(x) c = Conv(p, w) d = Clip<min = 0.0>(c) y = Relu(d)"
    before, after, fired = rewritten(fuse_conv_affine, model(body, opset=10))
    assert fired == Fired()
    assert_same(after, before, X, 0)


def test_onnxruntime_finds_nothing_left_to_fold() -> None:
    body = f"c = {PADDED}(x, w) m = Mul(c, s) a = Add(m, t) y = Relu(a)"
    before, after, _ = rewritten(fuse_conv_affine, model(body))
    np.testing.assert_allclose(run_onnx(after, X)["y"], run_onnx(before, X)["y"], rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    ("body", "opset"),
    [
        ("y = BatchNormalization<training_mode = 1>(c, scale, b, mean, var)", 20),
        ("y, m, v = BatchNormalization<training_mode = 1>(c, scale, b, mean, var)", 20),
        ("y, m, v, k, l = BatchNormalization(c, scale, b, mean, var)", 13),
    ],
)
@pytest.mark.parametrize("layer", ["Conv(x, w)", "ConvTranspose(x, w)"])
def test_normalization_by_the_batch_stays(body: str, opset: int, layer: str) -> None:
    before, after, fired = rewritten(fuse_conv_affine, model(f"c = {layer} {body}", opset=opset))
    assert (fired.count, [why for _, why in fired.refused]) == (0, ["it normalizes by the batch"])
    assert ops_of(after) == ops_of(before)
