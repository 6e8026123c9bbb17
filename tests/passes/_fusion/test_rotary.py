from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from optkit.passes._fusion.family import Fired
from optkit.passes._fusion.rotary import fuse_rotary
from optkit.passes._fusion.shapes import know_shapes
from tests.helpers import normal, onnx_model, ops_of
from tests.passes._fusion.exports import assert_equal_outputs, batch_of, exported, fused
from tests.passes._fusion.rewritten import assert_same, rewritten

ANGLES = """u = Unsqueeze(positions, two) p = Cast<to = 1>(u) f = Mul(p, frequencies)
    e = Concat<axis = -1>(f, f) c0 = Cos(e) s0 = Sin(e) c = Unsqueeze(c0, one) s = Unsqueeze(s0, one)"""
TURNED = """a = Slice({x}, zero, {half}, three, one) b = Slice({x}, {half}, end, three, one) n = Neg(b)
    r = Concat<axis = -1>(n, a) left = Mul({x}, c) right = Mul(r, s) t = Add(left, right)"""
NUMBERS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "eight": 8, "end": 2**63 - 1}
VALUES: dict[str, Any] = {name: np.int64([number]) for name, number in NUMBERS.items()}
VALUES["frequencies"] = np.float32([1, 0.1, 0.01, 0.001])
KERNEL = "com.microsoft.RotaryEmbedding"
X = {"x": normal(2, 3, 5, 8, seed=9)}


def rotary(
    positions: str = "batch,seq", *, x: str = "x", half: str = "four", width: int = 8, end: str = "y = Identity(t)"
) -> str:
    start = "" if x == "x" else f"{x} = Slice(x, zero, eight, three, one) "
    body = f"{ANGLES} {start}{TURNED.format(x=x, half=half)} {end}"
    inputs = f"float[batch,3,seq,{width}] x, int64[{positions}] positions"
    return f"g ({inputs}) => (float[batch,3,seq,{width}] y) {{ {body} }}"


def run(text: str, **more: Any) -> tuple[Any, Any, Fired]:
    return rewritten(fuse_rotary, onnx_model(text, VALUES | more))


@pytest.mark.parametrize("rows", [[[0, 1, 2, 3, 4], [7, 3, 3, 99, 1000]], [[-1, -1, 0, 1, 2], [-5, 0, 10**6, 1, 0]]])
def test_a_position_for_each_token(rows: list[list[int]]):
    """Also those that no table could hold, below 0 and very high."""
    before, after, fired = run(rotary())
    assert fired == Fired(1)
    assert ops_of(after)[KERNEL] == 1
    assert "Neg" not in ops_of(after)
    assert_same(after, before, X | {"positions": np.int64(rows)}, 2e-6)


def test_positions_that_all_samples_share():
    before, after, fired = run(rotary("1,seq"))
    assert fired == Fired(1)
    assert "Range" not in ops_of(after)
    assert_same(after, before, X | {"positions": np.int64([[3, 1, 4, -1, 5]])}, 2e-6)


def test_the_first_features_alone():
    text = rotary(x="h", width=12, end="k = Slice(x, eight, end, three, one) y = Concat<axis = -1>(t, k)")
    before, after, fired = run(text)
    assert fired == Fired(1)
    assert ops_of(after).get("Concat", 0) == 0
    inputs = {"x": normal(2, 3, 5, 12, seed=9), "positions": np.arange(10).reshape(2, 5)}
    assert_same(after, before, inputs, 2e-6)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (rotary(half="five"), "x is not being split into two equal halves of size half_head_size."),
        (rotary("1,1"), "there is not one angle for each token"),
        (rotary("other,seq"), "there is not one angle for each token"),
        (rotary("batch,places"), "there is not one angle for each token"),
    ],
)
def test_what_is_not_turned_by_one_angle_for_each_token(text: str, reason: str):
    if "places" in text:
        text = text.replace("=> (float[batch,3,seq,8] y)", "=> (float[batch,3,q,8] y)")
    _, after, fired = run(text)
    assert (fired.count, [why for _, why in fired.refused]) == (0, [reason])
    assert KERNEL not in ops_of(after)


def test_below_opset_15():
    text = rotary("1,seq")
    proto = onnx_model(text, VALUES, opset=14)
    before, after, fired = rewritten(fuse_rotary, proto)
    assert [why for _, why in fired.refused] == ["below opset 15"]
    assert ops_of(after)["Neg"] == ops_of(before)["Neg"]


def test_it_is_done_before_heads_are_split():
    text = rotary("1,seq").replace("float[batch,3,seq,8] x", "float[batch,seq,24] rows")
    text = text.replace("u = Unsq", "h = Reshape(rows, heads) x = Transpose<perm = [0,2,1,3]>(h) u = Unsq")
    before, after, fired = rewritten(
        lambda model: (know_shapes(model), fuse_rotary(model))[1],
        onnx_model(text, VALUES | {"heads": np.int64([0, 0, 3, 8])}),
    )
    assert fired == Fired(1)
    names = {node.output[0]: node for node in onnx.load(after.path).graph.node}
    turned = next(node for node in names.values() if node.op_type == "RotaryEmbedding")
    assert names[turned.input[0]].op_type == "Reshape"
    assert_same(after, before, {"rows": normal(2, 5, 24), "positions": np.arange(5)[None]}, 2e-6)


@pytest.mark.parametrize(("kind", "exporter"), [("llama", "dynamo"), ("llama", "torchscript"), ("neox", "torchscript")])
def test_transformers_of_both_exporters(kind: str, exporter: str):
    """Queries and keys; attention is recognized behind them, see test_attention.py."""
    model = exported(kind, exporter, "sdpa")
    after, fired = fused(model, "rotary")
    assert fired["rotary"] == Fired(2)
    assert ops_of(after)[KERNEL] == 2
    assert "Neg" not in ops_of(after)
    assert_equal_outputs(after, model, batch_of(model), 1e-5)
