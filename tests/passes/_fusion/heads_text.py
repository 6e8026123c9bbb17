"""Attention of 4 heads with 8 features each, in ONNX's text form."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from tests.helpers import normal, onnx_model

LOWEST = float(np.finfo(np.float32).min)
GUARD = "isnan = IsNaN(p0) p = Where(isnan, zero, p0)"
HEADS = """
    q0 = MatMul(x, wq) q1 = Reshape(q0, split) q = Transpose<perm = [0,2,1,3]>(q1)
    k0 = MatMul(x, wk) k1 = Reshape(k0, split) k = Transpose<perm = [0,2,3,1]>(k1)
    v0 = MatMul(x, wv) v1 = Reshape(v0, split) v = Transpose<perm = [0,2,1,3]>(v1)
    qs = Mul(q, root) ks = Mul(k, root) s0 = MatMul(qs, ks)"""
END = "p = Softmax<axis = -1>(s) h = MatMul(p, v) t = Transpose<perm = [0,2,1,3]>(h) j = Reshape(t, join)"
WEIGHTS: dict[str, Any] = {f"w{name}": normal(32, 32, seed=seed, scale=0.3) for seed, name in enumerate("qkvo")}
WEIGHTS |= {"split": np.int64([0, 0, 4, 8]), "join": np.int64([0, 0, 32]), "root": np.float32(8**-0.25)}
X = {"x": normal(2, 5, 32, seed=9)}


def attention(
    scores: str = "s = Identity(s0)", *, inputs: str = "", outputs: str = "", end: str = END, **constants: Any
) -> onnx.ModelProto:
    """``scores`` makes s of s0 = q k; ``end`` makes j of s and v."""
    text = f"""g (float[batch,seq,32] x{inputs}) => (float[batch,seq,32] y{outputs}) {{
        {HEADS} {scores} {end} y = MatMul(j, wo) }}"""
    return onnx_model(text, WEIGHTS | constants)


def masked(fill: float, *, guard: str = GUARD, bias: bool = False) -> onnx.ModelProto:
    """Adds ``fill`` where not ``keep`` [batch,1,1,seq]; NaN becomes 0; ``bias`` = [1,4,5,5] is added too."""
    scores = "m = Where(keep, zero, fill) " + ("s1 = Add(s0, bias) s = Add(s1, m)" if bias else "s = Add(s0, m)")
    end = END.replace("p = Softmax<axis = -1>(s)", f"p0 = Softmax<axis = -1>(s) {guard or 'p = Identity(p0)'}")
    added = {"bias": normal(1, 4, 5, 5, seed=7)} if bias else {}
    values = {"zero": np.float32(0), "fill": np.float32(fill)}
    return attention(scores, inputs=", bool[batch,1,1,seq] keep", end=end, **values, **added)


def ragged() -> dict[str, Any]:
    """Three rows of 5: one that is masked all over, one with padding at its end, one without."""
    keep = np.ones((3, 1, 1, 5), bool)
    keep[0], keep[1, ..., 3:] = False, False
    return {"x": normal(3, 5, 32, seed=9), "keep": keep}
