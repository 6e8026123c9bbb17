from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from optkit.passes._fusion import families, qkv
from optkit.passes._fusion.apply import together
from optkit.passes._fusion.attention import fuse_attention
from optkit.passes._fusion.family import Fired
from optkit.passes._fusion.qkv import fuse_qkv
from optkit.passes.quantize_dynamic import QuantizeDynamic
from tests.helpers import normal, onnx_model, ops_of, run_pass
from tests.passes._fusion.exports import assert_equal_outputs, batch_of, exported, fused
from tests.passes._fusion.rewritten import assert_same, rewritten

X = {"x": normal(2, 5, 8, seed=9)}
WIDTHS = {"q": 8, "k": 4, "v": 4}
WEIGHTS: dict[str, Any] = {
    f"w{name}": normal(8, width, seed=seed) for seed, (name, width) in enumerate(WIDTHS.items())
} | {f"b{name}": normal(width, seed=seed) for seed, (name, width) in enumerate(WIDTHS.items(), 3)}
ALL = "q0 = MatMul(x, wq) k0 = MatMul(x, wk) v0 = MatMul(x, wv)"
OUT = "float[b,s,8] q, float[b,s,4] k, float[b,s,4] v"


def model(body: str, outputs: str = OUT, *, opset: int = 20, **changed: Any) -> Any:
    """A graph of x [b, s, 8] whose weights are ``WEIGHTS``, as far as they are used."""
    text = f"g (float[b,s,8] x) => ({outputs}) {{ {body} }}"
    held = {name: array for name, array in (WEIGHTS | changed).items() if name in text}
    return onnx_model(text, held, opset=opset)


def test_three_projections_of_other_widths_become_one() -> None:
    body = f"{ALL} q = Add(q0, bq) k = Add(bk, k0) v = Add(v0, bv)"
    before, after, fired = rewritten(fuse_qkv, model(body))
    assert (fired.count, fired.refused) == (1, ())
    assert ops_of(after) == {"MatMul": 1, "Add": 1, "Split": 1}
    assert after.signature == before.signature
    assert_same(after, before, X, 2e-6)


def test_without_bias_nothing_is_added() -> None:
    body = f"{ALL} q = Relu(q0) k = Relu(k0) v = Relu(v0)"
    before, after, _ = rewritten(fuse_qkv, model(body))
    assert ops_of(after) == {"MatMul": 1, "Split": 1, "Relu": 3}
    assert_same(after, before, X, 2e-6)


def test_what_is_added_to_one_of_them_or_read_twice_stays_right() -> None:
    body = f"{ALL} q = Add(q0, bq) k = Add(k0, bk) e = Exp(k0) v1 = Add(v0, e) v = Relu(v1)"
    before, after, fired = rewritten(fuse_qkv, model(body, f"{OUT}, float[b,s,4] v0"))
    assert fired.count == 1
    assert ops_of(after) == {"MatMul": 1, "Add": 3, "Split": 1, "Exp": 1, "Relu": 1}
    assert_same(after, before, X, 1e-5)


def test_results_may_be_outputs() -> None:
    outputs = "float[b,s,8] q0, float[b,s,4] k0, float[b,s,4] v0"
    before, after, fired = rewritten(fuse_qkv, model(ALL, outputs))
    assert fired.count == 1
    assert_same(after, before, X, 2e-6)


def test_in_a_branch() -> None:
    body = f"""c = ReduceMax<keepdims = 0>(x) p = Greater(c, zero) y = If (p) <
        then_branch = t () => (float[b,s,8] o) {{ {ALL} m = Add(k0, v0) n = Concat<axis = -1>(m, m) o = Add(q0, n) }},
        else_branch = e () => (float[b,s,8] r) {{ r = Relu(x) }}>"""
    before, after, fired = rewritten(fuse_qkv, model(body, "float[b,s,8] y", zero=np.float32(0)))
    assert fired.count == 1
    assert ops_of(after)["MatMul"] == 1
    for sign in (1, -1):
        assert_same(after, before, {"x": sign * np.abs(X["x"])}, 4e-6)


SHARED = "weights are used elsewhere too, and would be stored twice"
MORE = " ".join(f"a{index} = MatMul(x, wk{index})" for index in range(4))
RELUS = "q = Relu(q0) k = Relu(k0) v = Relu(v0)"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"{ALL} z = MatMul(q0, wq) q = Relu(z) k = Relu(k0) v = Relu(v0)", SHARED),
        (f"q0 = MatMul(x, wq) k0 = MatMul(x, wk) v0 = MatMul(x, wk) {RELUS}", SHARED),
        (f"{ALL} {MORE} q = Relu(q0) k = Relu(k0) v = Sum(v0, a0, a1, a2, a3)", "7 projections of one tensor"),
    ],
)
def test_near_misses_stay_and_say_why(body: str, reason: str) -> None:
    more = {f"wk{index}": normal(8, 4, seed=index) for index in range(4)} if "wk0" in body else {}
    before, after, fired = rewritten(fuse_qkv, model(body, **more))
    assert fired.count == 0
    assert [why[: len(reason)] for _, why in fired.refused] == [reason]
    assert ops_of(after)["MatMul"] == ops_of(before)["MatMul"]


def test_large_weights_and_old_opsets_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, fired = rewritten(fuse_qkv, model(f"{ALL} {RELUS}", opset=11))
    assert fired == Fired(0, (("MatMul -> q0, MatMul -> k0, MatMul -> v0", "opset 11: 13 or later is needed"),))
    monkeypatch.setattr(qkv, "LARGEST", 511)
    _, _, fired = rewritten(fuse_qkv, model(f"{ALL} {RELUS}"))
    assert [why for _, why in fired.refused] == ["weights of more than 0 MB together"]


def test_two_projections_or_computed_weights_are_nothing_to_speak_of() -> None:
    body = "q0 = MatMul(x, wq) k0 = MatMul(x, wk) t = Identity(wv) v0 = MatMul(x, t) " + RELUS
    assert rewritten(fuse_qkv, model(body))[2] == Fired()


def qkv_first(graph: Any) -> Fired:
    families.prepare(graph)
    return together(fuse_qkv(graph), fuse_attention(graph))


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_attention_is_recognized_behind_it(kind: str) -> None:
    model = exported(kind, "dynamo", "sdpa")
    before, after, fired = rewritten(qkv_first, onnx.load(model.path))
    assert (fired.count, ops_of(after)["com.microsoft.MultiHeadAttention"]) == (2, 1)
    assert_equal_outputs(after, before, batch_of(model), 1e-5)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("kind", ["bert", "llama", "vit"])
def test_what_both_exporters_write(kind: str, exporter: str) -> None:
    before = exported(kind, exporter, "sdpa")
    after, fired = fused(before, "attention", "key-mask", "qkv")
    assert (fired["attention"].count, fired["qkv"].count) == (1, 1)
    assert ops_of(after)["com.microsoft.MultiHeadAttention"] == 1
    assert_equal_outputs(after, before, batch_of(before), 1e-5)


def test_int8_reaches_the_joined_weights() -> None:
    body = f"{ALL} q = Add(q0, bq) k = Add(k0, bk) v = Add(v0, bv)"
    before, after, _ = rewritten(fuse_qkv, model(body))
    apart, joined = (run_pass(QuantizeDynamic(per_channel=True), each) for each in (before, after))
    assert (apart.changed, joined.changed) == (3, 1)
    assert_same(joined.model, apart.model, X, 1e-5)
