from __future__ import annotations

import numpy as np
import onnx_ir as ir

from optkit.passes._fusion.masks import fits, highest, known, largest
from optkit.passes._ir import load_ir
from tests.helpers import onnx_model, open_any
from tests.passes._fusion.heads_text import LOWEST

VALUES = {"one": np.float32(1), "zero": np.float32(0), "low": np.float32(LOWEST), "open": np.float32(-np.inf)}


def bounds(body: str, names: str) -> list[tuple[float, float]]:
    """(of absolute values, of values) for each output."""
    outputs = ", ".join(f"float[n] {name}" for name in names.split())
    text = f"g (bool[n] keep, float[n] x) => ({outputs}) {{ {body} }}"
    graph = load_ir(open_any(onnx_model(text, VALUES)).path).graph
    return [(float(largest(value)), float(highest(value))) for value in graph.outputs]


def test_finite_masks():
    """(1 - keep) is at most 2 for all that the bound knows, and twice the lowest number is infinite."""
    body = """near = Where(keep, zero, low) c = Cast<to = 1>(keep) d = Sub(one, c) twice = Mul(d, low)
        sum = Add(near, twice) unknown = Mul(x, one)"""
    inf = np.inf
    found = bounds(body, "near twice sum unknown")
    assert found == [(-LOWEST, 0), (inf, inf), (inf, inf), (inf, inf)]


def test_masks_with_minus_infinity():
    body = """far = Where(keep, zero, open) more = Add(far, one) clipped = Max(far, low) turned = Neg(far)
        unknown = Max(x, low)"""
    found = bounds(body, "far more clipped turned unknown")
    assert found[:3] == [(np.inf, 0), (np.inf, 1), (-LOWEST, 0)]
    assert [high for _, high in found[3:]] == [np.inf, np.inf]


def test_nan_has_no_bound():
    body = "y = Where(keep, zero, bad)"
    text = f"g (bool[n] keep) => (float[n] y) {{ {body} }}"
    graph = load_ir(open_any(onnx_model(text, {"zero": np.float32(0), "bad": np.float32(np.nan)})).path).graph
    assert not np.isfinite(highest(graph.outputs[0]))


def test_masks_that_are_read_twice_are_looked_at_once():
    """64 additions of a value to itself, and as many Max: 2 to the 64th paths."""
    sums = " ".join(f"a{i + 1} = Add(a{i}, a{i})" for i in range(64))
    tops = " ".join(f"b{i + 1} = Max(b{i}, b{i})" for i in range(64))
    body = f"a0 = Where(keep, one, one) {sums} b0 = Where(keep, one, zero) {tops}"
    assert bounds(body, "a64 b64") == [(2.0**64, 2.0**64), (1, 1)]


def value(*shape: int | str | None) -> ir.Value:
    return ir.val("m", ir.DataType.FLOAT, shape)


def test_two_dimensions_without_name_are_not_known_to_be_equal():
    assert value(None, 4).shape == value(None, 4).shape
    assert not known(value(None, 4))
    assert not fits(value(1, 1, 1, None), ir.Shape(["b", 4, "s", None]))
    assert known(value("b", 4))
    assert not known(None)


def test_columns_of_the_mask_fix_dimensions_of_that_name():
    scores = ["b", 4, "s", "s"]
    assert fits(value(1, 4, 5, 5), scores)
    assert not fits(value(1, 4, 5, 5), ["b", 4, "s", "t"])
    assert not fits(value(1, 4, 5, 1), scores)
    assert not fits(value(1, 1, 1, 1, "s"), scores)
    assert not fits(value(), scores)
