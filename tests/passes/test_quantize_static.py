from __future__ import annotations

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from optkit.errors import PassError, RecipeError
from optkit.model.machine import machine
from optkit.model.target import Target
from optkit.passes.quantize_static import QuantizeStatic
from optkit.recipe.load import load_recipe
from tests.helpers import MemoryData, normal, onnx_model, open_any, ops_of, relative_error, run_onnx, run_pass
from tests.passes._quant import static_layers
from tests.passes._quant.static_layers import FRESH, layered_of
from tests.passes._quant.static_layers import X as DATA

CNN = """cnn (float[batch,3,16,16] x) => (float[batch,10] y) {
    [conv1] c1 = Conv<pads = [1,1,1,1]>(x, w1, b1)
    [relu1] r1 = Relu(c1)
    [conv2] c2 = Conv<pads = [1,1,1,1]>(r1, w2, b2)
    [skip] s = Add(c2, r1)
    [relu2] r2 = Relu(s)
    [pool] g = GlobalAveragePool(r2)
    [flat] f = Flatten(g)
    [head] l = Gemm(f, w3, b3)
    [soft] y = Softmax(l)
}"""
WEIGHTS = {**static_layers.WEIGHTS, "b2": normal(8, seed=4, scale=0.1)}
X86 = pytest.mark.skipif(not machine().is_x86, reason="uint8 activations are chosen on x86 only")


def stored(model, data_type):
    return [tensor for tensor in onnx.load(model.path).graph.initializer if tensor.data_type == data_type]


@X86
def test_quantizes_a_cnn_within_five_percent():
    model = open_any(onnx_model(CNN, WEIGHTS))
    outcome = run_pass(QuantizeStatic(), model, data={"calibration": DATA})
    assert {name for name, _ in outcome.changes} >= {"conv1", "conv2", "skip", "pool", "head"}
    assert "soft" not in dict(outcome.changes)
    assert "activations uint8, weights int8" in outcome.notes
    weights = stored(outcome.model, onnx.TensorProto.INT8)
    assert {tuple(weight.dims) for weight in weights} >= {(8, 3, 3, 3), (8, 8, 3, 3), (8, 10)}
    assert relative_error(run_onnx(outcome.model, FRESH)["y"], run_onnx(model, FRESH)["y"]) < 0.05
    assert outcome.model.signature == model.signature


def test_a_row_does_not_depend_on_its_batch():
    outcome = run_pass(QuantizeStatic(), onnx_model(CNN, WEIGHTS), data={"calibration": DATA})
    whole = run_onnx(outcome.model, FRESH)["y"]
    alone = run_onnx(outcome.model, {"x": FRESH["x"][3:4]})["y"]
    np.testing.assert_array_equal(whole[3:4], alone)


