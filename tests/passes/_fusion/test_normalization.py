from __future__ import annotations

import re
from itertools import product
from typing import Any

import numpy as np
import pytest

from optkit.passes._fusion.family import Fired
from optkit.passes._fusion.normalization import fuse_normalization
from tests.helpers import normal, onnx_model, ops_of
from tests.passes._fusion.exports import assert_equal_outputs, batch_of, exported, fused
from tests.passes._fusion.rewritten import assert_same, rewritten

VALUES: dict[str, Any] = {"two": np.float32(2), "one": np.float32(1), "last": np.int64([-1]), "tiny": np.float32(1e-6)}
WEIGHTS = VALUES | {"w": normal(8, seed=1), "b": normal(8, seed=2)}
SQUARE = ("s = Pow({d}, two)", "s = Mul({d}, {d})")
NORMAL = (  # the dynamo exporter's, TorchScript's, the plain one
    "i = Reciprocal(r) z = Mul({d}, i)",
    "i = Div(one, r) z = Mul({d}, i)",
    "z = Div({d}, r)",
)
ROOT = "m = ReduceMean<keepdims = 1{attributes}>(s, last) a = Add(m, tiny) r = Sqrt(a)"
CENTRED = "c = ReduceMean<keepdims = 1>(x, last) d = Sub(x, c) "
NOT_A_ROW = "the scale is not known to be one value for each column"
X = {"x": normal(3, 8)}


def rms(square: str = SQUARE[0], scaled: str = NORMAL[0], end: str = "y = Mul(w, z)", attributes: str = "") -> str:
    """Of x; ``w`` is the scale."""
    body = " ".join((square, ROOT.format(attributes=attributes), scaled, end)).format(d="x")
    return f"g (float[n,8] x) => (float[n,8] y) {{ {body} }}"


def layer(square: str, scaled: str, end: str) -> str:
    """Of x less its mean."""
    body = " ".join((square, ROOT.format(attributes=""), scaled)).format(d="d")
    return f"g (float[n,8] x) => (float[n,8] y) {{ {CENTRED} {body} {end} }}"


@pytest.mark.parametrize("form", list(product(SQUARE, NORMAL, ("y = Mul(w, z)", "y = Mul(z, w)"))))
@pytest.mark.parametrize("attributes", ["", ", noop_with_empty_axes = 0"])
def test_rms_normalization_in_every_spelling(form: tuple[str, str, str], attributes: str):
    before, after, fired = rewritten(fuse_normalization, onnx_model(rms(*form, attributes), WEIGHTS))
    assert (fired, ops_of(after)) == (Fired(1), {"SimplifiedLayerNormalization": 1})
    assert_same(after, before, X, 2e-6)


@pytest.mark.parametrize("square", SQUARE)
@pytest.mark.parametrize("scaled", [NORMAL[0], NORMAL[2]])
@pytest.mark.parametrize("end", ["y = Mul(z, w)", "t = Mul(z, w) y = Add(t, b)", "t = Mul(z, w) y = Add(b, t)"])
def test_layer_normalization(square: str, scaled: str, end: str):
    before, after, fired = rewritten(fuse_normalization, onnx_model(layer(square, scaled, end), WEIGHTS))
    assert fired == Fired(1 + ("Add" in end))
    assert ops_of(after) == {"LayerNormalization": 1}
    assert_same(after, before, X, 2e-6)


@pytest.mark.parametrize("shape", [(), (1,), (1, 8), (3, 8)])
def test_a_scale_that_is_no_row(shape: tuple[int, ...]):
    scale = {"w": np.float32(normal(*shape, seed=1))}
    for text in (rms(), layer(SQUARE[0], NORMAL[2], "y = Mul(z, w)")):
        before, after, fired = rewritten(fuse_normalization, onnx_model(text, WEIGHTS | scale))
        assert (fired.count, {reason for _, reason in fired.refused}) == (0, {NOT_A_ROW})
        assert ops_of(after) == ops_of(before)


def test_an_addition_behind_it_that_is_no_bias():
    text = "g (float[n,8] x) => (float[n,8] y) { z = LayerNormalization(x, w) y = Add(z, x) }"
    assert rewritten(fuse_normalization, onnx_model(text, WEIGHTS))[2] == Fired()
    of_two = "g (float[4,8] x) => (float[4,8] y) { z = LayerNormalization<axis = 0>(x, v) y = Add(z, b) }"
    fired = rewritten(fuse_normalization, onnx_model(of_two, WEIGHTS | {"v": normal(4, 8)}))[2]
    assert fired == Fired(0, (("Add -> y", "it normalizes more than the last axis"),))


def before_opset_18(text: str) -> str:
    """The axes of ReduceMean as attribute, as opset 18 no longer has them."""
    return re.sub(r"ReduceMean<(.*?)>\((\w+), last\)", r"ReduceMean<\1, axes = [-1]>(\2)", text)


@pytest.mark.parametrize(("opset", "count"), [(17, 1), (16, 0)])
def test_layer_normalization_came_with_opset_17(opset: int, count: int):
    text = before_opset_18(layer(SQUARE[1], NORMAL[2], "y = Mul(z, w)"))
    before, after, fired = rewritten(fuse_normalization, onnx_model(text, WEIGHTS, opset=opset))
    assert ops_of(after).get("LayerNormalization", 0) == count
    # its second part is an RMS normalization
    assert fired == Fired(1) and ops_of(after).get("SimplifiedLayerNormalization", 0) == 1 - count
    assert_same(after, before, X, 2e-6)


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("scaled", NORMAL)
def test_rms_normalization_with_axes_as_attribute(opset: int, scaled: str):
    proto = onnx_model(before_opset_18(rms(scaled=scaled)), WEIGHTS, opset=opset)
    before, after, fired = rewritten(fuse_normalization, proto)
    assert (fired, ops_of(after)) == (Fired(1), {"SimplifiedLayerNormalization": 1})
    assert_same(after, before, X, 2e-6)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_llama_of_both_exporters(exporter: str):
    model = exported("llama", exporter, "sdpa")
    after, fired = fused(model, "normalization")
    assert fired["normalization"] == Fired(3)
    assert ops_of(after)["SimplifiedLayerNormalization"] == 3
    assert_equal_outputs(after, model, batch_of(model), 1e-5)
