from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from optkit.model.model import Model
from optkit.model.target import Target
from optkit.passes._quant.layered import FLOAT
from optkit.passes.quantize_static import QuantizeStatic
from tests.helpers import normal, onnx_model, open_any, ops_of, relative_error, run_onnx, run_pass, session_of
from tests.passes._quant.static_layers import CNN, FRESH, WEIGHTS, X, array_of, cnn, layered_of

UINT8 = QuantizeStatic(activations="uint8")


def optimized_ops(model: Model, folder: Path) -> dict[str, int]:
    """What onnxruntime makes of it."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(model.path, options, providers=["CPUExecutionProvider"])
    return ops_of(folder / "optimized.onnx")


def inner(model: Model, names: list[str]) -> dict[str, Any]:
    session = session_of(model.path, outputs=names)
    return dict(zip(names, session.run(names, FRESH), strict=True))


def test_everything_runs_as_integer_kernels(tmp_path: Path) -> None:
    layered = layered_of(UINT8, cnn())
    kinds = optimized_ops(layered.build({}).model, tmp_path)
    counts = {kind.removeprefix("com.microsoft."): count for kind, count in kinds.items()}
    assert [counts[f"QLinear{kind}"] for kind in ("Conv", "Add", "GlobalAveragePool")] == [2, 1, 1]
    assert counts["QGemm"] == counts["QuantizeLinear"] == 1  # of x
    assert not {"Relu", "DequantizeLinear", "Conv", "Add"} & set(counts)


def test_tensors_keep_their_names_and_about_their_values() -> None:
    layered = layered_of(UINT8, cnn())
    names = list(layered.layers.values())
    assert names == ["r1", "c2", "r2", "g", "l"]
    reference, found = inner(layered.model, names), inner(layered.build({}).model, names)
    assert all(relative_error(found[name], reference[name]) < 0.05 for name in names)
    assert len(np.unique(found["r1"])) <= 256


@pytest.mark.parametrize("level", ["int16", FLOAT])
def test_each_layer_can_have_its_own_precision(level: str) -> None:
    layered = layered_of(UINT8, cnn())
    reference = run_onnx(layered.model, FRESH)["y"]
    lowest = relative_error(run_onnx(layered.build({}).model, FRESH)["y"], reference)
    errors = {}
    for label in layered.layers:
        errors[label] = relative_error(run_onnx(layered.build({label: level}).model, FRESH)["y"], reference)
    assert min(errors.values()) < lowest and max(errors.values()) < 3 * lowest
    everything = layered.build(dict.fromkeys(layered.layers, level))
    limit = 0 if level == FLOAT else 0.02
    assert relative_error(run_onnx(everything.model, FRESH)["y"], reference) <= limit
    assert len(everything.changes) == (0 if level == FLOAT else 9)


def test_builds_repeat_and_leave_the_float_model_alone() -> None:
    layered = layered_of(UINT8, cnn())
    before = layered.model.path.read_bytes()
    first, second = layered.build({}), layered.build({})
    assert first.model.path != second.model.path
    layered.build({"conv1": FLOAT})
    assert first.model.path.read_bytes() == second.model.path.read_bytes() == layered.build({}).model.path.read_bytes()
    assert layered.model.path.read_bytes() == before


@pytest.mark.parametrize(("opset", "domain"), [(13, "com.microsoft."), (21, "")])
def test_sixteen_bits_in_the_domain_that_has_them(opset: int, domain: str) -> None:
    layered = layered_of(QuantizeStatic(activations="int16"), cnn(opset))
    assert layered.ladder == ("int16", FLOAT)
    made = layered.build({}).model
    assert ops_of(made)[f"{domain}QuantizeLinear"] == 7  # x, r1, p1, c2, r2, g, f
    reference = run_onnx(layered.model, FRESH)["y"]
    eight = run_onnx(layered_of(UINT8, cnn(opset)).build({}).model, FRESH)["y"]
    assert relative_error(run_onnx(made, FRESH)["y"], reference) < 0.5 * relative_error(eight, reference)


def test_the_bias_has_the_scale_of_the_products() -> None:
    made = onnx.load(layered_of(QuantizeStatic(activations="uint8", bias_correction=False), cnn()).build({}).model.path)
    tensors = made.graph.initializer
    scale = array_of(tensors, "x_uint8_scale") * array_of(tensors, "w1_scale")
    np.testing.assert_allclose(array_of(tensors, "conv1_bias_scale"), scale, rtol=1e-6)
    integers = array_of(tensors, "conv1_bias_integers")
    assert integers.dtype == np.int32
    np.testing.assert_allclose(integers * scale, WEIGHTS["b1"], atol=float(scale.max()))


def test_a_bias_far_above_its_products_still_fits() -> None:
    weights = WEIGHTS | {"w1": WEIGHTS["w1"].copy(), "b1": WEIGHTS["b1"].copy()}
    weights["w1"][0] *= 1e-12
    weights["b1"][0] = 3.0
    model = open_any(onnx_model(CNN, weights))
    made = run_pass(UINT8, model, data={"calibration": X}).model
    assert relative_error(run_onnx(made, FRESH)["y"], run_onnx(model, FRESH)["y"]) < 0.05


def test_a_tensor_is_rounded_once_for_all_its_readers() -> None:
    text = """g (float[n,4] x) => (float[n,4] y, float[n,4] z, float[n,4] s)
        { y = MatMul(x, a) z = MatMul(x, b) s = Relu(x) }"""
    model = open_any(onnx_model(text, {"a": normal(4, 4, seed=1), "b": normal(4, 4, seed=2)}))
    data = {"x": normal(64, 4)}
    made = run_pass(UINT8, model, data={"calibration": data}).model
    assert ops_of(made)["QuantizeLinear"] == 1
    # A reader in float takes the tensor as it is.
    np.testing.assert_array_equal(run_onnx(made, data)["s"], np.maximum(data["x"], 0))


def test_pooling_and_moving_share_scale_and_zero_point() -> None:
    made = onnx.load(layered_of(UINT8, cnn()).build({}).model.path)
    quantizers = {node.input[0]: node for node in made.graph.node if node.op_type == "QuantizeLinear"}
    tensors = made.graph.initializer
    for what in (1, 2):
        kept, pooled = (array_of(tensors, quantizers[name].input[what]) for name in ("r1_float", "p1_float"))
        assert kept == pooled


def test_constants_of_additions_become_integers() -> None:
    text = "g (float[n,4,6,6] x) => (float[n,4,6,6] y) { c = Conv(x, w) a = Add(c, k) m = Mul(a, two) y = Conv(m, w) }"
    weights = {"w": normal(4, 4, 1, 1), "k": normal(4, 1, 1, seed=2), "two": np.float32(2)}
    model = open_any(onnx_model(text, weights))
    data = {"x": normal(40, 4, 6, 6)}
    outcome = run_pass(UINT8, model, data={"calibration": data})
    assert [name for name, _ in outcome.changes] == ["Conv_c", "Add_a", "Mul_m", "Conv_y"]
    assert relative_error(run_onnx(outcome.model, data)["y"], run_onnx(model, data)["y"]) < 0.03


def test_graphics_processors_get_symmetric_integers() -> None:
    layered = layered_of(QuantizeStatic(), cnn(), target=Target(provider="tensorrt"))
    made = onnx.load(layered.build({}).model.path)
    zeros = [tensor for tensor in made.graph.initializer if tensor.name.endswith("zero_point")]
    assert {tensor.data_type for tensor in zeros} == {onnx.TensorProto.INT8, onnx.TensorProto.INT32}
    assert not any(onnx.numpy_helper.to_array(tensor).any() for tensor in zeros)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions(groups: int) -> None:
    text = f"g (float[n,4,6,6] x) => (float[n,{3 * groups},8,8] y) {{ y = ConvTranspose<group = {groups}>(x, w, b) }}"
    model = open_any(onnx_model(text, {"w": normal(4, 3, 3, 3), "b": normal(3 * groups, seed=1)}))
    data = {"x": normal(40, 4, 6, 6)}
    outcome = run_pass(QuantizeStatic(activations="uint8", ops=("ConvTranspose",)), model, data={"calibration": data})
    assert outcome.changed == 1
    assert relative_error(run_onnx(outcome.model, data)["y"], run_onnx(model, data)["y"]) < 0.03
