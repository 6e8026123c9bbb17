from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx
import pytest

from optkit.errors import PassError
from optkit.model.target import Target
from optkit.passes._quant.layered import Layered
from optkit.passes._quant.nbits import Grid
from optkit.passes.quantize_weights import QuantizeWeights
from tests.helpers import normal, onnx_model, open_any, ops_of, relative_error, run_onnx, run_pass

MLP = """mlp (float[batch,72] x) => (float[batch,48] y) {
    [first] m1 = MatMul(x, w1)
    a1 = Add(m1, b1)
    r1 = Relu(a1)
    [second] y = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(r1, w2, b2)
}"""
WEIGHTS = {
    "w1": normal(72, 64, seed=1),
    "b1": normal(64, seed=2),
    "w2": normal(48, 64, seed=3),
    "b2": normal(48, seed=4),
}
X = {"x": normal(8, 72, seed=5)}
EXACT = 1e-5
FORMATS = ("matmul-nbits", "qdq")


def held(weights, bits, block, symmetric):
    """What the stored [rows, width] weights stand for."""
    return Grid(bits, block, symmetric).round(weights).floats()


def reference(bits, block, symmetric):
    hidden = np.maximum(X["x"] @ held(WEIGHTS["w1"].T, bits, block, symmetric).T + WEIGHTS["b1"], 0)
    return 0.5 * hidden @ held(WEIGHTS["w2"], bits, block, symmetric).T + 2 * WEIGHTS["b2"]


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "block"), [(4, 16), (4, 32), (8, 32), (4, 128), (8, 64)])
def test_computes_with_the_weights_that_are_stored(bits, block, symmetric, format_):
    options = QuantizeWeights(bits=bits, block_size=block, symmetric=symmetric, format=format_, accuracy_level=0)
    outcome = run_pass(options, onnx_model(MLP, WEIGHTS))
    found = run_onnx(outcome.model, X, plain=True)["y"]
    assert relative_error(found, reference(bits, block, symmetric)) < EXACT
    kinds = ops_of(outcome.model)
    assert kinds.get("com.microsoft.MatMulNBits", 0) == (2 if format_ == "matmul-nbits" else 0)
    assert kinds.get("DequantizeLinear", 0) == (2 if format_ == "qdq" else 0)
    assert [where for where, _ in outcome.changes] == ["first", "second"]


@pytest.mark.parametrize(("bits", "limit"), [(4, 0.12), (8, 0.02)])
def test_with_8_bit_activations_it_is_near_the_float_model(bits, limit):
    model = open_any(onnx_model(MLP, WEIGHTS))
    outcome = run_pass(QuantizeWeights(bits=bits), model)
    assert relative_error(run_onnx(outcome.model, X)["y"], run_onnx(model, X)["y"]) < limit


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "width"), [(4, 64), (4, 72), (8, 33)])
def test_embeddings(bits, width, symmetric, format_):
    table = normal(300, width)
    model = onnx_model("g (int64[n,m] ids) => (float[n,m,k] y) { y = Gather(w, ids) }", {"w": table})
    outcome = run_pass(QuantizeWeights(bits=bits, embedding_bits=bits, symmetric=symmetric, format=format_), model)
    ids = np.array([[3, 299, 0], [5, 5, 7]])
    stored = held(table, 8 if format_ == "qdq" else bits, 32, symmetric)
    assert outcome.changed == 1
    assert relative_error(run_onnx(outcome.model, {"ids": ids})["y"], stored[ids]) < EXACT


