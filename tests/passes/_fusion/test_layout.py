from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from optkit.passes._fusion.family import Fired
from optkit.passes._fusion.layout import fuse_layout
from tests.helpers import normal, onnx_model, ops_of, run_onnx
from tests.passes._fusion.rewritten import assert_same, rewritten

X = {"x": normal(2, 3, 8, seed=1)}
HELD: dict[str, Any] = {
    "zero": np.int64([0]),
    "one": np.int64([1]),
    "last": np.int64([-1]),
    "two": np.int64([2]),
    "four": np.int64([4]),
    "eight": np.int64([8]),
    "f0": np.float32(0),
    "i0": np.int64(0),
    "i1": np.int64(1),
    "rows": np.int64([-1, 8]),
    "heads": np.int64([0, 0, 4, 2]),
    "join": np.int64([0, 0, -1]),
    "split": np.int64([0, 3, 4, -1]),
    "half": np.int64([0, 12, -1]),
    "turned": np.int64([-1, 2, 3]),
    "split2": np.int64([0, 3, 2, -1]),
    "heads2": np.int64([3, 2, 8]),
    "most": np.int64([2**63 - 1]),
    "bias": normal(1, 1, seed=2),
    "row": normal(1, 1, 8, seed=3),
}


def model(body: str, output: str = "float[p,q,r] y", inputs: str = "float[b,s,8] x") -> onnx.ModelProto:
    graph = onnx.parser.parse_graph(f"g ({inputs}) => ({output}) {{ {body} }}")
    nodes = [*graph.node, *(each for node in graph.node for attr in node.attribute for each in attr.g.node)]
    used = {name for node in nodes for name in node.input}
    return onnx_model(f"g ({inputs}) => ({output}) {{ {body} }}", {k: v for k, v in HELD.items() if k in used})


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Transpose<perm = [1,0,2]>(x) c = Transpose<perm = [1,0,2]>(a) y = Relu(c)", {}),
        ("a = Transpose<perm = [1,2,0]>(x) c = Transpose<perm = [1,2,0]>(a) y = Relu(c)", {"Transpose": 1}),
        ("a = Unsqueeze(x, last) c = Squeeze(a, last) y = Relu(c)", {}),
        ("n = Relu(x) u = Unsqueeze(n, zero) v = Squeeze(u, zero) y = Relu(v)", {"Relu": 2}),
        ("a = Reshape(x, rows) c = Reshape(a, heads2) y = Relu(c)", {"Reshape": 1}),
        ("a = Reshape(x, heads) i = Identity(a) c = Reshape(i, join) y = Relu(c)", {}),
        ("a = Reshape(x, split) c = Reshape(a, half) y = Relu(c)", {"Reshape": 1}),
        ("a = Slice(x, zero, most, one, one) y = Relu(a)", {}),
        ("a = Cast<to = 1>(x) y = Relu(a)", {}),
        ("a = Shape(x) c = Reshape(x, a) y = Relu(c)", {}),
        ("a = Shape(x) c = Expand(x, a) y = Relu(c)", {}),
    ],
)
def test_what_cancels_or_is_one(body: str, left: dict[str, int]) -> None:
    before, after, fired = rewritten(fuse_layout, model(body))
    assert fired.count >= 1
    assert ops_of(after) == {"Relu": 1} | left
    assert_same(after, before, X, 0)


@pytest.mark.parametrize(
    ("given", "steps", "last", "casts"),
    [
        ("bool", "a = Cast<to = 7>(z) y = Cast<to = 1>(a)", "float", 1),
        ("float16", "a = Cast<to = 1>(z) y = Cast<to = 11>(a)", "double", 1),
        ("int32", "a = Cast<to = 7>(z) y = Cast<to = 1>(a)", "float", 1),
        ("float", "a = Cast<to = 10>(z) y = Cast<to = 1>(a)", "float", 2),
        ("int64", "a = Cast<to = 11>(z) y = Cast<to = 7>(a)", "int64", 2),
        ("float", "a = Cast<to = 11>(z) y = Cast<to = 6>(a)", "int32", 2),
        ("float16", "a = Cast<to = 1>(z) y = Cast<to = 8>(a)", "string", 2),
    ],
)
def test_casts_by_way_of_a_wider_type(given: str, steps: str, last: str, casts: int) -> None:
    before, after, fired = rewritten(fuse_layout, onnx_model(f"g ({given}[n] z) => ({last}[n] y) {{ {steps} }}"))
    assert (ops_of(after), fired.count) == ({"Cast": casts}, 2 - casts)
    z = np.array([0, 1, 3], {"float": "float32"}.get(given, given))
    found, expected = (run_onnx(each, {"z": z})["y"] for each in (after, before))
    assert found.tolist() == expected.tolist()


SIZES = "s = Shape(x) b0 = Gather(s, i0) b1 = Unsqueeze(b0, zero) q0 = Gather(s, i1) q1 = Unsqueeze(q0, zero) "


