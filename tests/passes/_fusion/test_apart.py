from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from optkit.model.model import Model
from optkit.passes._fusion.apart import keep_apart
from optkit.passes._fusion.family import Fired
from tests.helpers import fresh_dir, normal, onnx_model, ops_of
from tests.passes._fusion.rewritten import assert_same, rewritten

X = {"a": normal(2, 3, 8, seed=1), "b": normal(2, 3, 8, seed=2)}
HELD: dict[str, Any] = {"s": normal(8, seed=3), "t": normal(8, seed=4)}
APART = {"Add": 1, "LayerNormalization": 1}


def model(body: str, *, dims: str = "n,m,8", more: str = "") -> onnx.ModelProto:
    text = f"g (float[{dims}] a, float[{dims}] b) => (float[{dims}] y{more}) {{ {body} }}"
    return onnx_model(text, {name: array for name, array in HELD.items() if name in body.replace("LayerN", "")})


def opened(model: Model) -> dict[str, int]:
    """Operators after onnxruntime's own fusions for CPUs."""
    options, path = ort.SessionOptions(), Path(fresh_dir()) / "optimized.onnx"
    options.log_severity_level, options.optimized_model_filepath = 3, str(path)
    ort.InferenceSession(model.path, options, providers=["CPUExecutionProvider"])
    return ops_of(path)


@pytest.mark.parametrize("dims", ["n,m,8", "2,3,8"])
@pytest.mark.parametrize("norm", ["LayerNormalization(c, s, t)", "LayerNormalization<epsilon = 0.01>(c, s)"])
def test_onnxruntime_leaves_them_apart(norm: str, dims: str) -> None:
    before, after, fired = rewritten(keep_apart, model(f"c = Add(a, b) y = {norm}", dims=dims))
    assert fired == Fired(1)
    assert opened(before) == {"com.microsoft.SkipLayerNormalization": 1}
    assert opened(after) == ops_of(after) == APART
    assert_same(after, before, X, 0)


def test_a_scale_that_others_read_too_stays_for_them() -> None:
    body = "c = Add(a, b) d = LayerNormalization(c, s, t) e = Add(d, a) f = LayerNormalization(e, s) y = Mul(f, s)"
    before, after, fired = rewritten(keep_apart, model(body))
    assert fired == Fired(2)
    held = {each.name: list(each.dims) for each in onnx.load(after.path).graph.initializer}
    assert held == {"s": [8], "s_row": [1, 8], "t": [8]}
    assert_same(after, before, X, 0)


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        ("y = LayerNormalization(a, s, t)", ()),
        ("c = Add(a, b) d = LayerNormalization(c, s) y = Add(c, d)", ()),
        ("c = Sub(a, b) y = LayerNormalization(c, s)", ()),
        (
            "c = Add(a, b) i = Abs(s) y = LayerNormalization(c, i)",
            (("LayerNormalization -> y", "its scale is computed"),),
        ),
    ],
)
def test_what_is_not_fused_or_cannot_be_helped_stays(body: str, refused: Any) -> None:
    before, after, fired = rewritten(keep_apart, model(body))
    assert fired == Fired(0, refused)
    assert after.digest == before.digest or ops_of(after) == ops_of(before)
    assert_same(after, before, X, 0)


def test_sums_that_are_outputs_are_not_fused_anyway() -> None:
    before, after, fired = rewritten(
        keep_apart, model("c = Add(a, b) y = LayerNormalization(c, s)", more=", float[n,m,8] c")
    )
    assert fired == Fired()
    assert opened(before) == APART
    assert_same(after, before, X, 0)


def test_in_a_branch() -> None:
    body = """m = ReduceMax<keepdims = 0>(a) z = Sub(m, m) p = Greater(m, z) y = If (p) <
        then_branch = u () => (float[n,k,8] o) { c = Add(a, b) o = LayerNormalization(c, s, t) },
        else_branch = e () => (float[n,k,8] r) { r = Relu(b) }>"""
    before, after, fired = rewritten(keep_apart, model(body))
    assert fired == Fired(1)
    assert "com.microsoft.SkipLayerNormalization" not in opened(after)
    for sign in (1, -1):
        assert_same(after, before, {"a": sign * np.abs(X["a"]), "b": X["b"]}, 0)
