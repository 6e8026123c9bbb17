from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from optkit.passes import simplify
from optkit.passes._base import Pass
from optkit.passes.fuse_graph import FuseGraph
from optkit.passes.quantize_dynamic import QuantizeDynamic
from optkit.passes.quantize_static import QuantizeStatic
from optkit.passes.simplify import Simplify
from tests.helpers import fresh_dir, normal, onnx_model, open_any, ops_of, run_onnx, run_pass

CNN = """cnn (float[batch,3,8,8] x, float[batch,1] unread) => (float[batch,4,8,8] y, float[batch,4,8,8] z) {
    c = Conv<pads = [1,1,1,1]>(x, w, b)
    n = BatchNormalization(c, scale, shift, mean, var)
    i = Identity(n)
    y = Relu(i)
    again = Relu(n)
    z = Neg(again)
    dead = Exp(x)
}"""
WEIGHTS = {
    "w": normal(4, 3, 3, 3),
    "b": normal(4, seed=1),
    "scale": np.float32([0.5, 1, 1.5, 2]),
    "shift": normal(4, seed=2),
    "mean": normal(4, seed=3),
    "var": np.float32([1, 2, 3, 4]),
    "unused": normal(7),
}
X = {"x": normal(2, 3, 8, 8, seed=5), "unread": np.zeros((2, 1), np.float32)}


def test_folds_and_drops_what_is_superfluous():
    model = open_any(onnx_model(CNN, WEIGHTS))
    outcome = run_pass(Simplify(), model)
    assert ops_of(outcome.model) == {"Conv": 1, "Relu": 1, "Neg": 1}
    assert dict(outcome.changes) == {
        "BatchNormalization": "1 -> 0",
        "Exp": "1 -> 0",
        "Identity": "1 -> 0",
        "Relu": "2 -> 1",
        "initializers": "7 -> 2",
    }
    assert outcome.changed == 9
    before, after = run_onnx(model, X), run_onnx(outcome.model, X)
    for name in ("y", "z"):
        np.testing.assert_allclose(after[name], before[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize(("ir_version", "told"), [(3, False), (8, True)])
def test_a_default_that_becomes_a_constant_is_told(ir_version: int, told: bool):
    model = onnx_model("g (float[n,4] x) => (float[n,4] y) { i = Identity(x) y = Add(i, b) }", {"b": normal(4)})
    model.graph.input.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [4]))
    model.ir_version = ir_version
    outcome = run_pass(Simplify(), model)
    assert [value.name for value in onnx.load(outcome.model.path).graph.input] == ["x"]
    assert ("input 'b' has a default value and can no longer be overridden" in outcome.notes) == told
    assert run_onnx(outcome.model, {"x": np.zeros((1, 4), np.float32)})["y"].tolist() == [normal(4).tolist()]


@pytest.mark.parametrize("pass_", [QuantizeDynamic(), QuantizeStatic(), FuseGraph()], ids=lambda pass_: pass_.name())
def test_every_pass_tells_of_defaults_that_become_constants(pass_: Pass):
    text = "g (float[n,8] x) => (float[n,8] y) { m = MatMul(x, w) a = Add(m, b) e = Div(a, r) f = Erf(e)"
    text += " o = Add(f, one) g = Mul(a, o) y = Mul(g, half) }"
    numbers = {"r": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    model = onnx_model(text, {"w": normal(8, 8), "b": normal(8), **numbers})
    model.graph.input.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [8]))
    outcome = run_pass(pass_, model, data={"calibration": {"x": normal(40, 8)}})
    assert outcome.changed > 0
    assert "input 'b' has a default value and can no longer be overridden" in outcome.notes


def test_inputs_and_outputs_keep_names_dtypes_and_shapes():
    model = open_any(onnx_model(CNN, WEIGHTS))
    assert run_pass(Simplify(), model).model.signature == model.signature


