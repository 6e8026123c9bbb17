"""Where a scale for each channel of an activation can go without a new operator: into constants before it.

MatMul(LayerNormalization(x, gamma, beta), W)  ->  MatMul(LayerNormalization(x, gamma / s, beta / s), s * W)
MatMul(Relu(Add(MatMul(x, V), b)), W)          ->  MatMul(Relu(Add(MatMul(x, V / s), b / s)), s * W)
MatMul(attention(q, k, MatMul(x, V)), W)       ->  MatMul(attention(q, k, MatMul(x, V / s)), s * W)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from optkit.passes._ir import add_constant, constant, node_label
from optkit.passes._quant.integer import Refusal
from optkit.passes._quant.linear import read_layer
from optkit.passes._quant.stream import Floats

if TYPE_CHECKING:
    import onnx_ir as ir

Step = Callable[[Floats], None]
"""Divides a constant by a scale, float32[K]."""
Rule = Callable[["ir.Node", int], "Fold"]

SWAP = [0, 2, 1, 3]
"""[batch, heads, seq, size] to [batch, seq, heads, size] and back."""


@dataclass(frozen=True)
class Fold:
    """Everything to divide so that an activation comes out divided."""

    into: str
    """The operator that takes the scale in, for people."""
    steps: Sequence[Step]

    def __call__(self, scale: Floats) -> None:
        """Change the graph."""
        for step in self.steps:
            step(scale)


def find_fold(value: ir.Value, readers: Sequence[ir.Node], width: int, index: int = 0) -> Fold:
    """How to divide ``value``, [..., width], which only input ``index`` of ``readers`` may see.

    Raises:
        Refusal: there is no way.
    """
    _check_readers(value, readers, index)
    node = value.producer()
    if node is None:
        raise Refusal("it reads an input of the model")
    rule = _RULES.get((node.domain, node.op_type)) if value is node.outputs[0] else None
    if rule is None:
        raise Refusal(f"it follows {node_label(node)}, and no scale gets through {node.op_type}")
    return rule(node, width)


def _check_readers(value: ir.Value, readers: Sequence[ir.Node], index: int) -> None:
    if value.is_graph_output():
        raise Refusal(f"its input {value.name} is an output of the model too")
    other = next((use.node for use in value.uses() if use.node not in readers or use.idx != index), None)
    if other is not None:
        raise Refusal(f"its input {value.name} is read by {node_label(other)} ({other.op_type}) too")


# --- constants ----------------------------------------------------------------------------------------------------


def weight_matrix(node: ir.Node) -> Floats:
    """The weights of a MatMul or Gemm as [K, N].

    Raises:
        Refusal: they are no constant float32 matrix.
    """
    layer = read_layer(node)
    stored = constant(layer.source)
    if stored is None or stored.ndim != 2:
        raise Refusal("its weights are no matrix")
    for other in (use.node for value in (layer.source, node.inputs[1]) if value is not None for use in value.uses()):
        if other is not node and other.op_type in ("MatMul", "Gemm"):
            raise Refusal(f"its weights are shared with {node_label(other)}")
    return (stored.T if layer.transposed else stored).astype(np.float32, copy=False)


def set_weight_matrix(node: ir.Node, matrix: Floats) -> None:
    """Give a MatMul or Gemm other weights, [K, N]."""
    turned = node.op_type == "Gemm" and node.attributes.get_int("transB", 0)
    _set_constant(node, 1, np.ascontiguousarray(matrix.T if turned else matrix))


def _set_constant(node: ir.Node, index: int, array: Floats) -> None:
    old, graph = node.inputs[index], node.graph
    assert old is not None and graph is not None  # callers looked at both
    node.replace_input_with(index, add_constant(graph, f"{old.name}_smooth", array))


def _divided(node: ir.Node, index: int, width: int) -> Step:
    """A constant input to divide along its last axis: a scalar, [..., width], or the last ``width`` of packed ones.

    Raises:
        Refusal: it is computed, or has another size.
    """
    held = constant(node.inputs[index])
    if held is None or held.dtype != np.float32:
        raise Refusal(f"it follows {node_label(node)}, whose parameters are computed or not float32")
    if held.size != 1 and (held.shape[-1] < width or held.size != held.shape[-1]):
        raise Refusal(f"it follows {node_label(node)}, whose parameters do not go by channel")
    array = held.astype(np.float32, copy=False)

    def divide(scale: Floats) -> None:
        factors = np.ones(max(array.size, width), np.float32)
        factors[-width:] = scale
        _set_constant(node, index, array.reshape(-1) / factors if array.size == 1 else array / factors)

    return divide


# --- rules --------------------------------------------------------------------------------------------------------


def _norm(parameters: tuple[int, ...], node: ir.Node, width: int) -> Fold:
    given = [index for index in parameters if index < len(node.inputs) and node.inputs[index] is not None]
    sizes = [constant(node.inputs[index]) for index in given]
    if any(held is not None and held.size != width for held in sizes):
        raise Refusal(f"it follows {node_label(node)}, which normalizes more than the channels")
    return Fold(node_label(node), [_divided(node, index, width) for index in given])


def _linear(node: ir.Node, width: int) -> Fold:
    try:
        channels = weight_matrix(node).shape[1]
    except Refusal as reason:
        raise Refusal(f"it follows {node_label(node)}, and there {reason}") from reason
    if channels != width:
        raise Refusal(f"it follows {node_label(node)}, which has another number of channels")
    steps: list[Step] = [lambda scale: set_weight_matrix(node, weight_matrix(node) / scale)]
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        steps.append(_divided(node, 2, width))
    return Fold(node_label(node), steps)


def _add(node: ir.Node, width: int) -> Fold:
    held = _constant_operand(node)
    if held is None:
        raise Refusal(f"it follows {node_label(node)}, a sum of computed values")
    bias, rest = _divided(node, held, width), _through(1 - held, node, width)
    return Fold(rest.into, [bias, *rest.steps])


def _mul(node: ir.Node, width: int) -> Fold:
    """Into one factor: a constant, or the first of two that takes it (the gate of a gated layer need not)."""
    held = _constant_operand(node)
    if held is not None:
        return Fold(node_label(node), [_divided(node, held, width)])
    try:
        return _through(1, node, width)
    except Refusal:
        return _through(0, node, width)


def _constant_operand(node: ir.Node) -> int | None:
    return next((index for index in (0, 1) if constant(node.inputs[index]) is not None), None)


def _through(index: int, node: ir.Node, width: int) -> Fold:
    value = node.inputs[index]
    assert value is not None  # an operand
    return find_fold(value, [node], width, index)


def _multi_head(node: ir.Node, width: int) -> Fold:
    """``MultiHeadAttention(q, k, v, bias, ...)`` mixes rows of v, never its channels."""
    inputs = [*node.inputs, *[None] * 8]
    kept = any(value.uses() or value.is_graph_output() for value in node.outputs[1:])
    if kept or inputs[2] is None or inputs[6] is not None or inputs[7] is not None:
        raise Refusal(f"it follows {node_label(node)}, whose values are packed or kept")
    bias = [_divided(node, 3, width)] if inputs[3] is not None else []
    rest = _through(2, node, width)
    return Fold(rest.into, [*bias, *rest.steps])


def _merge(node: ir.Node, width: int) -> Fold:
    """``Reshape(Transpose(MatMul(p, Transpose(Reshape(v)))))``: attention spelled out mixes rows of v as well."""
    swapped = _before(node, 0, "Transpose")
    product = _before(swapped, 0, "MatMul")
    heads = _before(product, 1, "Transpose")
    split = _before(heads, 0, "Reshape")
    if any(list(each.attributes.get_ints("perm", [])) != SWAP for each in (swapped, heads)):
        raise Refusal(f"it follows {node_label(node)}, which is no attention")
    if _heads(split) != width:
        raise Refusal(f"it follows {node_label(node)}, attention with heads of unknown size")
    return _through(0, split, width)


def _heads(split: ir.Node) -> int | None:
    """Heads times their size, of a Reshape to [batch, seq, heads, size]; None where it is not known."""
    shape, target = split.outputs[0].shape, constant(split.inputs[1])
    sizes = list(shape.dims if shape is not None else () if target is None else target.tolist())
    known = [size for size in sizes[2:] if isinstance(size, int) and size > 0]
    return known[0] * known[1] if len(sizes) == 4 and len(known) == 2 else None


def _before(node: ir.Node, index: int, kind: str) -> ir.Node:
    """What makes an input of ``node`` for it alone.

    Raises:
        Refusal: it is not of this kind, or read elsewhere.
    """
    value = node.inputs[index]
    source = None if value is None else value.producer()
    if value is None or source is None or (source.domain, source.op_type) != ("", kind):
        raise Refusal(f"it follows {node_label(node)}, and no scale gets through {node.op_type}")
    _check_readers(value, [node], index)
    return source


_RULES: dict[tuple[str, str], Rule] = {
    ("", "LayerNormalization"): partial(_norm, (1, 2)),
    ("", "RMSNormalization"): partial(_norm, (1,)),
    ("", "SimplifiedLayerNormalization"): partial(_norm, (1,)),
    ("com.microsoft", "SkipLayerNormalization"): partial(_norm, (2, 3)),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): partial(_norm, (2,)),
    ("com.microsoft", "EmbedLayerNormalization"): partial(_norm, (5, 6)),
    ("", "MatMul"): _linear,
    ("", "Gemm"): _linear,
    ("", "Add"): _add,
    ("", "Mul"): _mul,
    ("", "Div"): partial(_through, 0),
    ("", "Relu"): partial(_through, 0),
    ("", "LeakyRelu"): partial(_through, 0),
    ("", "Identity"): partial(_through, 0),
    ("com.microsoft", "MultiHeadAttention"): _multi_head,
    ("", "Reshape"): _merge,
}
