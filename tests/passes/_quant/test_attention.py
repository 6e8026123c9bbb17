"""QAttention against the float operator, and against it on rounded numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from optkit.passes.quantize_dynamic import QuantizeDynamic
from tests.helpers import normal, onnx_model, open_any, ops_of, relative_error, run_onnx, run_pass

ROWS, TOKENS, WIDTH = 3, 9, 32
HELD = {"w": normal(WIDTH, 3 * WIDTH, seed=1, scale=0.3), "b": normal(3 * WIDTH, seed=2)}
X = {"x": normal(ROWS, TOKENS, WIDTH, seed=3)}


def attention(inputs: str = "x, w, b", attributes: str = "", **more: Any) -> onnx.ModelProto:
    used = [name for name in (*HELD, *more) if f" {name}" in inputs]
    text = (
        f"g (float[b,s,{WIDTH}] x) => (float[b,s,{WIDTH}] y)"
        f" {{ [own] y = com.microsoft.Attention<num_heads = 4{attributes}>({inputs}) }}"
    )
    return onnx_model(text, {name: (HELD | more)[name] for name in used}, contrib=True)


def uint8(values: NDArray[Any]) -> NDArray[np.float32]:
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    return ((np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale).astype(np.float32)


@pytest.mark.parametrize("per_channel", [True, False])
def test_equals_the_float_operator_on_rounded_numbers(per_channel: bool):
    outcome = run_pass(QuantizeDynamic(per_channel=per_channel), attention())
    assert outcome.changes == [("own", "Attention -> QAttention, weights [32, 96]")]
    assert ops_of(outcome.model) == {"DynamicQuantizeLinear": 1, "com.microsoft.QAttention": 1}
    scale = np.abs(HELD["w"]).max(axis=0 if per_channel else None) / np.float32(127)
    rounded = {"w": np.rint(HELD["w"] / scale) * scale, "b": HELD["b"]}
    model = attention()
    del model.graph.initializer[:]
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in rounded.items())
    expected = run_onnx(open_any(model), {"x": uint8(X["x"])})["y"]
    result = run_onnx(outcome.model, X)["y"]
    assert relative_error(result, expected) < 1e-5
    assert 1e-3 < relative_error(result, run_onnx(open_any(attention()), X)["y"]) < 0.03


@pytest.mark.parametrize(
    ("inputs", "attributes"),
    [
        ("x, w, b, m", ""),
        ("x, w, b", ", unidirectional = 1"),
        ("x, w, b", ", scale = 0.1"),
        ("x, w, b, m", ", mask_filter_value = -50.0"),
    ],
)
def test_every_form_within_three_percent(inputs: str, attributes: str):
    mask = (np.arange(TOKENS) < np.array([[9], [4], [6]])).astype(np.int32)
    model = open_any(attention(inputs, attributes, m=mask))
    outcome = run_pass(QuantizeDynamic(), model)
    assert outcome.changed == 1
    assert relative_error(run_onnx(outcome.model, X)["y"], run_onnx(model, X)["y"]) < 0.03


def test_no_bias_is_a_bias_of_zeros():
    """The kernel insists on one; onnxruntime 1.31 crashes on the float operator without."""
    expected = open_any(attention(b=np.zeros(3 * WIDTH, np.float32)))
    outcome = run_pass(QuantizeDynamic(), attention("x, w"))
    assert relative_error(run_onnx(outcome.model, X)["y"], run_onnx(expected, X)["y"]) < 0.03


def test_past_and_present_go_on():
    text = (
        "g (float[b,s,32] x, float[2,b,4,p,8] past) => (float[b,s,32] y, float[2,b,4,t,8] present)"
        " { y, present = com.microsoft.Attention<num_heads = 4, unidirectional = 1>(x, w, b, , past) }"
    )
    model = open_any(onnx_model(text, HELD, contrib=True))
    feeds = X | {"past": normal(2, ROWS, 4, 5, 8, seed=4)}
    expected, result = run_onnx(model, feeds), run_onnx(run_pass(QuantizeDynamic(), model).model, feeds)
    for name in ("y", "present"):
        assert relative_error(result[name], expected[name]) < 0.03


def test_what_the_kernel_cannot_do_stays_with_its_reason():
    sizes = attention(attributes=", qkv_hidden_sizes = [32, 32, 32]")
    scores = attention("x, w, b, , , s", s=normal(1, 4, TOKENS, TOKENS))
    reasons = [run_pass(QuantizeDynamic(), model).skipped for model in (sizes, scores)]
    assert reasons == [
        [("own", "its queries, keys and values have sizes of their own (qkv_hidden_sizes)")],
        [("own", "it adds to the scores or keeps its past in place, which the integer kernel cannot do")],
    ]


def test_attention_without_weights_is_no_layer():
    text = "g (float[b,4,s,8] q) => (float[b,4,s,8] y) { y = Attention(q, q, q) }"
    outcome = run_pass(QuantizeDynamic(), onnx_model(text, opset=23))
    assert (outcome.changed, list(outcome.skipped)) == (0, [])
