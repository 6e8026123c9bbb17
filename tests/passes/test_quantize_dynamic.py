from __future__ import annotations

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from optkit.errors import PassError
from optkit.model.target import Target
from optkit.passes.quantize_dynamic import QuantizeDynamic
from tests.helpers import fresh_dir, normal, onnx_model, open_any, ops_of, relative_error, run_onnx, run_pass

MLP = """mlp (float[batch,32] x) => (float[batch,16] y) {
    [first] m1 = MatMul(x, w1)
    a1 = Add(m1, b1)
    r1 = Relu(a1)
    [second] y = Gemm<transB = 1>(r1, w2, b2)
}"""
WEIGHTS = {
    "w1": normal(32, 64, seed=1),
    "b1": normal(64, seed=2),
    "w2": normal(16, 64, seed=3),
    "b2": normal(16, seed=4),
}
X = {"x": normal(8, 32, seed=5)}


def test_quantizes_matmul_and_gemm_within_two_percent():
    model = onnx_model(MLP, WEIGHTS)
    outcome = run_pass(QuantizeDynamic(), model)
    assert outcome.changed == 2
    assert [where for where, _ in outcome.changes] == ["first", "second"]
    assert ops_of(outcome.model)["MatMulInteger"] == 2
    assert "MatMul" not in ops_of(outcome.model) and "Gemm" not in ops_of(outcome.model)
    reference = run_onnx(run_pass(QuantizeDynamic(exclude=(".*",)), model).model, X)["y"]
    assert relative_error(run_onnx(outcome.model, X)["y"], reference) < 0.02
    assert outcome.model.lineage == ("quantize-dynamic",)


def test_equals_the_library_bit_by_bit():
    from onnxruntime.quantization import quantize_dynamic

    model = onnx_model(
        "g (float[batch,32] x) => (float[batch,64] y) { m = MatMul(x, w1) r = Relu(m) y = MatMul(r, w) }",
        {"w1": WEIGHTS["w1"], "w": normal(64, 64)},
    )
    expected = fresh_dir() / "library.onnx"
    for per_channel in (True, False):
        quantize_dynamic(model, expected, per_channel=per_channel, op_types_to_quantize=["MatMul"])
        outcome = run_pass(QuantizeDynamic(per_channel=per_channel), model)
        np.testing.assert_array_equal(run_onnx(outcome.model, X)["y"], run_onnx(expected, X)["y"])


def test_onnxruntime_fuses_the_result_into_one_kernel_a_layer():
    import onnxruntime as ort

    outcome = run_pass(QuantizeDynamic(), onnx_model(MLP, WEIGHTS))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(fresh_dir() / "optimized.onnx")
    ort.InferenceSession(outcome.model.path, options, providers=["CPUExecutionProvider"])
    fused = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert fused.count("DynamicQuantizeMatMul") == 2
    assert "Cast" not in fused


def test_weights_take_a_quarter_of_the_bytes():
    model = onnx_model("g (float[n,256] x) => (float[n,256] y) { y = MatMul(x, w) }", {"w": normal(256, 256)})
    outcome = run_pass(QuantizeDynamic(), model)
    assert 256 * 256 < outcome.model.path.stat().st_size < 256 * 256 * 1.1


def test_shared_input_and_shared_weights_are_quantized_once():
    model = onnx_model(
        "g (float[n,32] x) => (float[n,64] y)"
        " { a = MatMul(x, w) b = MatMul(x, v) c = MatMul(x, w) s = Add(a, b) y = Add(s, c) }",
        {"w": WEIGHTS["w1"], "v": normal(32, 64, seed=9)},
    )
    outcome = run_pass(QuantizeDynamic(), model)
    assert ops_of(outcome.model)["DynamicQuantizeLinear"] == 1
    int8 = [
        tensor
        for tensor in onnx.load(outcome.model.path).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8
    ]
    assert len(int8) == 2


def test_tied_embedding_stays_float_for_gather():
    model = onnx_model(
        "g (int64[n] ids) => (float[n,40] y) { e = Gather(w, ids) t = Transpose<perm = [1, 0]>(w) y = MatMul(e, t) }",
        {"w": normal(40, 24)},
    )
    outcome = run_pass(QuantizeDynamic(), model)
    ids = {"ids": np.arange(40)}
    counts = ops_of(outcome.model)
    assert (counts["Gather"], counts["MatMulInteger"], counts.get("Transpose", 0)) == (1, 1, 0)
    table = normal(40, 24)
    assert relative_error(run_onnx(outcome.model, ids)["y"], table @ table.T) < 0.02