@pytest.mark.parametrize(
    ("steps", "sizes"),
    [
        ("c = Concat<axis = 0>(b1, q1, four, two) d = Reshape(x, c) y = Softmax(d)", [0, 0, 4, 2]),
        ("c = Concat<axis = 0>(b1, q1, two, four) d = Reshape<allowzero = 1>(x, c) y = Softmax(d)", [0, 0, 2, 4]),
        ("m = Mul(b1, q1) c = Concat<axis = 0>(m, eight) d = Reshape(x, c) y = Softmax(d)", [-1, 8]),
    ],
)
def test_sizes_that_can_be_read_off_are_not_computed(steps: str, sizes: list[int]) -> None:
    output = f"float[{','.join('pqrt'[: len(sizes)])}] y"
    before, after, fired = rewritten(fuse_layout, model(SIZES + steps, output))
    assert (fired.count, fired.refused) == (1, ())
    assert ops_of(after) == {"Reshape": 1, "Softmax": 1}
    (held,) = onnx.load(after.path).graph.initializer
    assert onnx.numpy_helper.to_array(held).tolist() == sizes
    for shape in ((2, 3, 8), (1, 1, 8), (0, 3, 8)):
        assert_same(after, before, {"x": normal(*shape)}, 0)


@pytest.mark.parametrize(
    "steps",
    [
        "c = Concat<axis = 0>(q1, b1, eight) d = Reshape(x, c) y = Softmax(d)",
        "m = Mul(q1, eight) c = Concat<axis = 0>(b1, m, one) d = Reshape(x, c) y = Softmax(d)",
    ],
)
def test_sizes_that_are_not_the_same_for_all_inputs_stay_computed(steps: str) -> None:
    before, after, fired = rewritten(fuse_layout, model(SIZES + steps))
    assert fired == Fired(0, (("Reshape -> d", "its sizes are neither known nor those of its input"),))
    assert ops_of(after) == ops_of(before)


@pytest.mark.parametrize(
    ("steps", "expands"),
    [
        ("e = Expand(row, s) y = Add(x, e)", 0),
        ("e = Expand(bias, s) c = Less(x, e) y = Where(c, x, row)", 0),
        ("e = Expand(row, s) f = Expand(bias, s) y = Mul(e, f)", 1),
        ("e = Expand(row, s) y = Relu(e)", 1),
    ],
)
def test_what_an_operator_repeats_by_itself_is_not_repeated_before(steps: str, expands: int) -> None:
    before, after, fired = rewritten(fuse_layout, model(f"s = Shape(x) {steps} z = Softmax(y)", "float[b,s,8] z"))
    assert ops_of(after).get("Expand", 0) == expands
    assert fired.count == ops_of(before)["Expand"] - expands
    assert_same(after, before, X, 0)


def test_a_rank_that_only_an_expand_gives_stays() -> None:
    text = "g (float[4] x) => (float[a,b] y) { e = Expand(x, sizes) y = Add(e, w) }"
    held = {"sizes": np.int64([1, 4]), "w": normal(4)}
    before, after, fired = rewritten(fuse_layout, onnx_model(text, held))
    assert fired == Fired()
    assert_same(after, before, {"x": normal(4, seed=1)}, 0)


@pytest.mark.parametrize(
    "body",
    [
        "a = Unsqueeze(x, last) c = Squeeze(a, one2) y = Relu(c)",
        "a = Transpose<perm = [1,0,2]>(x) c = Relu(a) y = Transpose<perm = [1,0,2]>(c)",
        "a = Slice(x, one, most, one, one) y = Relu(a)",
        "a = Reshape(x, turned) c = Reshape(a, split2) y = Relu(c)",
    ],
)
def test_near_misses_stay(body: str) -> None:
    x = "float[b,1,8] x" if "one2" in body else "float[b,s,8] x"
    before, after, fired = rewritten(fuse_layout, model(body.replace("one2", "one"), inputs=x))
    assert fired.count == 0
    assert ops_of(after) == ops_of(before)


def test_inner_values_may_be_outputs_or_used_elsewhere() -> None:
    body = (
        "a = Unsqueeze(x, last) c = Squeeze(a, last) t = Transpose<perm = [1,0,2]>(c) y = Transpose<perm = [1,0,2]>(t)"
    )
    outputs = "float[b,s,8] y, float[b,s,8,1] a, float[b,s,8] c, float[s,b,8] t"
    before, after, _ = rewritten(fuse_layout, model(body, outputs))
    assert_same(after, before, X, 0)


def test_in_a_branch() -> None:
    body = """m = ReduceMax<keepdims = 0>(x) p = Greater(m, f0) u = Unsqueeze(x, last) y = If (p) <
        then_branch = t () => (float[b,s,8] o) { v = Squeeze(u, last) o = Exp(v) },
        else_branch = e () => (float[b,s,8] r) { r = Squeeze(u, last) }>"""
    before, after, fired = rewritten(fuse_layout, model(body, "float[b,s,8] y"))
    assert fired.count == 1
    assert ops_of(after)["Squeeze"] == 1
    for sign in (1, -1):
        assert_same(after, before, {"x": sign * np.abs(X["x"])}, 0)