def test_onnxruntime_runs_it_as_integer_kernels(tmp_path):
    import onnxruntime as ort

    outcome = run_pass(QuantizeStatic(), onnx_model(CNN, WEIGHTS), data={"calibration": DATA})
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(outcome.model.path, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert kinds.count("QLinearConv") == 2
    assert {"QLinearAdd", "QLinearGlobalAveragePool", "QGemm"} <= set(kinds)
    assert "DequantizeLinear" not in kinds


ATTENTION = """g (float[batch,8,32] x) => (float[batch,8,16] y) {
    [query] q = MatMul(x, w1)
    [key] k = MatMul(x, w2)
    t = Transpose<perm = [0,2,1]>(k)
    [scores] s = MatMul(q, t)
    p = Softmax(s)
    [mix] m = MatMul(p, x)
    a = Add(m, x)
    [out] y = MatMul(a, w3)
}"""
ATTENTION_WEIGHTS = {
    "w1": normal(32, 16, seed=1, scale=0.1),
    "w2": normal(32, 16, seed=2, scale=0.1),
    "w3": normal(32, 16, seed=3),
}


def test_attention_keeps_all_but_weight_matmuls_in_float():
    model = open_any(onnx_model(ATTENTION, ATTENTION_WEIGHTS))
    x = {"x": normal(32, 8, 32)}
    outcome = run_pass(QuantizeStatic(), model, data={"calibration": x})
    assert [name for name, _ in outcome.changes] == ["query", "key", "out"]
    assert [name for name, _ in outcome.skipped] == ["scores", "mix"]
    # Two activations are quantized, x once for both its readers; results of MatMul are not.
    assert ops_of(outcome.model)["QuantizeLinear"] == 2
    assert relative_error(run_onnx(outcome.model, x)["y"], run_onnx(model, x)["y"]) < 0.02


def test_arithmetic_on_shapes_is_left_alone():
    text = """g (float[n,3,8,8] x) => (float[n,4,36] y) {
        c = Conv(x, w) s = Shape(c) two = Constant<value = int64[1] {2}>() i = Constant<value = int64[1] {0}>()
        head = Slice(s, i, two) m = Mul(two, two) tail = Add(m, rest) shape = Concat<axis = 0>(head, tail)
        y = Reshape(c, shape) }"""
    model = open_any(onnx_model(text, {"w": normal(4, 3, 3, 3), "rest": np.int64([32])}))
    x = {"x": normal(40, 3, 8, 8)}
    outcome = run_pass(QuantizeStatic(), model, data={"calibration": x})
    assert [name for name, _ in outcome.changes] == ["Conv_c", "Reshape_y"]
    assert relative_error(run_onnx(outcome.model, x)["y"], run_onnx(model, x)["y"]) < 0.02


def test_recurrence_in_a_subgraph_counts_for_the_choice_of_operators():
    import onnx_ir as ir

    from optkit.passes._quant.operators import LINEAR, auto_ops

    text = """g (float[2,3,8] x, bool c) => (float[2,4,6] y) { k = Conv(x, w)
        y = If(c) <then_branch = t () => (float[2,4,6] a) { a = LayerNormalization(k, s) },
        else_branch = e () => (float[2,4,6] b) { b = Relu(k) }> }"""
    model = onnx_model(text, {"w": normal(4, 3, 3), "s": normal(6)})
    assert auto_ops(ir.from_proto(model)) == LINEAR


def test_ops_and_exclude_narrow_the_choice():
    model = onnx_model(CNN, WEIGHTS)
    outcome = run_pass(QuantizeStatic(ops=("Conv",), exclude=("conv1", "nope")), model, data={"calibration": DATA})
    assert [name for name, _ in outcome.changes] == ["conv2"]
    assert outcome.skipped[0] == ("conv1", "excluded")
    assert "exclude 'nope' matches no node" in outcome.notes


def test_nothing_to_quantize_says_what_is_there():
    model = onnx_model("g (float[n,4] x) => (float[n,4] y) { y = Exp(x) }")
    outcome = run_pass(QuantizeStatic(), model, data={"calibration": {"x": normal(40, 4)}})
    assert outcome.changed == 0
    assert outcome.notes == ["nothing to quantize: no quantizable MatMul, Gemm; the model has 1 Exp"]


def test_everything_excluded_is_told_as_that():
    model = onnx_model(ATTENTION, ATTENTION_WEIGHTS)
    outcome = run_pass(QuantizeStatic(exclude=(".*",)), model, data={"calibration": {"x": normal(32, 8, 32)}})
    assert outcome.changed == 0
    assert outcome.notes == [
        "nothing to quantize: 5 nodes are excluded, and there is no quantizable MatMul, Gemm besides"
    ]


def test_operators_are_those_onnxruntime_knows():
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    known = set(QDQRegistry) | set(QLinearOpsRegistry)
    ours = set(QuantizeStatic.model_json_schema()["properties"]["ops"]["items"]["enum"])
    assert known - ours == {"EmbedLayerNormalization"} and ours <= known
    with pytest.raises(ValidationError, match="'Conv'"):
        QuantizeStatic(ops=("Conf",))


def test_a_mistyped_operator_is_corrected(tmp_path):
    (tmp_path / "r.yaml").write_text("version: 1\nname: r\npasses:\n  - quantize-static: {ops: [Conv, Matmul]}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(tmp_path / "r.yaml"))
    assert "Matmul" in caught.value.message and caught.value.fix == "did you mean 'MatMul'?"


def test_activation_type_follows_the_target():
    model = onnx_model(CNN, WEIGHTS)
    for pass_, target in ((QuantizeStatic(activations="int8"), Target()), (QuantizeStatic(), Target(provider="cuda"))):
        outcome = run_pass(pass_, model, data={"calibration": DATA}, target=target)
        assert "activations int8, weights int8" in outcome.notes
        assert stored(outcome.model, onnx.TensorProto.UINT8) == []


def test_seven_bits_on_request():
    model = onnx_model(CNN, WEIGHTS)
    outcome = run_pass(QuantizeStatic(reduce_range=True), model, data={"calibration": DATA})
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in stored(outcome.model, onnx.TensorProto.INT8)]
    assert max(int(np.abs(array.astype(int)).max()) for array in weights) == 64


def test_percentile_beats_minmax_with_an_outlier():
    model = open_any(onnx_model(CNN, WEIGHTS))
    spoiled = {"x": DATA["x"].copy()}
    spoiled["x"][0, 0, 0, 0] = 500
    reference = run_onnx(model, FRESH)["y"]
    errors = {
        calibration: relative_error(
            run_onnx(
                run_pass(QuantizeStatic(calibration=calibration), model, data={"calibration": spoiled}).model, FRESH
            )["y"],
            reference,
        )
        for calibration in ("minmax", "percentile")
    }
    assert errors["percentile"] < 0.1 < errors["minmax"]


def test_poor_calibration_data_are_told():
    model = onnx_model(CNN, WEIGHTS)
    constant = MemoryData("calibration", {"x": np.zeros((4, 3, 16, 16), np.float32)}, synthetic=True)
    notes = run_pass(QuantizeStatic(), model, data={"calibration": constant}).notes
    assert "only 4 calibration samples: ranges may be too narrow, as extremes are rare; 32 to 500 are usual" in notes
    assert "the calibration data are synthetic: ranges are guesses" in notes


def test_constant_calibration_data_are_told():
    """Activations still have ranges: channels differ, and so do borders."""
    same, told = np.ones((40, 3, 16, 16), np.float32), "the calibration data are constant: all 40 samples are the same"
    for data, constant in ((0.5 * same, True), (same * normal(3, 16, 16), True), (normal(40, 3, 16, 16), False)):
        notes = run_pass(QuantizeStatic(), onnx_model(CNN, WEIGHTS), data={"calibration": {"x": data}}).notes
        assert any(note.startswith(told) for note in notes) == constant


def test_infinite_activations_are_an_error_that_names_the_tensor():
    model = onnx_model("g (float[n,4] x) => (float[n,4] y) { e = Log(x) y = MatMul(e, w) }", {"w": normal(4, 4)})
    with pytest.raises(PassError, match="tensor 'e' becomes infinite"):
        run_pass(QuantizeStatic(), model, data={"calibration": {"x": np.zeros((4, 4), np.float32)}})


def test_unfolded_batch_normalization_is_told():
    text = """g (float[n,3,8,8] x) => (float[n,4,6,6] y)
        { c = Conv(x, w) y = BatchNormalization(c, one, zero, zero, one) }"""
    weights = {"w": normal(4, 3, 3, 3), "one": np.ones(4, np.float32), "zero": np.zeros(4, np.float32)}
    outcome = run_pass(QuantizeStatic(), onnx_model(text, weights), data={"calibration": {"x": normal(32, 3, 8, 8)}})
    assert "1 BatchNormalization after Conv stay in float: put simplify before this pass" in outcome.notes


def test_old_opsets_are_raised():
    model = onnx_model("g (float[n,4] x) => (float[n,4] y) { y = MatMul(x, w) }", {"w": normal(4, 4)}, opset=11)
    outcome = run_pass(QuantizeStatic(), model, data={"calibration": {"x": normal(40, 4)}})
    assert outcome.changed == 1
    assert {entry.domain: entry.version for entry in onnx.load(outcome.model.path).opset_import}[""] == 13


def test_only_what_is_included_is_quantized():
    pass_ = QuantizeStatic(include=("conv.", "head", "soft", "nope"), exclude=("conv2",))
    outcome = run_pass(pass_, onnx_model(CNN, WEIGHTS), data={"calibration": DATA})
    assert [name for name, _ in outcome.changes] == ["conv1", "head", "soft"]
    assert dict(outcome.skipped) == {"conv2": "excluded"}
    assert "include 'nope' matches no node" in outcome.notes


def test_what_feeds_softmax_is_kept_in_float_and_told():
    text = """g (float[n,4,6,6] x) => (float[n,4,6,6] y)
        { [one] a = Conv(x, w) [two] b = Conv(x, v) [sum] s = Add(a, b) y = Softmax(s) }"""
    model = onnx_model(text, {"w": normal(4, 4, 1, 1, seed=1), "v": normal(4, 4, 1, 1, seed=2)})
    outcome = run_pass(QuantizeStatic(), model, data={"calibration": {"x": normal(40, 4, 6, 6)}})
    assert [name for name, _ in outcome.changes] == ["one", "two"]
    assert outcome.skipped == [("sum", "it feeds Softmax, in float")]


def test_a_quantized_model_is_refused_with_the_reason():
    first = run_pass(QuantizeStatic(), onnx_model(CNN, WEIGHTS), data={"calibration": DATA}).model
    outcome = run_pass(QuantizeStatic(), first, data={"calibration": DATA})
    assert (outcome.changed, outcome.model) == (0, first)
    assert "the model holds quantized operators already: " in outcome.notes[-1]


def test_inputs_beyond_what_calibration_saw_are_told():
    model = onnx_model(CNN, WEIGHTS)
    data = {"calibration": DATA, "search": {"x": 3 * FRESH["x"]}}
    notes = layered_of(QuantizeStatic(repair=True), model, data).notes
    assert any(note.startswith("'x' reaches from -") and "on the split search" in note for note in notes)
    narrow = layered_of(QuantizeStatic(repair=True), model, {**data, "search": {"x": FRESH["x"] / 8}}).notes
    assert any(note.startswith("'x' reaches from -") and "integers are never used" in note for note in narrow)
    same = layered_of(QuantizeStatic(repair=True), model, {**data, "search": FRESH}).notes
    assert not any("reaches from" in note for note in same)


def test_bias_correction_brings_a_coarse_network_nearer():
    model = open_any(onnx_model(CNN, WEIGHTS))
    reference = run_onnx(model, FRESH)["y"]
    errors = []
    for corrected in (True, False):
        coarse = QuantizeStatic(per_channel=False, reduce_range=True, bias_correction=corrected)
        made = run_pass(coarse, model, data={"calibration": DATA}).model
        errors.append(relative_error(run_onnx(made, FRESH)["y"], reference))
    assert errors[0] < 0.8 * errors[1], errors


def test_only_the_result_stays_in_the_workdir():
    outcome = run_pass(QuantizeStatic(), onnx_model(CNN, WEIGHTS), data={"calibration": DATA})
    workdir = outcome.model.path.parent.parent
    assert [path for path in workdir.rglob("*") if path.is_file()] == [outcome.model.path]


def test_a_choice_without_effect_gives_the_model_back():
    model = open_any(onnx_model("g (int64[n] x) => (int64[n] y) { y = Add(x, x) }"))
    outcome = run_pass(QuantizeStatic(ops=("Add",)), model, data={"calibration": {"x": np.arange(40)}})
    assert (outcome.changed, outcome.model) == (0, model)
    assert outcome.notes == ["nothing to quantize: no quantizable Add; the model has 1 Add"]