@pytest.mark.parametrize("shape", [(4, 32, 16), (32, 16)])
def test_stacked_weights_and_stacked_data(shape):
    model = onnx_model("g (float[n,4,8,32] x) => (float[n,4,8,16] y) { y = MatMul(x, w) }", {"w": normal(*shape)})
    x = normal(2, 4, 8, 32, seed=3)
    outcome = run_pass(QuantizeDynamic(), model)
    assert outcome.changed == 1
    assert relative_error(run_onnx(outcome.model, {"x": x})["y"], x @ normal(*shape)) < 0.02


def test_gemm_with_alpha_is_scaled():
    model = onnx_model("g (float[n,32] x) => (float[n,64] y) { y = Gemm<alpha = 0.25>(x, w) }", {"w": WEIGHTS["w1"]})
    outcome = run_pass(QuantizeDynamic(), model)
    assert relative_error(run_onnx(outcome.model, X)["y"], 0.25 * X["x"] @ WEIGHTS["w1"]) < 0.02


def test_weights_inside_subgraphs_are_quantized():
    model = onnx_model(
        "g (bool c, float[n,32] x) => (float[n,64] y) {"
        " y = If(c) <then_branch = t () => (float[n,64] a) { a = MatMul(x, w) },"
        " else_branch = e () => (float[n,64] b) { b = MatMul(x, v) }> }",
        {"w": WEIGHTS["w1"], "v": normal(32, 64, seed=9)},
    )
    outcome = run_pass(QuantizeDynamic(), model)
    assert (outcome.changed, ops_of(outcome.model)["MatMulInteger"]) == (2, 2)
    result = run_onnx(outcome.model, X | {"c": np.array(False)})["y"]
    assert relative_error(result, X["x"] @ normal(32, 64, seed=9)) < 0.02


CONV = "g (float[n,3,16,16] x) => (float[n,8,16,16] y) { y = Conv<pads = [1,1,1,1]>(x, w, b) }"
CONV_WEIGHTS = {"w": normal(8, 3, 3, 3), "b": normal(8)}


def test_convolutions_are_refused_with_the_reason():
    outcome = run_pass(QuantizeDynamic(), onnx_model(CONV, CONV_WEIGHTS))
    assert outcome.changed == 0
    assert outcome.skipped == [
        ("Conv -> y", "convolutions run 5 to 8 times slower with dynamic int8; use quantize-static, or add Conv to ops")
    ]
    assert "the model has 1 Conv" in outcome.notes[-1]


def test_convolutions_on_request_within_two_percent():
    model = onnx_model(CONV, CONV_WEIGHTS)
    x = {"x": normal(2, 3, 16, 16)}
    outcome = run_pass(QuantizeDynamic(ops=("Conv",)), model)
    reference = run_onnx(run_pass(QuantizeDynamic(), model).model, x)["y"]
    assert ops_of(outcome.model)["ConvInteger"] == 1
    assert relative_error(run_onnx(outcome.model, x)["y"], reference) < 0.02


def test_convolutions_in_one_dimension_and_names_that_are_taken():
    text = "g (float[n,3,16] x) => (float[n,8,14] y, float[8] z) { y = Conv(x, w, b) z = Exp(y_bias) }"
    model = open_any(onnx_model(text, {"w": normal(8, 3, 3), "b": normal(8), "y_bias": normal(8, seed=1)}))
    x = {"x": normal(2, 3, 16)}
    outcome = run_pass(QuantizeDynamic(ops=("Conv",)), model)
    result, reference = run_onnx(outcome.model, x), run_onnx(model, x)
    assert relative_error(result["y"], reference["y"]) < 0.02
    np.testing.assert_array_equal(result["z"], reference["z"])


def test_computed_and_wide_operands_stay_with_their_reason():
    model = onnx_model(
        "g (float[n,32] x, double[n,4] z) => (float[n,n] y, double[n,4] v)"
        " { t = Transpose(x) [scores] y = MatMul(x, t) [wide] v = MatMul(z, w) }",
        {"w": np.eye(4)},
    )
    outcome = run_pass(QuantizeDynamic(), model)
    assert outcome.changed == 0
    assert outcome.skipped == [
        ("scores", "its second input is computed, not a constant weight"),
        ("wide", "its weights are float64, and only float32 is quantized"),
    ]