TIED = """g (int64[n,m] ids) => (float[n,m,300] y) {
    [embed] e = Gather(w, ids) t = Transpose<perm = [1, 0]>(w) [head] y = MatMul(e, t) }"""


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "width"), [(4, 64), (4, 72), (8, 64), (8, 72)])
def test_a_tied_output_layer_shares_the_codes(bits, width, symmetric):
    table, ids = normal(300, width), np.array([[3, 299, 0], [5, 5, 7]])
    options = QuantizeWeights(embedding_bits=bits, symmetric=symmetric, accuracy_level=0)
    outcome = run_pass(options, onnx_model(TIED, {"w": table}))
    stored = held(table, bits, 32, symmetric)
    assert relative_error(run_onnx(outcome.model, {"ids": ids})["y"], stored[ids] @ stored.T) < EXACT
    codes = [each for each in onnx.load(outcome.model.path).graph.initializer if len(each.raw_data) > 300 * width // 4]
    assert [list(each.dims) for each in codes] == [[300, -(-width // 32), 4 * bits]]


def test_weights_of_two_layers_are_stored_once():
    text = "g (float[n,72] x) => (float[n,64] y) { a = MatMul(x, w1) b = MatMul(x, w1) y = Add(a, b) }"
    outcome = run_pass(QuantizeWeights(), onnx_model(text, {"w1": WEIGHTS["w1"]}))
    assert outcome.changed == 2
    assert (
        sum(each.data_type == onnx.TensorProto.UINT8 for each in onnx.load(outcome.model.path).graph.initializer) == 2
    )


def test_weights_inside_subgraphs():
    model = onnx_model(
        "g (bool c, float[n,72] x) => (float[n,64] y) {"
        " y = If(c) <then_branch = t () => (float[n,64] a) { a = MatMul(x, w1) },"
        " else_branch = e () => (float[n,64] b) { b = MatMul(x, v) }> }",
        {"w1": WEIGHTS["w1"], "v": normal(72, 64, seed=9)},
    )
    outcome = run_pass(QuantizeWeights(accuracy_level=0), model)
    assert (outcome.changed, ops_of(outcome.model)["com.microsoft.MatMulNBits"]) == (2, 2)
    found = run_onnx(outcome.model, X | {"c": np.array(False)})["y"]
    assert relative_error(found, X["x"] @ held(normal(72, 64, seed=9).T, 4, 32, False).T) < EXACT


def spread(rows, seed=0):
    """Correlated inputs, some channels of which are ten times as large."""
    scale = np.where(np.arange(72) % 9 == 0, 10, 1)
    turn = np.linalg.qr(normal(72, 72, seed=7))[0]
    return ((normal(rows, 72, seed=seed) * np.logspace(0, -2, 72)) @ turn * scale).astype(np.float32)


@pytest.mark.parametrize(("method", "share"), [("hqq", 1.0), ("gptq", 0.7), ("awq", 0.9)])
def test_methods_beat_rounding(method, share):
    text = "g (float[n,72] x) => (float[n,64] y) { s = Mul(x, gamma) y = MatMul(s, w1) }"
    model = open_any(onnx_model(text, {"w1": WEIGHTS["w1"], "gamma": np.ones(72, np.float32)}))
    unseen = {"x": spread(500, seed=11)}
    wanted = run_onnx(model, unseen)["y"]
    errors = {}
    for name in ("rtn", method):
        options = QuantizeWeights(method=name, accuracy_level=0)
        made = run_pass(options, model, data={"calibration": {"x": spread(2000)}})
        errors[name] = relative_error(run_onnx(made.model, unseen)["y"], wanted)
    assert errors[method] < share * errors["rtn"]


def test_awq_folds_its_scale_and_says_where():
    text = "g (float[n,72] x) => (float[n,64] y) { [norm] s = Mul(x, gamma) [layer] y = MatMul(s, w1) }"
    model = onnx_model(text, {"w1": WEIGHTS["w1"], "gamma": np.ones(72, np.float32)})
    outcome = run_pass(QuantizeWeights(method="awq"), model, data={"calibration": {"x": spread(500)}})
    assert ops_of(outcome.model) == {"Mul": 1, "com.microsoft.MatMulNBits": 1}
    assert any(note.startswith("awq: layer: exponent") and "into norm" in note for note in outcome.notes)
    workdir = outcome.model.path.parent.parent
    assert [path for path in workdir.rglob("*") if path.is_file()] == [outcome.model.path]


def test_gptq_tells_what_it_rounds_and_that_data_are_few():
    model = onnx_model(
        TIED.replace("y = MatMul(e, t)", "h = MatMul(e, v) y = MatMul(h, t)"),
        {"w": normal(300, 64), "v": normal(64, 64)},
    )
    ids = np.arange(20).reshape(4, 5)
    notes = run_pass(QuantizeWeights(method="gptq"), model, data={"calibration": {"ids": ids}}).notes
    assert any("only 20 rows of calibration data" in note for note in notes)
    assert any(note.endswith("branches): embed, MatMul -> y") for note in notes)


def test_infinite_activations_are_an_error_that_names_the_tensor():
    model = onnx_model("g (float[n,72] x) => (float[n,64] y) { e = Log(x) y = MatMul(e, w1) }", {"w1": WEIGHTS["w1"]})
    with pytest.raises(PassError, match="'e' becomes infinite"):
        run_pass(QuantizeWeights(method="gptq"), model, data={"calibration": {"x": np.zeros((4, 72), np.float32)}})


def test_layers_at_other_levels():
    pass_, model = _Keeping(accuracy_level=0), open_any(onnx_model(MLP, WEIGHTS))
    run_pass(pass_, model)
    layered = _Keeping.found[-1]
    assert dict(layered.layers) == {"first": "m1", "second": "y"}
    assert layered.ladder == ("int4", "int8", "float32")
    built = layered.build({"first": "int8", "second": "float32"})
    hidden = np.maximum(X["x"] @ held(WEIGHTS["w1"].T, 8, 32, False).T + WEIGHTS["b1"], 0)
    wanted = 0.5 * hidden @ WEIGHTS["w2"].T + 2 * WEIGHTS["b2"]
    assert relative_error(run_onnx(built.model, X)["y"], wanted) < EXACT
    assert [where for where, _ in built.changes] == ["first"]
    again = layered.build({})
    assert again.model.path != built.model.path
    assert relative_error(run_onnx(again.model, X)["y"], reference(4, 32, False)) < EXACT


class _Keeping(QuantizeWeights):
    found: ClassVar[list[Layered]] = []

    def layered(self, model, ctx):
        self.found.append(super().layered(model, ctx))
        return self.found[-1]


def test_what_stays_in_float_has_its_reason():
    model = onnx_model(
        "g (float[n,72] x, double[n,4] z) => (float[n,n] y, double[n,4] v, float[n,64] u)"
        " { t = Transpose(x) [scores] y = MatMul(x, t) [wide] v = MatMul(z, w) [own] u = MatMul(x, w1) }",
        {"w": np.eye(4), "w1": WEIGHTS["w1"]},
    )
    outcome = run_pass(QuantizeWeights(exclude=("own", "typo")), model)
    assert outcome.skipped == [
        ("scores", "its second input is computed, not a constant weight"),
        ("wide", "its weights are float64, and only float32 is quantized"),
        ("own", "excluded"),
    ]
    assert outcome.notes[0] == "exclude 'typo' matches no node"
    assert outcome.notes[-1].startswith("nothing to quantize: 1 nodes are excluded")


def test_matrices_that_would_grow_stay():
    model = onnx_model("g (float[n,4] x) => (float[n,4] y) { [small] y = MatMul(x, w) }", {"w": normal(4, 4)})
    outcome = run_pass(QuantizeWeights(), model)
    assert (outcome.changed, outcome.skipped[0][0]) == (0, "small")
    assert "would not be smaller" in outcome.skipped[0][1]


def test_small_embeddings_beside_large_weights_stay():
    text = "g (int64[n] i, float[n,256] x) => (float[n,256] y) { p = Gather(w, i) a = Add(x, p) y = MatMul(a, v) }"
    outcome = run_pass(QuantizeWeights(), onnx_model(text, {"w": normal(4, 256), "v": normal(256, 256)}))
    assert outcome.changed == 1
    assert outcome.skipped == [("Gather -> p", "an embedding with less than 2% of the weights")]


def test_nothing_to_quantize_and_a_second_time():
    model = onnx_model("g (float[n] x) => (float[n] y) { y = Exp(x) }")
    outcome = run_pass(QuantizeWeights(), model)
    assert outcome.changed == 0
    assert outcome.notes == [
        "nothing to quantize: no MatMul or Gemm or Gather with constant float32 weights; the model has 1 Exp"
    ]
    once = run_pass(QuantizeWeights(), onnx_model(MLP, WEIGHTS))
    twice = run_pass(QuantizeWeights(), once.model)
    assert twice.changed == 0
    assert "the model holds quantized operators already: 2 MatMulNBits" in twice.notes[-1]


def test_other_providers_get_standard_operators():
    outcome = run_pass(QuantizeWeights(), onnx_model(MLP, WEIGHTS), target=Target("openvino", 1))
    assert ops_of(outcome.model)["DequantizeLinear"] == 2
    assert onnx.load(outcome.model.path).opset_import[0].version == 21


def test_reads_calibration_only_where_a_method_wants_it():
    assert QuantizeWeights().reads() == ()
    assert QuantizeWeights(method="gptq", repair=True).reads() == ("calibration", "search")
