from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from optkit.passes._fusion.family import Fired
from optkit.passes._fusion.fold import fold
from tests.helpers import normal, onnx_model, ops_of
from tests.passes._fusion.rewritten import assert_same, rewritten

HELD: dict[str, Any] = {name: np.float32(value) for name, value in {"m5": -5, "m1": -1, "six": 6, "seven": 7}.items()}
HELD |= {
    "rows": np.int64([1, 2]),
    "columns": np.int64([2]),
    "scale": normal(3, seed=1),
    "pos": np.float32([1, 2, 3]),
    "eight": normal(8),
}
HELD |= {"w": normal(3, 4, 1, 1, seed=2), "i1": np.int64([1])}
X = {"x": 8 * normal(2, 4, 5, 5)}


def folded(body: str, *, output: str = "float[n,a,b,c] y") -> tuple[Any, Any, Fired]:
    graph = onnx.parser.parse_graph(f"g (float[n,4,5,5] x) => ({output}) {{ {body} }}")
    used = {name for node in graph.node for name in node.input}
    held = {name: array for name, array in HELD.items() if name in used}

    def family(model: Any) -> Fired:
        fold(model)
        return Fired()

    return rewritten(family, onnx_model(f"g (float[n,4,5,5] x) => ({output}) {{ {body} }}", held))


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