def test_exclude_takes_names_and_patterns_and_tells_idle_ones():
    outcome = run_pass(QuantizeDynamic(exclude=("sec.*", "third")), onnx_model(MLP, WEIGHTS))
    assert outcome.skipped == [("second", "excluded")]
    assert "exclude 'third' matches no node" in outcome.notes
    assert ops_of(outcome.model)["Gemm"] == 1


def test_everything_excluded_is_told_as_that():
    outcome = run_pass(QuantizeDynamic(exclude=(".*",)), onnx_model(MLP, WEIGHTS))
    assert (outcome.changed, len(outcome.skipped)) == (0, 2)
    assert outcome.notes == [
        "nothing to quantize: 2 nodes are excluded, "
        "and there is no MatMul, Gemm, LSTM or Attention with constant float32 weights besides"
    ]


def test_operators_of_other_domains_are_left_alone():
    text = "g (float[n,32] x) => (float[n,64] y) { [own] m = MatMul(x, w) [other] y = com.acme.Gemm(m, v) }"
    model = onnx_model(text, {"w": normal(32, 64), "v": normal(64, 64)})
    model.opset_import.append(onnx.helper.make_opsetid("com.acme", 1))
    outcome = run_pass(QuantizeDynamic(), model)
    assert [name for name, _ in outcome.changes] == ["own"]
    assert [node.domain for node in onnx.load(outcome.model.path).graph.node if node.op_type == "Gemm"] == ["com.acme"]


@pytest.mark.parametrize("perm", ["perm = [0, 1]", "perm = [1, 0]"])
def test_a_transpose_of_weights_is_done_as_it_says(perm):
    text = f"g (float[n,24] x) => (float[n,24] y) {{ t = Transpose<{perm}>(w) y = MatMul(x, t) }}"
    model = open_any(onnx_model(text, {"w": normal(24, 24)}))
    outcome = run_pass(QuantizeDynamic(), model)
    assert outcome.changed == 1
    x = {"x": normal(8, 24, seed=5)}
    assert relative_error(run_onnx(outcome.model, x)["y"], run_onnx(model, x)["y"]) < 0.02


def test_seven_bits_on_request():
    outcome = run_pass(QuantizeDynamic(reduce_range=True), onnx_model(MLP, WEIGHTS))
    stored = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(outcome.model.path).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8
    ]
    assert max(int(np.abs(array.astype(int)).max()) for array in stored) == 64


def test_a_second_time_changes_nothing():
    once = run_pass(QuantizeDynamic(), onnx_model(MLP, WEIGHTS))
    assert run_pass(QuantizeDynamic(), once.model).changed == 0


def test_old_opsets_are_raised():
    model = onnx_model("g (float[n,32] x) => (float[n,64] y) { y = MatMul(x, w) }", {"w": WEIGHTS["w1"]}, opset=9)
    outcome = run_pass(QuantizeDynamic(), model)
    assert outcome.changed == 1
    assert onnx.load(outcome.model.path).opset_import[0].version == 11
    workdir = outcome.model.path.parent.parent
    assert [path for path in workdir.rglob("*") if path.is_file()] == [outcome.model.path]


def test_an_opset_that_cannot_be_raised_is_one_sentence():
    model = onnx_model(
        "g (float[2,4,32] x) => (float[2,1,4,8] y) { y = RNN<hidden_size = 8>(x, w, r) }",
        {"w": normal(1, 8, 32), "r": normal(1, 8, 8)},
        opset=6,
    )
    with pytest.raises(PassError, match="opset 6 cannot be raised to 11: No Adapter From Version"):
        run_pass(QuantizeDynamic(), model)


def test_options_are_checked():
    with pytest.raises(ValidationError, match="MatMul"):
        QuantizeDynamic(ops=("Matmul",))
    with pytest.raises(ValidationError, match="no regular expression"):
        QuantizeDynamic(exclude=("(",))


def test_only_for_cpus():
    model = run_pass(QuantizeDynamic(), onnx_model(MLP, WEIGHTS)).model
    assert QuantizeDynamic().applies_to(Target(provider="cuda")) == "dynamic int8 is made for CPUs, not for cuda"
    assert QuantizeDynamic().applies_to(Target()) == QuantizeDynamic().applies(model, Target()) == ""
