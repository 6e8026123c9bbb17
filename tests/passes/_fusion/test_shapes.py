from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optkit.passes._fusion.shapes import infer_symbolic_shapes, joined
from optkit.passes._ir import load_ir
from tests.helpers import normal, onnx_model, open_any, run_onnx
from tests.passes._fusion.exports import fused
from tests.passes._fusion.heads_text import X, attention
from tests.passes._fusion.rewritten import assert_same


def shapes(text: str, **constants: Any) -> dict[str, str]:
    """Of inner tensors."""
    model = load_ir(open_any(onnx_model(text, constants)).path)
    infer_symbolic_shapes(model)
    return {str(value.name): str(value.shape) for node in model.graph for value in node.outputs}


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((1, 1), 1),
        ((1, "s"), "s"),
        (("s", "s"), "s"),
        (("s", 5), 5),
        (("s", "Min(64, s)"), "s"),
        (("s", "Min(1, s)"), "Broadcast(Min(1, s)|s)"),
        (("t", "Min(64, s)"), "Broadcast(Min(64, s)|t)"),
        (("t", "s", 1), "Broadcast(s|t)"),
    ],
)
def test_dimensions_that_meet(sizes: tuple[int | str, ...], expected: int | str):
    assert joined(sizes) == joined(sizes[::-1]) == expected


@pytest.mark.parametrize("op", ["Add", "Pow", "Max", "Sub"])
def test_sizes_read_from_an_input_are_not_those_they_meet(op: str):
    text = f"""g (float[b,s] x, int64[2] sizes) => (float[p,q] y) {{
        r = Reshape(x, sizes) a = {op}(x, r) c = {op}(a, r) d = Relu(x) e = Relu(a) y = Relu(c) }}"""
    found = shapes(text)
    assert found["d"] == "[b,s]"
    assert "b" not in found["r"][1:-1].split(",") and found["r"] != found["a"] == found["e"]
    assert found["a"].count("Broadcast(") == 2


def test_sizes_that_meet_in_a_product_or_a_concatenation_are_equal():
    text = """g (float[b,s] x, float[8] w, int64[2] sizes) => (float[b,b] y) {
        r = Reshape(w, sizes) t = Concat<axis = 0>(x, r) u = Relu(r) p = MatMul(x, r) y = Identity(p) }"""
    found = shapes(text)
    assert found["u"].endswith(",s]")
    assert found["r"] == found["u"]


@pytest.mark.parametrize("families", [("layout",), ("layout", "attention")])
def test_a_softmax_of_an_addition_that_broadcasts(families: tuple[str, ...]):
    text = "g (float[1,3] x, int64[2] sizes) => (float[p,q] y) { r = Reshape(x, sizes) a = Add(x, r) y = Softmax(a) }"
    before = open_any(onnx_model(text))
    after, _ = fused(before, *families)
    for sizes, shape in (([3, 1], (3, 3)), ([1, 3], (1, 3))):
        inputs = {"x": normal(1, 3), "sizes": np.int64(sizes)}
        assert run_onnx(before, inputs, plain=True)["y"].shape == shape
        assert_same(after, before, inputs, 1e-6)


@pytest.mark.parametrize(
    ("mask", "form"), [("m = Reshape(m0, sizes)", "rows"), ("m = Slice(m0, begin, sizes)", "1,1,5,5")]
)
def test_attention_with_a_mask_whose_sizes_are_an_input(mask: str, form: str):
    inputs = f", float[{form}] m0, int64[4] sizes"
    before = open_any(attention(f"{mask} s = Add(s0, m)", inputs=inputs, begin=np.int64([0, 0, 0, 0])))
    after, _ = fused(before, "attention", "layout")
    for rows, columns in ((5, 5), (1, 5), (5, 1)):
        values = normal(rows * columns) if form == "rows" else normal(1, 1, 5, 5)
        assert_same(after, before, X | {"m0": values, "sizes": np.int64([1, 1, rows, columns])}, 1e-5)
