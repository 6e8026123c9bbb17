"""Weights that onnxruntime packs away are put back into the inputs of a node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from optkit.bench.events import Event
from optkit.bench.optimized import Definition, Structure, aligned, complete, read_optimized, save_optimized
from optkit.bench.work import Tensor
from tests.helpers import normal, onnx_model

W = Tensor("float32", (4, 3), constant=True)
B = Tensor("float32", (3,), constant=True)
X = Tensor("float32", (2, 4))
SEEN_B = Tensor("float32", (3,))


def test_packed_weights_are_put_back_where_they_belong():
    assert aligned(["x", W, B], [X, SEEN_B]) == [X, W, B]
    assert aligned(["x", W, B], [X]) == [X, W, B]
    assert aligned(["x", W, None, B], [X, Tensor("float32", (4, 3)), SEEN_B]) == [X, W, None, B]


def test_what_does_not_fit_is_said_to_be_unknown():
    assert aligned(["x", W], []) is None  # an activation that was not seen
    assert aligned(["x", W], [X, SEEN_B]) is None  # an input that the definition has not
    assert aligned(["x", "y"], [X]) is None


def test_nodes_without_names_are_told_apart_by_their_order():
    other = Tensor("float32", (4, 5), constant=True)
    structure = Structure({("", "MatMul"): [Definition(("x", W), {}), Definition(("x", other), {"a": 1})]})
    events = [Event(f"MatMul_{index}", "MatMul", 0, 1, inputs=(X,), index=index) for index in (7, 3)]
    assert complete(structure, events) == [([X, W], {}), ([X, other], {"a": 1})]
    assert complete(structure, events[:1]) == [None]  # either of the two
    same = Structure({("", "MatMul"): [Definition(("x", W), {}), Definition(("y", W), {})]})
    assert complete(same, events[:1]) == [([X, W], {})]
    assert complete(structure, [Event("n", "Relu", 0, 1, inputs=(X,))]) == [None]


def test_the_optimized_graph_is_read_without_its_weights(tmp_path: Path):
    text = "g (float[batch,4] x) => (float[batch,3] y) { h = MatMul(x, w) s = Add(h, b) y = Relu(s) }"
    model = onnx_model(text, {"w": normal(4, 3), "b": normal(3)}, opset=13)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    save_optimized(options, tmp_path)
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = read_optimized(tmp_path)
    assert not found.repeats and 1 <= found.nodes <= 3
    weights = {each for nodes in found.named.values() for node in nodes for each in node.inputs}
    assert {W, B} <= weights
    assert sum(file.stat().st_size for file in tmp_path.iterdir() if file.is_file()) < 4000
    assert read_optimized(tmp_path / "nothing") == Structure()


def test_loops_are_noticed(tmp_path: Path):
    text = """g (float[4] x, int64 n, bool c) => (float[4] y) {
        y = Loop(n, c, x) <body = b (int64 i, bool go, float[4] v) => (bool more, float[4] w)
        { more = Identity(go) w = Add(v, v) }>
    }"""
    options = ort.SessionOptions()
    save_optimized(options, tmp_path)
    session = ort.InferenceSession(onnx_model(text).SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"x": np.ones(4, np.float32), "n": np.array(3), "c": np.array(True)}
    np.testing.assert_array_equal(session.run(None, feeds)[0], np.full(4, 8, np.float32))
    assert read_optimized(tmp_path).repeats
