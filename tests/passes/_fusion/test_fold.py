from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from optkit.passes._fusion.family import Fired
from optkit.passes._fusion.fold import fold, is_random
from tests.helpers import normal, onnx_model, ops_of, run_onnx
from tests.passes._fusion.rewritten import assert_same, rewritten

HELD: dict[str, Any] = {name: np.float32(value) for name, value in {"m5": -5, "m1": -1, "six": 6, "seven": 7}.items()}
HELD |= {
    "rows": np.int64([1, 2]),
    "columns": np.int64([2]),
    "scale": normal(3, seed=1),
    "pos": np.float32([1, 2, 3]),
    "eight": normal(8),
}
HELD |= {name: np.float32(value) for name, value in {"e9": 1e-9, "e12": 1e-12, "n9": -1e-9, "near": 1.000009}.items()}
HELD |= {"zero": np.float32(0), "one": np.float32(1)}
HELD |= {"yes": np.bool_(True), "no": np.bool_(False), "half": np.float32(0.5), "halves": np.full(400, 0.5, np.float32)}
HELD |= {"w": normal(3, 4, 1, 1, seed=2), "i1": np.int64([1])}
X = {"x": 8 * normal(2, 4, 5, 5)}


def folded(body: str, *, output: str = "float[n,a,b,c] y") -> tuple[Any, Any, Fired]:
    graph = onnx.parser.parse_graph(f"g (float[n,4,5,5] x) => ({output}) {{ {body} }}")
    used = {name for node in graph.node for name in node.input}
    held = {name: array for name, array in HELD.items() if name in used}
    return rewritten(family, onnx_model(f"g (float[n,4,5,5] x) => ({output}) {{ {body} }}", held))


def family(model: Any) -> Fired:
    fold(model)
    return Fired()


@pytest.mark.parametrize(
    "body",
    [
        "a = Clip(x, m1, six) y = Clip(a, seven)",
        "a = Clip(x, m5, m1) y = Relu(a)",
        "a = Clip(x, m5, six) c = Relu(a) d = Clip(x, m1, six) e = Relu(d) y = Sub(c, e)",
        "a = Min(x, six) c = Max(a, m5) d = Min(x, seven) e = Max(d, m1) y = Sub(c, e)",
        "c = Conv(x, w) y = BatchNormalization(c, scale, scale, scale, pos)",
    ],
)
def test_what_onnxscript_gets_wrong_or_a_family_does_is_left(body: str) -> None:
    before, after, _ = folded(body)
    assert ops_of(after) == ops_of(before)
    assert_same(after, before, X, 0)


def test_constants_and_sizes_are_computed_in_advance() -> None:
    body = "s = Shape(x) k = Gather<axis = 0>(s, i1) c = Concat<axis = 0>(k, columns) y = Reshape(eight, c)"
    before, after, _ = folded(body, output="float[p,q] y")
    assert ops_of(after).keys() <= {"Identity", "Constant"}
    assert_same(after, before, X, 0)


NEAR = [
    "a = Abs(x) s = Add(a, e9) y = Div(x, s)",
    "a = Mul(x, x) s = Add(e12, a) r = Sqrt(s) y = Div(x, r)",
    "a = Abs(x) s = Sub(a, n9) y = Log(s)",
    "y = Mul(x, near)",
    "y = Mul(near, x)",
    "y = Div(x, near)",
]


@pytest.mark.parametrize("body", NEAR)
@pytest.mark.parametrize("scale", [0, 1])
def test_what_is_nearly_0_or_1_is_neither(body: str, scale: int) -> None:
    before, after, _ = folded(body)
    assert ops_of(after) == ops_of(before)
    inputs = {"x": np.float32(scale) * X["x"]}
    assert np.isfinite(run_onnx(after, inputs, plain=True)["y"]).all()
    assert_same(after, before, inputs, 0)


def test_steps_by_exactly_0_and_1_go() -> None:
    body = (
        "a = Add(x, zero) b = Add(zero, a) c = Sub(b, zero) d = Mul(c, one) e = Mul(one, d) f = Div(e, one) y = Exp(f)"
    )
    before, after, _ = folded(body)
    assert ops_of(after) == {"Exp": 1}
    assert_same(after, before, X, 0)


@pytest.mark.parametrize("body", ["a = Sub(zero, x) y = Exp(a)", "a = Exp(x) y = Div(one, a)"])
def test_steps_from_0_and_1_stay(body: str) -> None:
    before, after, _ = folded(body)
    assert ops_of(after) == ops_of(before)
    assert_same(after, before, X, 0)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "min", "max"])
@pytest.mark.parametrize(
    "indices",
    ["i = Identity(all)", "s = Shape(x) n = Gather(s, i0) r = Range(i0, n, i1) i = Unsqueeze(r, last)"],
)
def test_updates_of_all_rows_are_put_as_asked(reduction: str, indices: str) -> None:
    text = f"""g (float[3,2] x, float[3,2] u) => (float[3,2] y) {{
        {indices} y = ScatterND<reduction = "{reduction}">(x, i, u) }}"""
    held: dict[str, Any] = {
        "all": np.int64([[0], [1], [2]]),
        "i0": np.int64(0),
        "i1": np.int64(1),
        "last": np.int64([-1]),
    }
    before, after, _ = rewritten(family, onnx_model(text, {name: held[name] for name in held if name in indices}))
    assert_same(after, before, {"x": normal(3, 2), "u": normal(3, 2, seed=1)}, 0)


@pytest.mark.parametrize("draw", ["Bernoulli(x)", "Dropout(x, half, yes)", "RandomNormalLike(x)", "Bernoulli(halves)"])
def test_two_draws_stay_two(draw: str) -> None:
    output = "float[p] y" if "halves" in draw else "float[n,a,b,c] y"
    _, after, _ = folded(f"a = {draw} b = {draw} y = Sub(a, b)", output=output)
    assert ops_of(after) == {draw.split("(", maxsplit=1)[0]: 2, "Sub": 1}
    assert run_onnx(after, {"x": np.full((2, 4, 5, 5), 0.5, np.float32)}, plain=True)["y"].any()


@pytest.mark.parametrize("repeat", ["Dropout(x, half, no)", "Dropout(x)", "Relu(x)"])
def test_what_draws_nothing_is_computed_once(repeat: str) -> None:
    before, after, _ = folded(f"a = {repeat} b = {repeat} d = Exp(a) e = Exp(b) y = Sub(d, e)")
    assert ops_of(after)["Exp"] == 1
    assert_same(after, before, X, 0)


def test_draws_in_a_branch_are_found() -> None:
    import onnx_ir as ir

    text = """g (float[n] x, bool p) => (float[n] y) { y = If (p) <
        then_branch = t () => (float[n] o) { o = OP(x) }, else_branch = e () => (float[n] r) { r = Neg(x) }> }"""
    assert is_random(ir.from_proto(onnx_model(text.replace("OP", "Bernoulli"))))
    assert not is_random(ir.from_proto(onnx_model(text.replace("OP", "Relu"))))
