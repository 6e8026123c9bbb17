from __future__ import annotations

import numpy as np
import onnx

from optkit.passes._fusion.family import Fired
from optkit.passes._fusion.subnormal import SMALLEST, flush_subnormal
from optkit.passes._ir import load_ir, save_ir
from tests.helpers import fresh_dir, normal, onnx_model, open_any, run_onnx

TEXT = "g (float[n,8] x) => (float[n,8] y, double[n,8] z) { y = MatMul(x, w) d = Cast<to = 11>(x) z = Mul(d, tiny) }"


def test_values_that_slow_a_processor_down_become_zeros() -> None:
    weight = normal(8, 8)
    weight[2], weight[3, 3], weight[5] = 1e-40, -1e-31, 2e-30
    before = open_any(onnx_model(TEXT, {"w": weight, "tiny": np.full(8, 1e-40)}))
    graph, path = load_ir(before.path), fresh_dir() / "model.onnx"
    assert flush_subnormal(graph) == Fired(1)
    save_ir(graph, path)
    held = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
    expected = weight.copy()
    expected[2], expected[3, 3] = 0, 0
    np.testing.assert_array_equal(held["w"], expected)
    assert held["tiny"][0] == 1e-40, "float64 has no such numbers there"
    inputs = {"x": normal(3, 8, seed=1)}
    np.testing.assert_allclose(run_onnx(open_any(path), inputs)["y"], run_onnx(before, inputs)["y"], rtol=0, atol=1e-29)


def test_ordinary_weights_stay_the_very_same() -> None:
    weight = np.array([[0.0, SMALLEST], [-SMALLEST, 1.0]], np.float32)
    graph = load_ir(open_any(onnx_model("g (float[n,2] x) => (float[n,2] y) { y = MatMul(x, w) }", {"w": weight})).path)
    held = graph.graph.initializers["w"].const_value
    assert flush_subnormal(graph) == Fired(0)
    assert graph.graph.initializers["w"].const_value is held


def test_numbers_that_keep_something_finite_stay() -> None:
    text = "g (float[n,8] x) => (float[n,8] y) { m = MatMul(x, w) a = Abs(m) c = Max(a, tiny) y = Log(c) }"
    before = open_any(onnx_model(text, {"w": normal(8, 8), "tiny": np.full(8, 1.2e-38, np.float32)}))
    graph = load_ir(before.path)
    assert flush_subnormal(graph) == Fired(0)


def test_a_weight_that_is_read_elsewhere_too_stays() -> None:
    weight = normal(8, 8)
    weight[2] = 1e-40
    text = "g (float[n,8] x) => (float[n,8] y, float[8,8] z) { y = MatMul(x, w) z = Reciprocal(w) }"
    assert flush_subnormal(load_ir(open_any(onnx_model(text, {"w": weight})).path)) == Fired(0)
