"""What a node has to do: arithmetic operations and bytes, from its operator, shapes and dtypes alone.

A multiplication and the addition of its product count as two operations, so a product of [M, K] and [K, N] counts
2 M N K. Every input and output counts once as moved, whatever caches and kernels make of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["fp32", "int8", ""]
"""Which of the machine's arithmetic limits holds; empty = one that is not measured (float16, float64)."""

_HALVES = frozenset({"int4", "uint4"})
_BYTES = {"bool": 1, "bfloat16": 2, "float8e4m3fn": 1, "float8e5m2": 1}


@dataclass(frozen=True)
class Tensor:
    """One input or output of a node."""

    dtype: str
    """numpy's name, ``bfloat16``, ``int4``, ``string``, ..."""
    shape: tuple[int, ...]
    constant: bool = False
    """A weight: it comes from memory anew in each call."""

    @property
    def elements(self) -> int:
        """How many values."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Their size; strings count nothing."""
        if self.dtype in _HALVES:
            return (self.elements + 1) // 2
        digits = "".join(filter(str.isdigit, self.dtype))
        return self.elements * _BYTES.get(self.dtype, int(digits or 0) // 8)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Work:
    """The work of one execution of a node."""

    operations: int
    kind: Kind
    bytes: int | None
    """Of all inputs and outputs; None = not known."""
    weight_bytes: int = 0
    """Of the constant inputs among them."""


Inputs = Sequence[Tensor | None]
"""By position; None = an optional input that is left out."""
Attributes = Mapping[str, int]
Count = Callable[[Inputs, Sequence[Tensor], Attributes], int | None]


def work_of(
    operator: str, inputs: Inputs, outputs: Sequence[Tensor], attributes: Attributes | None = None
) -> Work | None:
    """The work of a matrix product, convolution, attention or recurrent node; None for other operators.

    Args:
        operator: ONNX or onnxruntime operator, without its domain.
        inputs: all inputs by position, weights included.
        outputs: its outputs.
        attributes: the node's integer attributes.
    """
    count = _COUNTS.get(operator)
    if count is None or not inputs or inputs[0] is None or not outputs:
        return None
    attributes = attributes or {}
    try:
        operations = count(inputs, outputs, attributes)
    except (IndexError, ValueError):  # an input is not there, or of other axes than this operator takes
        return None
    if not operations:
        return None
    given = [tensor for tensor in inputs if tensor is not None]
    return Work(
        operations=operations,
        kind=_kind(operator, inputs[0], attributes),
        bytes=sum(tensor.bytes for tensor in (*given, *outputs)),
        weight_bytes=sum(tensor.bytes for tensor in given if tensor.constant),
    )


def _kind(operator: str, first: Tensor, attributes: Attributes) -> Kind:
    narrow = operator == "MatMulNBits" and attributes.get("accuracy_level") == 4
    if operator in _INT8 or narrow:
        return "int8"
    return "fp32" if first.dtype == "float32" else ""


def _product(inputs: Inputs, outputs: Sequence[Tensor], attributes: Attributes) -> int:
    """[.., M, K] x [.., K, N] -> [.., M, N]: 2 K per output value."""
    left = _there(inputs[0])
    inner = left.shape[-2] if attributes.get("transA") else left.shape[-1]
    return 2 * outputs[0].elements * inner


def _convolution(weight: int) -> Count:
    """Weight [out, in / group, kernel..]: 2 in / group x kernel per output value, channels that only pad included."""

    def count(inputs: Inputs, outputs: Sequence[Tensor], _: Attributes) -> int:
        return 2 * outputs[0].elements * math.prod(_there(inputs[weight]).shape[1:])

    return count


def _transposed(inputs: Inputs, _outputs: Sequence[Tensor], _: Attributes) -> int:
    """Weight [in, out / group, kernel..]: 2 out / group x kernel per input value."""
    return 2 * _there(inputs[0]).elements * math.prod(_there(inputs[1]).shape[1:])


def _attention(inputs: Inputs, outputs: Sequence[Tensor], _: Attributes) -> int | None:
    """query [B, S, D] or [B, heads, S, d], key likewise of length L: 2 L for each value of query and output."""
    query = _there(inputs[0])
    if len(query.shape) not in (3, 4):
        return None  # query, key and value packed into one
    return 2 * _there(inputs[1]).shape[-2] * (query.elements + outputs[0].elements)


def _with_projection(inputs: Inputs, outputs: Sequence[Tensor], attributes: Attributes) -> int | None:
    """``com.microsoft.Attention``, [B, S, D] x [D, 3 H] first; ONNX's own operator of that name has no such weight."""
    tokens, weight = _there(inputs[0]), _there(inputs[1])
    if len(weight.shape) != 2:
        return _attention(inputs, outputs, attributes)
    batch, length, width = tokens.shape
    return 2 * batch * length * width * weight.shape[1] + 4 * length * outputs[0].elements


def _recurrent(inputs: Inputs, _outputs: Sequence[Tensor], _: Attributes) -> int:
    """Sequence [T, B, I]: both weights, those of the input and those of the state, once per step and sample."""
    steps, batch, _width = _there(inputs[0]).shape
    return 2 * steps * batch * (_there(inputs[1]).elements + _there(inputs[2]).elements)


def _there(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise IndexError
    return tensor


_INT8 = frozenset(
    {
        *("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm"),
        *("ConvInteger", "QLinearConv", "QLinearConvTranspose", "QAttention", "DynamicQuantizeLSTM"),
    }
)
_COUNTS: dict[str, Count] = {
    **dict.fromkeys(("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulNBits", "FusedMatMulActivation"), _product),
    **dict.fromkeys(("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"), _product),
    **dict.fromkeys(("QLinearMatMul", "QGemm", "GemmFastGelu"), _product),
    **dict.fromkeys(("Conv", "FusedConv", "NhwcConv", "NhwcFusedConv", "ConvInteger"), _convolution(1)),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed,
    **dict.fromkeys(("MultiHeadAttention",), _attention),
    **dict.fromkeys(("Attention", "QAttention"), _with_projection),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"), _recurrent),
}
