from __future__ import annotations

from typing import Any

import pytest

from optkit.passes._fusion.family import Fired
from optkit.passes._fusion.packed_attention import fuse_packed_attention
from tests.helpers import normal, onnx_model, ops_of
from tests.passes._fusion.exports import assert_equal_outputs, batch_of, exported, fused
from tests.passes._fusion.rewritten import assert_same, rewritten

PROJECTED = "q0 = MatMul(x, wq) k0 = MatMul({z}, wk) v0 = MatMul({z}, wv)"
BIASED = ("q = Add(q0, bq) k = Add(k0, bk) v = Add(v0, bv)", "q = Add(bq, q0) k = Identity(k0) v = Add(v0, bv)")
ATTENTION = "y = com.microsoft.MultiHeadAttention<num_heads = 4{attributes}>(q, k, v, , , m)"
WEIGHTS: dict[str, Any] = {f"w{name}": normal(32, 32, seed=seed, scale=0.3) for seed, name in enumerate("qkv")}
WEIGHTS |= {f"b{name}": normal(32, seed=seed) for seed, name in enumerate("qkv")}
INPUTS = {"x": normal(2, 5, 32, seed=9), "z": normal(2, 5, 32, seed=8), "m": normal(2, 1, 5, 5, seed=7)}


def attention(biased: str = BIASED[0], *, z: str = "x", attributes: str = "", projected: str = PROJECTED) -> str:
    more = ", float[batch,seq,32] z" if z == "z" else ""
    body = f"{projected.format(z=z)} {biased} {ATTENTION.format(attributes=attributes)}"
    return f"g (float[batch,seq,32] x, float[batch,1,seq,seq] m{more}) => (float[batch,seq,32] y) {{ {body} }}"


def run(text: str, **weights: Any) -> tuple[Any, Any, Fired]:
    return rewritten(fuse_packed_attention, onnx_model(text, WEIGHTS | weights, contrib=True))


@pytest.mark.parametrize("attributes", ["", ", scale = 0.5"])
@pytest.mark.parametrize("biased", BIASED)
def test_projections_go_in(biased: str, attributes: str):
    before, after, fired = run(attention(biased.replace("k = Identity(k0)", "k = Add(k0, bk)"), attributes=attributes))
    assert fired == Fired(1)
    assert ops_of(after)["com.microsoft.Attention"] == 1
    assert "MatMul" not in ops_of(after)
    assert_same(after, before, {name: INPUTS[name] for name in ("x", "m")}, 2e-6)


def test_keys_of_another_tensor_keep_their_projections():
    before, after, fired = run(attention(z="z"))
    assert fired.count == 1
    assert ops_of(after) == {"MatMul": 3, "com.microsoft.MultiHeadAttention": 1, "Concat": 1}
    assert_same(after, before, INPUTS, 2e-6)


def test_a_sum_that_is_no_bias():
    """As with LoRA: what is added is another product."""
    text = attention("d = MatMul(x, wv) q = Add(q0, d) k = Add(k0, bk) v = Add(v0, bv)")
    before, after, fired = run(text)
    assert [reason for _, reason in fired.refused] == ["the query is a sum with more than a bias"]
    assert ops_of(after) == ops_of(before)


def test_attributes_that_would_be_lost():
    before, after, fired = run(attention(attributes=", unidirectional = 1"))
    assert [reason for _, reason in fired.refused] == ["the attention has attributes that would be lost"]
    assert ops_of(after) == ops_of(before)


def test_weights_that_are_computed():
    text = attention(projected=PROJECTED.replace("q0 = MatMul(x, wq)", "t = Transpose(u) q0 = MatMul(x, t)"))
    text = text.replace("] x,", "] x, float[32,32] u,")
    before, after, fired = run(text)
    assert "the weights are computed" in [reason for _, reason in fired.refused]
    assert_same(after, before, {"u": normal(32, 32, scale=0.3), "x": INPUTS["x"], "m": INPUTS["m"]}, 2e-6)


@pytest.mark.parametrize(
    ("kind", "exporter", "spelled"),
    [
        ("bert", "dynamo", "sdpa"),
        ("bert", "torchscript", "eager"),
        ("bert", "torchscript", "sdpa"),
        ("vit", "torchscript", "sdpa"),
        ("mpnet", "torchscript", "eager"),
    ],
)
def test_transformers_of_both_exporters(kind: str, exporter: str, spelled: str):
    model = exported(kind, exporter, spelled)
    after, fired = fused(model, "attention", "packed-attention")
    assert (fired["attention"].count, fired["packed-attention"].count) == (1, 1)
    assert ops_of(after)["com.microsoft.Attention"] == 1
    assert "com.microsoft.MultiHeadAttention" not in ops_of(after)
    assert_equal_outputs(after, model, batch_of(model), 1e-5)


def test_grouped_heads_are_left():
    after, fired = fused(exported("llama", "torchscript", "eager"), "attention", "packed-attention")
    assert (fired["attention"].count, fired["packed-attention"].count) == (1, 0)
    assert ops_of(after)["com.microsoft.MultiHeadAttention"] == 1
