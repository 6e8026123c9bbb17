from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optkit.passes._fusion.family import Fired
from optkit.passes._fusion.normalization import fuse_normalization
from optkit.passes._fusion.skip_norm import fuse_skip_norm
from tests.helpers import normal, onnx_model, ops_of
from tests.passes._fusion.exports import assert_equal_outputs, batch_of, exported, fused
from tests.passes._fusion.rewritten import assert_same, rewritten

LAYER = "y = LayerNormalization<axis = -1>(s, w, c)"
RMS = """q = Mul(s, s) m = ReduceMean<keepdims = 1>(q, last) a = Add(m, tiny) o = Sqrt(a) v = Div(s, o)
    y = Mul(v, w)"""
KERNELS = {LAYER: "com.microsoft.SkipLayerNormalization", RMS: "com.microsoft.SkipSimplifiedLayerNormalization"}
WEIGHTS: dict[str, Any] = {"w": normal(8, seed=1), "c": normal(8, seed=2), "b": normal(8, seed=3)}
WEIGHTS |= {"last": np.int64([-1]), "tiny": np.float32(1e-6)}
INPUTS = {"x": normal(2, 3, 8), "z": normal(2, 3, 8, seed=4)}


def normalized_first(model: Any) -> Fired:
    fuse_normalization(model)
    return fuse_skip_norm(model)


def summed(sums: str, norm: str, *, shape: str = "n,m,8", outputs: str = "") -> str:
    return f"g (float[n,m,8] x, float[{shape}] z) => (float[n,m,8] y{outputs}) {{ {sums} {norm} }}"


@pytest.mark.parametrize("norm", KERNELS)
@pytest.mark.parametrize("sums", ["s = Add(x, z)", "t = Add(x, b) s = Add(t, z)", "t = Add(x, z) s = Add(t, b)"])
def test_additions_go_in(norm: str, sums: str):
    before, after, fired = rewritten(normalized_first, onnx_model(summed(sums, norm), WEIGHTS))
    assert (fired, ops_of(after)) == (Fired(1), {KERNELS[norm]: 1})
    assert_same(after, before, INPUTS, 2e-6)


@pytest.mark.parametrize("norm", KERNELS)
def test_the_sum_goes_on(norm: str):
    text = summed("s = Add(x, z)", f"{norm} r = Relu(s)", outputs=", float[n,m,8] s, float[n,m,8] r")
    before, after, fired = rewritten(normalized_first, onnx_model(text, WEIGHTS))
    assert (fired.count, ops_of(after)) == (1, {KERNELS[norm]: 1, "Relu": 1})
    assert_same(after, before, INPUTS, 2e-6)


@pytest.mark.parametrize("shape", ["1,m,8", "m,8", "8", "p,m,8"])
def test_an_addend_of_another_size(shape: str):
    before, after, fired = rewritten(normalized_first, onnx_model(summed("s = Add(x, z)", LAYER, shape=shape), WEIGHTS))
    assert (fired.count, [reason for _, reason in fired.refused]) == (
        0,
        ["the addends are not known to be of one size"],
    )
    assert ops_of(after) == ops_of(before)


def test_a_mean_that_is_needed():
    norm = "y, mean = LayerNormalization<axis = -1>(s, w, c)"
    text = summed("s = Add(x, z)", norm, outputs=", float[n,m,1] mean")
    before, after, fired = rewritten(normalized_first, onnx_model(text, WEIGHTS))
    assert [reason for _, reason in fired.refused] == ["an inner value is needed elsewhere"]
    assert ops_of(after) == ops_of(before)


@pytest.mark.parametrize(
    ("kind", "exporter", "count"), [("bert", "dynamo", 2), ("bert", "torchscript", 2), ("llama", "torchscript", 2)]
)
def test_transformers_of_both_exporters(kind: str, exporter: str, count: int):
    model = exported(kind, exporter, "sdpa")
    after, fired = fused(model, "normalization", "attention", "skip-norm")
    assert fired["skip-norm"].count == count
    assert_equal_outputs(after, model, batch_of(model), 1e-5)