def test_a_simple_graph_is_left_alone():
    text = "g (float[n,4] x) => (float[n,4] y) { m = MatMul(x, w) y = Relu(m) }"
    outcome = run_pass(Simplify(), onnx_model(text, {"w": normal(4, 4)}))
    assert (outcome.changed, outcome.notes) == (0, ["the graph is as simple as it can be made"])


def test_fixed_shapes_are_computed_in_advance_and_dynamic_ones_are_not():
    text = """g (float[n,6] x, float[2,6] f) => (float[a,b] y, float[12] z) {
        s = Shape(x) y0 = Reshape(x, s) y = Neg(y0)
        t = Shape(f) p = ReduceProd<keepdims = 1>(t) z = Reshape(f, p)
    }"""
    outcome = run_pass(Simplify(), onnx_model(text))
    assert "ReduceProd" not in ops_of(outcome.model)
    for rows in (1, 5):
        inputs = {"x": normal(rows, 6), "f": normal(2, 6)}
        result = run_onnx(outcome.model, inputs)
        np.testing.assert_array_equal(result["y"], -inputs["x"])
        np.testing.assert_array_equal(result["z"], inputs["f"].reshape(-1))


def test_small_constants_are_computed_in_advance_and_large_ones_are_not():
    text = """g (float[n,256] x) => (float[n,256] y) {
        shape = Constant<value = int64[2] {256, 256}>() wide = Expand(w, shape) y = MatMul(x, wide)
    }"""
    model = onnx_model(text, {"w": normal(256)})
    small, large = (run_pass(Simplify(fold_below_mb=limit), model).model for limit in (0.1, 1))
    assert (ops_of(small).get("Expand"), ops_of(large).get("Expand")) == (1, None)
    expected = normal(3, 256) @ np.broadcast_to(normal(256), (256, 256))
    for made in (small, large):
        np.testing.assert_allclose(run_onnx(made, {"x": normal(3, 256)})["y"], expected, rtol=0, atol=2e-4)


def test_weights_in_subgraphs_survive_and_duplicates_go():
    text = (
        "g (bool c, float[n,3] x) => (float[n,3] y) {"
        " y = If(c) <"
        " then_branch = t () => (float[n,3] a) {"
        "  k = Constant<value = float[3] {1, 2, 3}>() i = Identity(x) a = Add(i, k) },"
        " else_branch = e () => (float[n,3] b) { k2 = Constant<value = float[3] {1, 2, 3}>() b = Mul(x, k2) }> }"
    )
    outcome = run_pass(Simplify(), onnx_model(text))
    assert outcome.changed >= 1
    assert "Identity" not in ops_of(outcome.model)
    x, k = normal(4, 3), np.float32([1, 2, 3])
    np.testing.assert_array_equal(run_onnx(outcome.model, {"x": x, "c": np.array(True)})["y"], x + k)
    np.testing.assert_array_equal(run_onnx(outcome.model, {"x": x, "c": np.array(False)})["y"], x * k)


def test_an_input_that_becomes_an_output_keeps_both_names():
    outcome = run_pass(Simplify(), onnx_model("g (float[n,3] x) => (float[n,3] y) { a = Identity(x) y = Identity(a) }"))
    assert outcome.changed == 1
    np.testing.assert_array_equal(run_onnx(outcome.model, {"x": normal(2, 3)})["y"], normal(2, 3))


def test_outputs_that_are_equal_keep_their_names():
    text = "g (float[n,3] x) => (float[n,3] a, float[n,3] b, float[n,3] c) { a = Relu(x) b = Identity(a) c = Relu(x) }"
    model = open_any(onnx_model(text))
    outcome = run_pass(Simplify(), model)
    result = run_onnx(outcome.model, {"x": normal(2, 3)})
    assert list(result) == ["a", "b", "c"]
    for array in result.values():
        np.testing.assert_array_equal(array, np.maximum(normal(2, 3), 0))


