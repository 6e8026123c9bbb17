"""Layers of a model as the budget sees them: built again and again, at other precisions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx

from optkit.model.target import Target
from optkit.passes._quant import integer
from optkit.passes._quant.layered import Layered
from optkit.passes.quantize_dynamic import QuantizeDynamic
from tests.helpers import fresh_dir, normal, onnx_model, open_any, ops_of, relative_error, run_onnx, run_pass

MLP = """mlp (float[batch,32] x) => (float[batch,32] y) {
    [first] m = MatMul(x, w)
    r = Relu(m)
    [second] n = MatMul(r, v)
    [third] y = MatMul(n, v)
}"""
HELD = {"w": normal(32, 32, seed=1), "v": normal(32, 32, seed=2, scale=0.2)}
X = {"x": normal(8, 32, seed=5)}


def layers_of(model: Any, **options: Any) -> Layered:
    ctx: Any = SimpleNamespace(workdir=fresh_dir(), target=Target(threads=1))
    return QuantizeDynamic(**options).layered(open_any(model), ctx)


def test_layers_are_named_with_their_outputs():
    found = layers_of(onnx_model(MLP, HELD))
    assert dict(found.layers) == {"first": "m", "second": "n", "third": "y"}
    assert found.ladder == ("int8", "float32")


def test_building_again_gives_the_same_and_changes_nothing():
    found = layers_of(onnx_model(MLP, HELD))
    before = found.model.path.read_bytes()
    first, second = found.build({}), found.build({})
    assert first.model.path.parent != second.model.path.parent
    assert first.model.path.read_bytes() == second.model.path.read_bytes()
    assert found.model.path.read_bytes() == before
    assert [where for where, _ in second.changes] == ["first", "second", "third"]


def test_layers_given_back_are_float_to_the_last_bit():
    model = onnx_model(MLP, HELD)
    found = layers_of(model)
    built = found.build({"first": "float32"})
    assert [where for where, _ in built.changes] == ["second", "third"]
    assert (ops_of(built.model)["MatMul"], ops_of(built.model)["MatMulInteger"]) == (1, 2)
    reference = onnx.load(found.model.path)
    reference.graph.output.append(onnx.ValueInfoProto(name="m"))
    inner = onnx.load(built.model.path)
    inner.graph.output.append(onnx.ValueInfoProto(name="m"))
    np.testing.assert_array_equal(*(run_onnx(open_path(each), X)["m"] for each in (reference, inner)))
    everything = found.build(dict.fromkeys(found.layers, "float32"))
    assert (everything.changes, everything.notes) == ([], [])
    np.testing.assert_array_equal(run_onnx(everything.model, X)["y"], run_onnx(found.model, X)["y"])


def open_path(proto: onnx.ModelProto) -> Any:
    path = fresh_dir() / "inner.onnx"
    onnx.save(proto, path)
    return path


def test_a_weight_is_rounded_once_for_all_that_is_built(monkeypatch):
    rounded = []
    real = integer.quantize_weights

    def counted(weights: Any, **options: Any) -> Any:
        rounded.append(weights.shape)
        return real(weights, **options)

    monkeypatch.setattr(integer, "quantize_weights", counted)
    found = layers_of(onnx_model(MLP, HELD))
    assert rounded == []
    found.build({})
    found.build({"second": "float32"})
    assert len(rounded) == 2


def test_names_used_twice_make_labels_of_their_own():
    text = (
        "g (bool c, float[n,32] x) => (float[n,32] y) { [same] m = MatMul(x, w) k = Relu(m) y = If(c)"
        " <then_branch = t () => (float[n,32] a) { [same] a = MatMul(k, w) },"
        " else_branch = e () => (float[n,32] b) { [same] b = MatMul(k, v) }> }"
    )
    model = onnx_model(text, HELD)
    found = layers_of(model)
    assert dict(found.layers) == {"same": "m", "same -> a": "y", "same -> b": "y"}
    built = found.build({"same": "float32", "same -> b": "float32"})
    assert [where for where, _ in built.changes] == ["same -> a"]
    assert ops_of(built.model)["MatMulInteger"] == 1
    outputs = [run_onnx(built.model, X | {"c": np.array(which)})["y"] for which in (True, False)]
    expected = [run_onnx(found.model, X | {"c": np.array(which)})["y"] for which in (True, False)]
    assert 0 < relative_error(outputs[0], expected[0]) < 0.02
    np.testing.assert_array_equal(outputs[1], expected[1])


def test_the_float_model_has_every_tensor_that_is_named():
    """Functions are inlined and opsets raised in what is built; so they are in what it is compared with."""
    old = onnx_model("g (float[n,32] x) => (float[n,32] y) { m = MatMul(x, w) y = Relu(m) }", {"w": HELD["w"]}, opset=9)
    found = layers_of(old)
    assert onnx.load(found.model.path).opset_import[0].version == 11
    np.testing.assert_array_equal(run_onnx(found.model, X)["y"], run_onnx(open_any(old), X)["y"])
    folder = run_pass(QuantizeDynamic(), old).model.path.parents[1]
    assert [path.name for path in folder.iterdir()] == ["int8-0"], "the float model is not kept"


def test_optional_inputs_are_told_where_they_were_frozen_only():
    frozen = "input 'w' has a default value and can no longer be overridden"
    model = onnx_model("g (float[n,32] x, float[32,32] w) => (float[n,32] y) { y = MatMul(x, w) }", {"w": HELD["w"]})
    assert frozen in run_pass(QuantizeDynamic(), model).notes
    assert frozen not in run_pass(QuantizeDynamic(ops=("Gemm",)), model).notes


def test_a_quantized_model_is_told_as_that():
    once = run_pass(QuantizeDynamic(), onnx_model(MLP, HELD))
    again = run_pass(QuantizeDynamic(), once.model)
    assert again.changed == 0
    assert again.notes[-1] == (
        "nothing to quantize: no MatMul, Gemm, LSTM or Attention with constant float32 weights;"
        " the model holds quantized operators already: 3 DynamicQuantizeLinear, 3 MatMulInteger"
    )


def test_the_float_rest_of_a_quantized_model_is_quantized_with_a_note():
    part = run_pass(QuantizeDynamic(exclude=("first",)), onnx_model(MLP, HELD))
    rest = run_pass(QuantizeDynamic(), part.model)
    assert [where for where, _ in rest.changes] == ["first"]
    told = "the model holds quantized operators already: 2 DynamicQuantizeLinear, 2 MatMulInteger"
    assert told in rest.notes
