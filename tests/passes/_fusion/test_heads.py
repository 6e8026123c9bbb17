from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from optkit.passes._fusion.family import Fired
from optkit.passes._fusion.heads import drop_idle_reshapes, free_transposes, read_sizes_before_layers, settle_sizes
from tests.helpers import normal, onnx_model, ops_of, run_onnx
from tests.passes._fusion.rewritten import rewritten


def after(step: Callable[[Any], None], proto: onnx.ModelProto) -> Any:
    def family(model: Any) -> Fired:
        step(model)
        return Fired()

    return rewritten(family, proto)[1]


def test_sizes_are_read_before_a_transpose():
    text = """g (float[a,b,c] x) => (float[p,q,r] y, int64[3] all, int64[1] last) {
        t = Transpose<perm = [1,2,0]>(x) s = Shape(t) l = Shape<start = -1>(t) y = Relu(t)
        all = Identity(s) last = Identity(l) }"""
    model = after(free_transposes, onnx_model(text, {}))
    shapes = [node for node in onnx.load(model.path).graph.node if node.op_type == "Shape"]
    assert [list(node.input) for node in shapes] == [["x"], ["x"]]
    found = run_onnx(model, {"x": normal(2, 3, 4)})
    assert (found["all"].tolist(), found["last"].tolist()) == ([3, 4, 2], [2])


def test_reshapes_to_the_shape_that_was():
    text = """g (float[a,8] x, float[b,8] z) => (float[a,8] y, float[c,8] w) {
        r = Reshape(x, apart) s = Reshape(r, whole) y = Relu(s) u = Reshape(z, whole) w = Reshape(u, whole) }"""
    model = after(drop_idle_reshapes, onnx_model(text, {"apart": np.int64([0, 2, 4]), "whole": np.int64([0, 8])}))
    assert ops_of(model) == {"Relu": 1, "Reshape": 1}
    found = run_onnx(model, {"x": normal(3, 8), "z": normal(2, 8)})
    assert (found["y"].shape, found["w"].shape) == ((3, 8), (2, 8))


def test_sizes_that_are_known_are_numbers():
    text = """g (float[a,6] x) => (int64 half, int64 rows, int64[2] all) {
        s = Shape(x) d = Gather(s, last) half = Div(d, two) r = Gather(s, first) rows = Identity(r)
        all = Identity(s) }"""
    values = {"last": np.int64(-1), "first": np.int64(0), "two": np.int64(2)}
    model = after(settle_sizes, onnx_model(text, values))
    assert ops_of(model).get("Div", 0) == 0
    found = run_onnx(model, {"x": normal(5, 6)})
    assert (int(found["half"]), int(found["rows"]), found["all"].tolist()) == (3, 5, [5, 6])


def test_sizes_are_read_before_a_layer_but_the_last():
    text = """g (float[a,b,4] x) => (int64[1] rows, int64 columns, int64[2] two, int64[3] all, int64[1] last) {
        p = MatMul(x, w) l = Add(p, bias) s = Shape<start = 1, end = 2>(l) rows = Identity(s)
        h = Shape(l) columns = Gather(h, i1) two = Gather(h, i01)
        n = Shape(l) all = Identity(n) m = Shape<start = 2, end = 3>(l) last = Identity(m) }"""
    held = {"w": normal(4, 8), "bias": normal(8), "i1": np.int64(1), "i01": np.int64([0, -2])}
    model = after(read_sizes_before_layers, onnx_model(text, held))
    shapes = [node for node in onnx.load(model.path).graph.node if node.op_type == "Shape"]
    assert [list(node.input) for node in shapes] == [["x"], ["x"], ["l"], ["l"]]
    found = run_onnx(model, {"x": normal(2, 3, 4)})
    assert {name: array.tolist() for name, array in found.items()} == {
        "rows": [3],
        "columns": 3,
        "two": [2, 3],
        "all": [2, 3, 8],
        "last": [8],
    }