def test_a_subgraph_may_give_out_a_value_from_around_it():
    text = (
        "g (bool c, float[n,3] x) => (float[n,3] y) { r = Relu(x)"
        " y = If(c) <then_branch = t () => (float[n,3] a) { a = Identity(r) },"
        " else_branch = e () => (float[n,3] b) { i = Identity(r) b = Neg(i) }> }"
    )
    outcome = run_pass(Simplify(), onnx_model(text))
    assert ops_of(outcome.model)["Identity"] == 1
    expected = np.maximum(normal(2, 3), 0)
    for choice, sign in ((True, 1), (False, -1)):
        result = run_onnx(outcome.model, {"x": normal(2, 3), "c": np.array(choice)})
        np.testing.assert_array_equal(result["y"], sign * expected)


def test_large_models_do_without_onnxslim(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(simplify, "SLIM_BELOW", 10)
    text = "g (float[n,4] x) => (float[n,4] y) { i = Identity(x) y = MatMul(i, w) }"
    outcome = run_pass(Simplify(), onnx_model(text, {"w": normal(4, 4)}))
    assert outcome.changed == 1
    assert outcome.notes[0].startswith("more than 1 GB of weights")


def test_external_data_are_read_and_taken_along(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(simplify, "SLIM_BELOW", 10)
    monkeypatch.setattr("optkit.model.onnx_file.EXTERNAL_ABOVE", 1000)
    path = fresh_dir() / "model.onnx"
    text = "g (float[n,64] x) => (float[n,64] y) { i = Identity(x) y = MatMul(i, w) }"
    onnx.save(onnx_model(text, {"w": normal(64, 64)}), path, save_as_external_data=True, location="weights.bin")
    outcome = run_pass(Simplify(), path)
    assert (outcome.model.path.parent / "model.onnx.data").stat().st_size == 64 * 64 * 4
    np.testing.assert_allclose(
        run_onnx(outcome.model, {"x": normal(2, 64)})["y"], normal(2, 64) @ normal(64, 64), atol=1e-5
    )


def test_onnxslim_failing_is_told_and_survived(monkeypatch: pytest.MonkeyPatch):
    def broken(*args: Any, **kwargs: Any) -> None:
        raise KeyError("shape")

    monkeypatch.setattr("onnxslim.slim", broken)
    outcome = run_pass(Simplify(), onnx_model(CNN, WEIGHTS))
    assert outcome.notes == ["onnxslim failed (KeyError: 'shape'); only onnx-ir's clean-ups were done"]
    assert ops_of(outcome.model) == {"Conv": 1, "BatchNormalization": 1, "Relu": 1, "Neg": 1}


def test_onnxruntime_is_imported_without_telemetry():
    import subprocess
    import sys

    script = (
        "import os, sys; import optkit.passes.simplify; assert 'onnxruntime' not in sys.modules;"
        "import optkit.passes._ir; print(os.environ['ORT_DISABLE_TELEMETRY'], 'onnxruntime' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["1", "False"]


@pytest.mark.parametrize("draw", ["Bernoulli(x)", "RandomNormalLike(x)", "Dropout(x, half, yes)"])
def test_two_draws_stay_two(draw: str):
    text = f"g (float[n,99] x) => (float[n,99] y) {{ i = Identity(x) a = {draw} b = {draw} y = Sub(a, b) }}"
    held = {"half": np.float32(0.5), "yes": np.bool_(True)}
    outcome = run_pass(Simplify(), onnx_model(text, {name: held[name] for name in held if name in draw}))
    assert ops_of(outcome.model) == {draw.split("(", maxsplit=1)[0]: 2, "Sub": 1}
    assert "the graph draws random numbers: without onnxslim, which makes one of two draws" in outcome.notes
    assert run_onnx(outcome.model, {"x": np.full((4, 99), 0.5, np.float32)}, plain=True)["y"].any()
