"""Operators of static quantization: which there are, how integers flow through them, and which are worth it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast, get_args

from optkit.passes._ir import constant
from optkit.passes._quant.weights import unfit

if TYPE_CHECKING:
    import onnx_ir as ir

_Layer = Literal["Conv", "ConvTranspose", "MatMul", "Gemm"]
_Norm = Literal["Softmax", "BatchNormalization", "InstanceNormalization", "LayerNormalization"]
_Pointwise = Literal["Add", "Mul", "Where", "Relu", "Clip", "LeakyRelu", "Sigmoid"]
_Along = Literal["MaxPool", "AveragePool", "GlobalAveragePool", "ArgMax", "CumSum", "TopK", "Resize"]
_Shape = Literal["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"]
_Part = Literal["Concat", "Split", "Slice", "Pad", "Gather", "GatherElements"]
QdqOp = Literal[_Layer, _Norm, _Pointwise, _Along, _Shape, _Part]
"""ONNX operators that engines compute between DequantizeLinear and QuantizeLinear; onnxruntime's quantizer knows the
same."""
KNOWN = cast("tuple[QdqOp, ...]", get_args(QdqOp))
LINEAR: tuple[QdqOp, ...] = ("MatMul", "Gemm")
"""What is quantized in models of attention and layer normalization: there, more costs accuracy and wins no time. Their
integer kernels give float32 for free, so that results are not rounded."""
CONVOLUTIONAL: tuple[QdqOp, ...] = (
    *("Conv", "ConvTranspose", *LINEAR),
    *("Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Split", "Pad", "Resize"),
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice"),
)
"""What is quantized in convolutional networks, so that integers flow from layer to layer. Softmax is not among them,
whose result 8 bits cannot hold, and no normalization."""
WEIGHTED = frozenset({"Conv", "ConvTranspose", *LINEAR})
"""Operators that are worth it by themselves."""
FOLLOWING = frozenset(
    {
        *("MaxPool", "Resize", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"),
        *("Split", "Slice", "Pad", "Gather", "GatherElements"),
    }
)
"""Operators that give values of their first input: result and input share scale and zero point."""
ABSORBED = frozenset({"Relu", "Clip"})
"""Activations that a quantized result saturates to by itself, so that nothing is rounded before them."""
OPERANDS = frozenset({"Add", "Mul", "Where", "Concat"})
"""Operators with several inputs of one kind, constants among them; all others are quantized in their first input."""
SENSITIVE = frozenset(
    {
        *("Softmax", "LogSoftmax", "LayerNormalization", "SimplifiedLayerNormalization"),
        *("SkipLayerNormalization", "RMSNormalization", "Exp"),
    }
)
"""Operators that enlarge the rounding of what they take."""
_SEQUENCE_OPS = frozenset(
    {
        *("LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "RMSNormalization"),
        *("Attention", "MultiHeadAttention", "GroupQueryAttention", "LSTM", "GRU"),
    }
)


def auto_ops(model: ir.Model, provider: str = "cpu") -> tuple[QdqOp, ...]:
    """``CONVOLUTIONAL`` where convolutions do the work, ``LINEAR`` elsewhere.

    Convolutions do the work where there is no sign of attention or recurrence, or at least twice as many of them as
    MatMul and Gemm: a text recognizer, but no vision transformer. CPUs have no integer ConvTranspose.
    """
    nodes = list(model.graph.all_nodes())
    convolutions = sum(node.op_type == "Conv" for node in nodes)
    linear = sum(node.op_type in LINEAR and _has_weights(node) for node in nodes)
    sequential = any(node.op_type in _SEQUENCE_OPS or _multiplies_activations(node) for node in nodes)
    if not convolutions or (sequential and convolutions < 2 * max(1, linear)):
        return LINEAR
    return tuple(op for op in CONVOLUTIONAL if not (op == "ConvTranspose" and provider == "cpu"))


def _has_weights(node: ir.Node) -> bool:
    return constant(node.inputs[1]) is not None


def _multiplies_activations(node: ir.Node) -> bool:
    return node.op_type == "MatMul" and constant(node.inputs[0]) is None and not _has_weights(node)


def refusal(node: ir.Node) -> str:
    """Why a node of a known operator cannot be quantized; empty where it can."""
    checks = {"Gemm": _gemm_refusal, "Pad": _pad_refusal, "Resize": _resize_refusal}
    check = _weights_refusal if node.op_type in WEIGHTED else None
    check = checks.get(node.op_type, check)
    return check(node) if check else ""


def _weights_refusal(node: ir.Node) -> str:
    weights = constant(node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if weights is None:
        return "its second input is computed, not a constant weight"
    if weights.dtype != "float32":
        return "its weights are not float32"
    if weights.ndim < 2:
        return "its weights are a vector"
    if bias is not None and constant(bias) is None:
        return "its bias is computed"
    return unfit(weights)


def _gemm_refusal(node: ir.Node) -> str:
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    by_rows = bias is not None and any(size > 1 for size in bias.shape[:-1])
    if by_rows or (bias is not None and node.attributes.get_float("beta", 1.0) != 1.0):
        return "its bias differs from row to row, or is scaled"
    if node.attributes.get_float("alpha", 1.0) == 0:
        return "its products are multiplied by 0 (alpha)"
    return "its data are transposed (transA)" if node.attributes.get_int("transA", 0) else _weights_refusal(node)


def _pad_refusal(node: ir.Node) -> str:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    number = constant(value)
    same = value is None or (number is not None and not number.any())
    constant_mode = node.attributes.get_string("mode", "constant") == "constant"
    return "" if same or not constant_mode else "it pads with something else than zero"


def _resize_refusal(node: ir.Node) -> str:
    return "cubic interpolation leaves the range" if node.attributes.get_string("mode", "nearest") == "cubic" else ""
