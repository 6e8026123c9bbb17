"""DynamicQuantizeLSTM against the float operator, and against the same arithmetic in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from optkit.passes.quantize_dynamic import QuantizeDynamic
from tests.helpers import normal, onnx_model, open_any, ops_of, relative_error, run_onnx, run_pass

STEPS, BATCH, DATA, HIDDEN = 12, 5, 24, 32
Float = NDArray[np.float64]


def weights(directions: int = 1, data: int = DATA) -> dict[str, Any]:
    return {
        "w": normal(directions, 4 * HIDDEN, data, seed=1, scale=0.3),
        "r": normal(directions, 4 * HIDDEN, HIDDEN, seed=2, scale=0.3),
        "b": normal(directions, 8 * HIDDEN, seed=3, scale=0.3),
    }


def lstm_model(inputs: str = "w, r, b", attributes: str = "", directions: int = 1, **more: Any) -> onnx.ModelProto:
    """``y = LSTM(Tanh(x), ...)``: the data are bounded, and not the model's input itself."""
    text = (
        f"g (float[steps,batch,{DATA}] x) => (float[steps,{directions},batch,{HIDDEN}] y,"
        f" float[{directions},batch,{HIDDEN}] h, float[{directions},batch,{HIDDEN}] c)"
        f" {{ t = Tanh(x) [rnn] y, h, c = LSTM<hidden_size = {HIDDEN}{attributes}>(t, {inputs}) }}"
    )
    return onnx_model(text, weights(directions) | more)


X = {"x": normal(STEPS, BATCH, DATA, seed=5)}


