from __future__ import annotations

import numpy as np
import pytest

from optkit.passes._fusion.apply import apply_rules, refusals, together
from optkit.passes._fusion.bias_gelu import fuse_bias_gelu
from optkit.passes._fusion.family import Fired
from optkit.passes._fusion.gelu import fuse_gelu
from optkit.passes._ir import load_ir, save_ir
from tests.helpers import fresh_dir, normal, onnx_model, open_any, ops_of
from tests.passes._fusion.rewritten import assert_same, rewritten

GELU = "d = Div(x, root) e = Erf(d) p = Add(e, one) m = Mul(x, p) y = Mul(m, half)"
VALUES = {"root": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5)}
SHARED = "an inner value is needed elsewhere"


@pytest.mark.parametrize(
    "text",
    [
        f"g (float[n,8] x) => (float[n,8] y, float[n,8] p) {{ {GELU} }}",
        f"g (float[n,8] x) => (float[n,8] y, float[n,8] z) {{ {GELU} z = Relu(e) }}",
    ],
)
def test_inner_values_that_are_outputs_or_read_elsewhere_are_left_with_the_reason(text: str):
    before, after, fired = rewritten(fuse_gelu, onnx_model(text, VALUES))
    assert fired == Fired(0, (("Mul -> y", SHARED),))
    assert ops_of(after) == ops_of(before)


def test_a_place_that_a_second_rule_takes_is_not_refused():
    text = "g (float[n,8] x) => (float[n,8] y) { a = Add(bias, x) y = Gelu(a) }"
    before, after, fired = rewritten(fuse_bias_gelu, onnx_model(text, {"bias": normal(8)}))
    assert fired == Fired(1)
    assert_same(after, before, {"x": normal(3, 8, seed=1)}, 1e-6)


def test_asking_for_refusals_changes_nothing():
    from optkit.passes._fusion.gelu import _rules

    model = open_any(onnx_model(f"g (float[n,8] x) => (float[n,8] y) {{ {GELU} }}", VALUES))
    graph, path = load_ir(model.path), fresh_dir() / "model.onnx"
    assert refusals(graph, _rules()) == ()
    save_ir(graph, path)
    assert ops_of(path) == ops_of(model)
    assert apply_rules(graph, _rules()) == Fired(1)


def test_parts_add_up():
    assert together(Fired(2, (("a", "why"),)), Fired(1), Fired(0, (("b", "how"),))) == Fired(
        3, (("a", "why"), ("b", "how"))
    )


BRANCHES = """g (bool c, float[n,8] x) => (float[n,8] y) {
    y = If<
        then_branch = t () => (float[n,8] y1) {
            d = Div(x, root) e = Erf(d) p = Add(e, one) m = Mul(x, p) y1 = Mul(m, half) },
        else_branch = f () => (float[n,8] y2) {
            r = Div(x, other) s = Erf(r) t = Add(s, one) u = Mul(x, t) y2 = Mul(u, half) }
    >(c)
}"""


def test_branches_are_rewritten_too():
    proto = onnx_model(BRANCHES, VALUES | {"other": np.float32(1.5)})
    before, after, fired = rewritten(fuse_gelu, proto)
    assert fired.count == 1
    counts = ops_of(after)
    assert (counts["com.microsoft.Gelu"], counts["Erf"]) == (1, 1)
    for chosen in (True, False):
        assert_same(after, before, {"c": np.array(chosen), "x": normal(3, 8)}, 1e-6)


def test_the_body_of_a_loop_is_rewritten_too():
    text = f"""g (int64 times, bool go, float[n,8] x0) => (float[n,8] last) {{
        last = Loop<body = b (int64 i, bool c, float[n,8] x) => (bool again, float[n,8] y) {{
            again = Identity(c) {GELU} }}>(times, go, x0) }}"""
    before, after, fired = rewritten(fuse_gelu, onnx_model(text, VALUES))
    assert (fired.count, ops_of(after)["com.microsoft.Gelu"]) == (1, 1)
    inputs = {"times": np.array(3), "go": np.array(True), "x0": normal(3, 8)}
    assert_same(after, before, inputs, 1e-6)
