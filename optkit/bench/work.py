"""What a node has to do: arithmetic operations and bytes, from its operator, shapes and dtypes alone.

A multiplication and the addition of its product count as two operations, so a product of [M, K] and [K, N] counts
2 M N K. Every input and output counts once as moved, whatever caches and kernels make of that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["fp32", "int8", ""]
"""Which of the machine's arithmetic limits holds; empty = one that is not measured (float16, float64)."""


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
        return (self.elements * _bits(self.dtype) + 7) // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


def _bits(dtype: str) -> int:
    """Of one value: the first number in the type's name, as in ``float8e4m3fn``; 0 for strings."""
    found = re.search(r"\d+", dtype)
    return int(found[0]) if found else 8 * (dtype == "bool")


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
    count = COUNTS.get(operator)
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


def _product(inputs: Inputs, outputs: Sequence[Tensor], attributes: Attributes) -> int | None:
    """[.., M, K] x [.., K, N] -> [.., M, N]: 2 K per output value."""
    left = _there(inputs[0])
    if attributes.get("transA") and attributes.get("transBatchA"):
        return None  # K is none of the last two axes
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


def _attention(past: int, *unknown: int) -> Count:
    """query [B, S, D] or [B, heads, S, d], key and value likewise of length L, after a past [B, heads, P, d].

    2 (L + P) for each value of query and output.

    Args:
        past: position of the past keys.
        unknown: positions of inputs by which the length is only known while the model runs.
    """

    def count(inputs: Inputs, outputs: Sequence[Tensor], _: Attributes) -> int | None:
        query, key, _value = map(_there, inputs[:3])  # packed into one or two, others are left out
        if len(query.shape) not in (3, 4) or any(_optional(inputs, place) for place in unknown):
            return None
        return 2 * (key.shape[-2] + _length(inputs, past)) * (query.elements + outputs[0].elements)

    return count


def _with_projection(past: int, *unknown: int) -> Count:
    """Of ``com.microsoft``: [B, S, D] x [D, 2 H + V] first, then 2 (S + P) for each value of query and output."""

    def count(inputs: Inputs, outputs: Sequence[Tensor], _: Attributes) -> int | None:
        tokens, weight = _there(inputs[0]), _there(inputs[1])
        if any(_optional(inputs, place) for place in unknown):
            return None
        batch, length, width = tokens.shape
        _width, columns = weight.shape
        value = outputs[0].shape[-1]
        heads = (columns - value) // 2 + value
        return 2 * batch * length * (width * columns + (length + _length(inputs, past)) * heads)

    return count


def _either_attention(inputs: Inputs, outputs: Sequence[Tensor], attributes: Attributes) -> int | None:
    """ONNX's own operator and ``com.microsoft``'s, whose second input is a weight [D, columns], share a name."""
    weight = len(_there(inputs[1]).shape) == 2
    return (_with_projection(4, 6) if weight else _attention(4, 6))(inputs, outputs, attributes)


def _length(inputs: Inputs, past: int) -> int:
    """Of a past [.., P, d], 0 where there is none."""
    found = _optional(inputs, past)
    return 0 if found is None else found.shape[-2]


def _optional(inputs: Inputs, place: int) -> Tensor | None:
    return inputs[place] if place < len(inputs) else None


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
        *("ConvInteger", "QLinearConv", "QAttention", "DynamicQuantizeLSTM"),
    }
)
COUNTS: dict[str, Count] = {
    **dict.fromkeys(("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulNBits", "FusedMatMulActivation"), _product),
    **dict.fromkeys(("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"), _product),
    **dict.fromkeys(("QLinearMatMul", "QGemm", "GemmFastGelu"), _product),
    **dict.fromkeys(("Conv", "FusedConv", "NhwcConv", "NhwcFusedConv", "ConvInteger"), _convolution(1)),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed,
    "MultiHeadAttention": _attention(6, 8),
    "Attention": _either_attention,
    "QAttention": _with_projection(8),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"), _recurrent),
}
