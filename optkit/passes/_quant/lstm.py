"""LSTMs whose products run in integers.

    LSTM(x, W, R, b, ...)  ->  com.microsoft.DynamicQuantizeLSTM(x, int8 W, int8 R, b, ..., scales)

Its kernel quantizes x once and the hidden state at every step, each with one scale for the whole tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optkit.passes._ir import add_constant, constant
from optkit.passes._quant.integer import (
    Kind,
    Parts,
    Refusal,
    Rounded,
    Rounding,
    float_weights,
    optional_input,
    replace,
)

if TYPE_CHECKING:
    import onnx_ir as ir

WEIGHTS = ("weights", "recurrent weights")
"""Inputs 1 and 2."""
CARRIED = range(3, 8)
"""Inputs that stay as they are: bias, lengths, initial states, peepholes."""
LAYOUT = frozenset({"Concat", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that move numbers and change none."""
RAW_REASON = (
    "its data are the model's input as it comes, whose range 8 bits seldom hold (a speaker encoder's cosine fell to"
    " .81); lstm_on_inputs: true quantizes it all the same"
)


def reads_input(node: ir.Node, inputs: Iterable[ir.Value]) -> bool:
    """Whether an LSTM's data are one of the model's ``inputs``, but for their layout."""
    pending, known = [node.inputs[0]], set(inputs)
    while pending:
        value = pending.pop()
        if value in known:
            return True
        source = value.producer() if value is not None else None
        if source is not None and not source.domain and source.op_type in LAYOUT:
            pending.extend(source.inputs if source.op_type == "Concat" else source.inputs[:1])
    return False


def fold_weights(model: ir.Model) -> None:
    """``LSTM(x, Unsqueeze(Concat(Slice(W), ...)), ...) -> LSTM(x, W', ...)``, in place, in subgraphs too.

    Exporters reorder the gates of an LSTM in the graph, for constant weights. Equal results are stored once.
    """
    made: dict[tuple[Any, ...], ir.Value] = {}
    for node in model.graph.all_nodes():
        if (node.domain, node.op_type) != ("", "LSTM"):
            continue
        for index, value in enumerate(node.inputs[1:4], start=1):
            array = None if value is None or constant(value) is not None else _computed(value, model)
            if value is not None and array is not None:
                key = (array.shape, array.dtype, hashlib.sha256(array.tobytes()).digest())
                made[key] = made.get(key) or add_constant(model.graph, f"{value.name}_folded", array)
                node.replace_input_with(index, made[key])


def _computed(value: ir.Value | None, model: ir.Model) -> NDArray[Any] | None:
    """What constants and operators of ``LAYOUT`` alone make; None for anything else."""
    held, node = constant(value), value.producer() if value is not None else None
    if held is not None or node is None:
        return held
    arrays = [_computed(each, model) for each in node.inputs]
    known = [array for array in arrays if array is not None]
    if node.domain or node.op_type not in LAYOUT or len(known) < len(arrays):
        return None
    return _evaluate(node, known, model.opset_imports[""])


def _evaluate(node: ir.Node, arrays: list[NDArray[Any]], opset: int) -> NDArray[Any]:
    import onnx
    import onnx_ir as ir
    from onnx.reference import ReferenceEvaluator

    alone = ir.to_proto(node)
    names = [f"input{index}" for index in range(len(arrays))]
    del alone.input[:], alone.output[:]
    alone.input.extend(names)
    alone.output.append("output")
    feeds = dict(zip(names, arrays, strict=True))
    inputs = [onnx.ValueInfoProto(name=name) for name in names]
    graph = onnx.helper.make_graph([alone], "fold", inputs, [onnx.ValueInfoProto(name="output")])
    opsets = [onnx.helper.make_opsetid("", opset)]
    result: NDArray[Any] = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets)).run(None, feeds)[0]
    return result


def _check(node: ir.Node) -> None:
    for value, which in zip(node.inputs[1:3], WEIGHTS, strict=True):
        if float_weights(value, f"its {which} are computed, not constant").ndim != 3:
            raise Refusal(f"its {which} have no axis of directions")
    if node.attributes.get_int("layout", 0):
        raise Refusal("its samples come before its steps (layout: 1), which the integer kernel does not take")


def _rewrite(node: ir.Node, parts: Parts) -> str:
    import onnx_ir as ir

    (weights, scales), (recurrent, recurrent_scales) = (_weights(value, parts) for value in node.inputs[1:3])
    carried = [optional_input(node, index) for index in CARRIED]
    quantization = [scales, _zeros(scales, parts), recurrent_scales, _zeros(recurrent_scales, parts)]
    made = ir.node(
        "DynamicQuantizeLSTM",
        [node.inputs[0], weights, recurrent, *carried, *quantization],
        {name: attribute.value for name, attribute in node.attributes.items() if name != "layout"},
        domain="com.microsoft",
        num_outputs=len(node.outputs),
        name=f"{node.name or node.outputs[0].name}_quant",
    )
    replace(node, [made])
    parts.declare_contrib()
    return f"LSTM -> DynamicQuantizeLSTM, weights {list(weights.shape or ())} and {list(recurrent.shape or ())}"


def _weights(value: ir.Value | None, parts: Parts) -> tuple[ir.Value, ir.Value]:
    assert value is not None  # _check looked
    return parts.weights(value, "LSTM", lambda: _round(value, parts.rounding))


def _round(value: ir.Value, rounding: Rounding) -> Rounded:
    """[directions, gates, inputs] as int8 [directions, inputs, gates] and a scale a gate's row, or a direction."""
    weights = float_weights(value)
    rounded, scales = zip(*(rounding.round(each, 0) for each in weights), strict=True)
    return np.ascontiguousarray(np.stack(rounded).transpose(0, 2, 1)), np.stack(scales)


def _zeros(scales: ir.Value, parts: Parts) -> ir.Value:
    held = constant(scales)
    assert held is not None  # made above
    return parts.initializer(f"{scales.name}_zero", np.zeros(held.shape, np.int8))


LSTM = Kind(check=_check, rewrite=_rewrite)