def uint8(values: Float) -> Float:
    """Quantized as DynamicQuantizeLinear does, and back."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    scale = (high - low) / 255
    if scale == 0:
        return values
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale


def int8(rows: Float) -> Float:
    scale = np.abs(rows).max(axis=1, keepdims=True) / 127
    return np.rint(rows / scale) * scale


def numpy_lstm(x: Float, w: Float, r: Float, b: Float) -> Float:
    """[steps, batch, hidden] of one direction: gates i, o, f, c as in ONNX, products of rounded numbers."""
    hidden = cell = np.zeros((x.shape[1], r.shape[1]))
    given, recurrent, out = uint8(x) @ int8(w).T + b.reshape(2, -1).sum(axis=0), int8(r).T, []
    for step in given:
        i, o, f, c = np.split(step + uint8(hidden) @ recurrent, 4, axis=1)
        i, o, f = (1 / (1 + np.exp(-gate)) for gate in (i, o, f))
        cell = f * cell + i * np.tanh(c)
        hidden = o * np.tanh(cell)
        out.append(hidden)
    return np.stack(out)


def test_equals_the_arithmetic_of_rounded_numbers():
    outcome = run_pass(QuantizeDynamic(), lstm_model())
    assert outcome.changes == [("rnn", "LSTM -> DynamicQuantizeLSTM, weights [1, 24, 128] and [1, 32, 128]")]
    assert ops_of(outcome.model) == {"Tanh": 1, "com.microsoft.DynamicQuantizeLSTM": 1}
    held = {name: array[0].astype(np.float64) for name, array in weights().items()}
    expected = numpy_lstm(np.tanh(X["x"].astype(np.float64)), held["w"], held["r"], held["b"])
    result = run_onnx(outcome.model, X)["y"][:, 0]
    float_ = run_onnx(open_any(lstm_model()), X)["y"][:, 0]
    rounding, off = relative_error(float_, expected), relative_error(result, expected)
    assert 1e-3 < rounding < 0.02  # what int8 costs
    assert off < rounding / 4  # the rest: a hidden state next to the border between two of the 256 values


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    ("attributes", "directions", "inputs"),
    [
        ("", 1, "w, r"),
        (', direction = "reverse"', 1, "w, r, b"),
        (', direction = "bidirectional"', 2, "w, r, b"),
        (", clip = 0.5, input_forget = 1", 1, "w, r, b"),
        ("", 1, "w, r, b, lengths, h0, c0"),
        ("", 1, "w, r, b, , h0, c0, p"),
    ],
)
def test_every_form_within_three_percent(attributes: str, directions: int, inputs: str, per_channel: bool):
    more = {
        "lengths": np.array([12, 7, 9, 1, 3], np.int32),
        "h0": normal(directions, BATCH, HIDDEN, seed=6, scale=0.3),
        "c0": normal(directions, BATCH, HIDDEN, seed=7, scale=0.3),
        "p": normal(directions, 3 * HIDDEN, seed=8, scale=0.3),
    }
    model = lstm_model(inputs, attributes, directions, **{name: each for name, each in more.items() if name in inputs})
    outcome = run_pass(QuantizeDynamic(per_channel=per_channel), model)
    assert outcome.changed == 1
    expected, result = run_onnx(open_any(model), X), run_onnx(outcome.model, X)
    for name in ("y", "h", "c"):
        assert relative_error(result[name], expected[name]) < 0.03


def test_weights_take_a_quarter_of_the_bytes():
    model = open_any(lstm_model())
    assert run_pass(QuantizeDynamic(), model).model.size_bytes < 0.4 * model.size_bytes


@pytest.mark.parametrize("way", ["t = Transpose<perm = [1, 0, 2]>(x)", "t = Identity(x)"])
def test_lstm_on_the_models_input_stays_unless_asked(way: str):
    text = f"g (float[s,b,24] x) => (float[s,1,b,32] y) {{ {way} y = LSTM<hidden_size = 32>(t, w, r) }}"
    held = {name: weights()[name] for name in ("w", "r")}
    outcome = run_pass(QuantizeDynamic(), onnx_model(text, held))
    assert outcome.changed == 0
    assert [reason[:34] for _, reason in outcome.skipped] == ["its data are the model's input as "]
    assert "lstm_on_inputs: true" in outcome.skipped[0][1]
    assert run_pass(QuantizeDynamic(lstm_on_inputs=True), onnx_model(text, held)).changed == 1


def test_gates_reordered_in_the_graph_are_folded_and_stored_once():
    """As torch's exporters write it, here in both branches of an If, with one bias apart."""
    parts = "i = Slice(v, z, s, z) f = Slice(v, s, e, z) w = Concat<axis = 0>(f, i) u = Unsqueeze(w, z)"
    text = (
        "g (bool k, float[s,b,24] x) => (float[1,b,32] y) { t = Tanh(x) y = If(k)"
        f" <then_branch = a () => (float[1,b,32] h) {{ {parts} q, h = LSTM<hidden_size = 32>(t, u, r, b) }},"
        f" else_branch = e () => (float[1,b,32] j) {{ {parts} q, j = LSTM<hidden_size = 32>(t, u, r) }}> }}"
    )
    fixed = {"z": np.array([0]), "s": np.array([64]), "e": np.array([128]), "v": normal(128, 24, scale=0.3)}
    held = {name: weights()[name] for name in ("r", "b")}
    model = open_any(onnx_model(text, fixed | held))
    outcome = run_pass(QuantizeDynamic(), model)
    assert ops_of(outcome.model) == {"Tanh": 1, "If": 1, "com.microsoft.DynamicQuantizeLSTM": 2}
    stored = onnx.load(outcome.model.path).graph.initializer
    large = sorted(
        list(each.dims) for each in stored if each.data_type == onnx.TensorProto.INT8 and len(each.dims) == 3
    )
    assert large == [[1, 24, 128], [1, 32, 128]]
    for which in (True, False):
        feeds = X | {"k": np.array(which)}
        assert relative_error(run_onnx(outcome.model, feeds)["y"], run_onnx(model, feeds)["y"]) < 0.03


def test_what_has_no_kernel_stays_with_its_reason():
    text = (
        "g (float[s,b,24] x, float[b,s,24] v, float[1,128,24] m) => (float[s,1,b,32] y, float[s,1,b,32] z) {"
        " t = Tanh(x) o = Tanh(v) [gated] y = GRU<hidden_size = 32>(t, g, k)"
        " [given] z = LSTM<hidden_size = 32>(t, m, r)"
        " [swapped] q = LSTM<hidden_size = 32, layout = 1>(o, w, r) }"
    )
    held = weights() | {"g": normal(1, 96, 24), "k": normal(1, 96, 32)}
    model = onnx_model(text, {name: held[name] for name in ("w", "r", "g", "k")})
    outcome = run_pass(QuantizeDynamic(), model)
    assert outcome.changed == 0
    assert outcome.skipped == [
        ("gated", "onnxruntime has no integer kernel for GRU"),
        ("given", "its weights are computed, not constant"),
        ("swapped", "its samples come before its steps (layout: 1), which the integer kernel does not take"),
    ]
