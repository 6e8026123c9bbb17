"""What both casting passes share: what stays in float32 and why, and Casts only where the border is crossed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from optkit.model.model import Model
from optkit.passes._base import Outcome
from optkit.passes._cast.half import BFLOAT16, FLOAT16
from optkit.passes.cast_fp16 import CastFp16
from tests.helpers import fresh_dir, normal, onnx_model, open_any, ops_of, relative_error, run_onnx, run_pass

X = {"x": normal(4, 8, seed=1)}
W = {"w": normal(8, 8, seed=2), "v": normal(8, 8, seed=3)}


def cast(text: str, weights: dict[str, np.ndarray], inputs: dict[str, np.ndarray] = X, **given: object) -> Outcome:
    return run_pass(CastFp16(**given), onnx_model(text, weights), data={"search": inputs})


def initializers(model: Model) -> dict[str, int]:
    return {each.name: each.data_type for each in onnx.load(model.path).graph.initializer}


def test_a_tensor_that_crosses_is_cast_once_each_way() -> None:
    outcome = cast(
        "g (float[n,8] x) => (float[n,8] y, float[n,8] z)"
        " { a = MatMul(x, w) b = MatMul(x, v) c = Add(a, b)"
        " s = Softmax(c) t = LogSoftmax(c) y = Mul(s, t) z = Mul(s, c) }",
        W,
    )
    assert dict(outcome.changes) == {"MatMul": "2 in float16", "Mul": "2 in float16", "Add": "1 in float16"}
    assert [label for label, _ in outcome.skipped] == ["Softmax -> s", "LogSoftmax -> t"]
    # in: x, s, t; out: c, and both outputs
    assert ops_of(outcome.model)["Cast"] == 6


def test_a_weight_used_on_both_sides_is_held_in_both_types() -> None:
    outcome = cast("g (float[n,8] x) => (float[n,8] y) { a = MatMul(x, w) [f] y = MatMul(a, w) }", W, exclude=("f",))
    types = onnx.TensorProto
    assert initializers(outcome.model) == {"w": types.FLOAT, "w_float16": types.FLOAT16}
    assert outcome.skipped == [("f", "excluded")]


def test_values_near_the_end_of_the_type_keep_their_nodes_in_float32() -> None:
    text = (
        "g (float[n,8] x) => (float[n,8] y) { a = MatMul(x, w) [big] b = Mul(a, k) [c] c = Tanh(b) y = MatMul(c, v) }"
    )
    weights = {**W, "k": np.float32(20000)}
    outcome = cast(text, weights)
    reasons = dict(outcome.skipped)
    assert list(reasons) == ["big", "c"]
    assert reasons["big"].startswith("'b' reaches ") and reasons["big"].endswith("float16 ends at 6.55e+04")
    reference = run_onnx(open_any(onnx_model(text, weights)), X)["y"]
    assert relative_error(run_onnx(outcome.model, X)["y"], reference) < 2e-3


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (np.float32(1e5), "the weight 'k' reaches 1e+05; float16 ends at 6.55e+04"),
        (np.float32(1e-12), "rounding to float16 changes the weight 'k' by 100%"),
        (np.float32(2.7e-7), "rounding to float16 changes the weight 'k' by 10%"),
    ],
)
def test_weights_that_the_type_does_not_hold_keep_their_nodes_in_float32(weight: np.float32, reason: str) -> None:
    text = "g (float[n,8] x) => (float[n,8] y) { a = MatMul(x, w) [k] b = Div(k, a) y = MatMul(b, v) }"
    outcome = cast(text, {**W, "k": weight}, {"x": normal(4, 8, seed=1, scale=1e3)})
    assert dict(outcome.skipped)["k"] == reason


def test_weights_with_some_elements_near_zero_are_cast() -> None:
    dead = normal(8, 8, seed=4)
    dead[:, :6] *= 1e-12
    outcome = cast("g (float[n,8] x) => (float[n,8] y) { y = MatMul(x, w) }", {"w": dead})
    assert (outcome.changed, outcome.skipped) == (1, [])


def test_tensors_near_zero_keep_their_nodes_in_float32() -> None:
    text = "g (float[n,8] x) => (float[n,8] y) { [a] a = MatMul(x, w) y = MatMul(x, v) [z] z = Add(a, a) }"
    outcome = run_pass(
        CastFp16(),
        onnx_model(text.replace("y)", "y, float[n,8] z)"), {**W, "w": W["w"] * np.float32(1e-5)}),
        data={"search": {"x": X["x"] * np.float32(1e-2)}},
    )
    assert [label for label, _ in outcome.skipped] == ["a", "z"]
    assert "stays below 6e-05, where float16 loses digits" in outcome.skipped[0][1]


@pytest.mark.parametrize("lowest", [np.finfo(np.float32).min, -1e9, -np.inf])
def test_masks_of_huge_values_still_mask(lowest: float) -> None:
    text = """g (float[n,8] x, float[n,8] keep) => (float[n,8] y) {
        q = MatMul(x, w) none = Sub(one, keep) [kept] bias = Mul(none, low)
        scores = Add(q, bias) p = Softmax(scores) y = MatMul(p, v)
    }"""
    weights = {**W, "one": np.float32(1), "low": np.float32(max(lowest, np.finfo(np.float32).min))}
    keep = np.ones((4, 8), np.float32)
    keep[:, 5:] = 0
    keep[3] = 0  # a row without anything to look at stays finite
    inputs = {**X, "keep": keep}
    reference = run_onnx(open_any(onnx_model(text, weights)), inputs)["y"]
    for exclude in ((), ("kept",)):  # the mask is a constant in float16, or comes out of a float32 node
        outcome = cast(text, weights, inputs, exclude=exclude)
        found = run_onnx(outcome.model, inputs)["y"]
        assert np.isfinite(found).all()
        assert relative_error(found[:3], reference[:3]) < 5e-3
        assert ops_of(outcome.model).get("Min", 0) == len(exclude)


def test_the_largest_numbers_round_into_the_type() -> None:
    lowest = np.array([np.finfo(np.float32).min, -np.inf, np.inf, 1.5], np.float32)
    for half in (FLOAT16, BFLOAT16):
        cut = half.largest / 2
        np.testing.assert_allclose(half.round(lowest).astype(np.float64), [-cut, -cut, cut, 1.5], rtol=2**-8)


BRANCHES = """g (float[n,8] x) => (float[n,8] y) {
    a = MatMul(x, w)
    sum = ReduceSum<keepdims = 0>(x)
    c = Greater(sum, zero)
    [if] b = If (c) <
        then_branch = t () => (float[n,8] p) { p = MatMul(a, v) },
        else_branch = e () => (float[n,8] q) { q = Neg(a) }
    >
    y = MatMul(b, w)
}"""


def test_subgraphs_stay_in_float32_and_read_what_they_read() -> None:
    model = open_any(onnx_model(BRANCHES, {**W, "zero": np.float32(0)}))
    outcome = run_pass(CastFp16(), model, data={"search": X})
    assert dict(outcome.skipped)["if"] == "it holds a subgraph, whose values cannot be watched"
    types = onnx.TensorProto
    assert initializers(outcome.model) == {"v": types.FLOAT, "zero": types.FLOAT, "w_float16": types.FLOAT16}
    for sign in (-1, 1):  # one branch each
        inputs = {"x": sign * np.abs(X["x"])}
        assert relative_error(run_onnx(outcome.model, inputs)["y"], run_onnx(model, inputs)["y"]) < 2e-3


def test_casts_inside_give_the_type_at_once() -> None:
    outcome = cast(
        "g (float[n,8] x, int64[n,8] k) => (float[n,8] y, int64[n,8] i)"
        " { f = Cast<to = 1>(k) a = MatMul(x, w) y = Mul(a, f) i = Cast<to = 7>(a) }",
        W,
        {**X, "k": np.arange(32).reshape(4, 8)},
    )
    assert dict(outcome.changes) == {"Cast": "1 in float16", "MatMul": "1 in float16", "Mul": "1 in float16"}
    # x down, y up, and the two there were
    assert ops_of(outcome.model)["Cast"] == 4
    assert [str(spec) for spec in outcome.model.signature.outputs] == ["y=float32[n,8]", "i=int64[n,8]"]


def test_parts_in_float16_already_stay_as_they_are() -> None:
    text = """g (float[n,8] x) => (float[n,8] y) {
        h = Cast<to = 10>(x) a = MatMul(h, w16) f = Cast<to = 1>(a) y = MatMul(f, w)
    }"""
    weights = {"w": W["w"], "w16": W["v"].astype(np.float16)}
    outcome = cast(text, weights)
    assert dict(outcome.changes) == {"Cast": "1 in float16", "MatMul": "1 in float16"}
    again = run_pass(CastFp16(), outcome.model, data={"search": X})
    assert (again.changed, again.notes) == (0, ["nothing to cast: no float32 weights that could be float16"])


def test_sizes_that_an_operator_wants_in_float32_stay() -> None:
    outcome = cast(
        'g (float[n,1,4,4] x) => (float[n,2,8,8] y) { c = Conv(x, k) y = Resize<mode = "linear">(c, , s) }',
        {"k": normal(2, 1, 1, 1), "s": np.array([1, 1, 2, 2], np.float32)},
        {"x": normal(2, 1, 4, 4)},
    )
    assert dict(outcome.changes) == {"Conv": "1 in float16", "Resize": "1 in float16"}
    assert initializers(outcome.model)["s"] == onnx.TensorProto.FLOAT


def test_contrib_operators_are_known_and_others_are_not_touched() -> None:
    model = onnx_model(
        "g (float[n,8] x) => (float[n,8] y) { a = MatMul(x, w) b = com.microsoft.FastGelu(a) y = MatMul(b, v) }",
        W,
        contrib=True,
    )
    outcome = run_pass(CastFp16(), model, data={"search": X})
    assert dict(outcome.changes)["FastGelu"] == "1 in float16"
    assert relative_error(run_onnx(outcome.model, X)["y"], run_onnx(open_any(model), X)["y"]) < 2e-3


def test_constant_nodes_and_functions_are_looked_into() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20, "own" : 1]>
        g (float[n,2] x) => (float[n,2] y) { y = own.twice(x) }
        <domain: "own", opset_import: ["" : 20]>
        twice (a) => (c) { w = Constant<value = float[2,2] {1., 2., 3., 4.}>() b = MatMul(a, w) c = MatMul(b, w) }"""
    )
    outcome = run_pass(CastFp16(), proto, data={"search": {"x": normal(4, 2)}})
    assert outcome.changed == 2
    assert set(initializers(outcome.model).values()) == {onnx.TensorProto.FLOAT16}
    assert [path.name for path in outcome.model.path.parent.iterdir()] == ["model.onnx"]


def test_weights_beside_the_model_are_read_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optkit.model.onnx_file.EXTERNAL_ABOVE", 1000)
    path = fresh_dir() / "model.onnx"
    proto = onnx_model("g (float[n,64] x) => (float[n,64] y) { y = MatMul(x, w) }", {"w": normal(64, 64)})
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin")
    inputs = {"x": normal(4, 64, seed=1)}
    outcome = run_pass(CastFp16(), path, data={"search": inputs})
    assert (outcome.model.path.parent / "model.onnx.data").stat().st_size >= 64 * 64 * 2
    assert relative_error(run_onnx(outcome.model, inputs)["y"], run_onnx(path, inputs)["y"]) < 2e-3
