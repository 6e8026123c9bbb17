"""The bias behind a product of dequantized tensors, inside of one integer kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optkit.passes._fusion.family import Fired
from optkit.passes._ir import constant, node_label, sole_source

if TYPE_CHECKING:
    import onnx_ir as ir


class _Refusal(Exception):
    """Why a product stays as it is."""


def fuse_int8_matmul(model: ir.Model) -> Fired:
    """``Add(MatMul(DequantizeLinear(x, ..), DequantizeLinear(W, ..)), b) -> MatMulIntegerToFloat(x, W, .., b)``.

    onnxruntime makes the product alone an integer kernel; the bias is an operator of its own then.
    """
    refused, count = [], 0
    for node in list(model.graph.all_nodes()):
        found = _product(node) if (node.domain, node.op_type) == ("", "Add") else None
        if found is None:
            continue
        product, bias = found
        try:
            _rewrite(node, product, bias)
            count += 1
        except _Refusal as reason:
            refused.append((node_label(product), str(reason)))
    return Fired(count, tuple(refused))


def _product(addition: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """A product of two dequantized tensors, and what is added to it."""
    for position, value in enumerate(addition.inputs):
        node, other = sole_source(value), addition.inputs[1 - position]
        if node is None or other is None or (node.domain, node.op_type) != ("", "MatMul"):
            continue
        if all(_dequantizer(each) is not None for each in node.inputs):
            return node, other
    return None


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and (node.domain, node.op_type) == ("", "DequantizeLinear") else None


def _rewrite(addition: ir.Node, product: ir.Node, bias: ir.Value) -> None:
    """Put the kernel in the place of both.

    Raises:
        _Refusal: it takes no such tensors.
    """
    import onnx_ir as ir

    data, weights = (_dequantizer(value) for value in product.inputs)
    assert data is not None and weights is not None and addition.graph is not None  # see _product
    _check(data, weights, constant(bias))
    quantized = [_inputs(data), _inputs(weights)]
    inputs = [each[position] for position in range(3) for each in quantized]
    name = f"{product.name or addition.outputs[0].name}_int8"
    made = ir.node("MatMulIntegerToFloat", [*inputs, bias], domain="com.microsoft", name=name)
    made.outputs[0].type, made.outputs[0].shape = addition.outputs[0].type, addition.outputs[0].shape
    old = [addition, product]
    ir.convenience.replace_nodes_and_values(addition.graph, addition, old, [made], addition.outputs, made.outputs)


def _check(data: ir.Node, weights: ir.Node, bias: np.ndarray | None) -> None:
    matrix, scales, scale = constant(weights.inputs[0]), constant(weights.inputs[1]), constant(data.inputs[1])
    if matrix is None or matrix.ndim != 2 or scales is None:
        raise _Refusal("its weights are computed, or no matrix")
    width = matrix.shape[1]
    if bias is None or bias.shape != (width,) or bias.dtype != np.float32:
        raise _Refusal("what is added to it is no constant float32 bias")
    kinds = [_byte(node) for node in (data, weights)]
    if None in kinds:
        raise _Refusal("its integers have more than 8 bits, or fewer")
    if kinds == ["INT8", "UINT8"]:
        raise _Refusal("no kernel multiplies int8 data by uint8 weights")
    if scale is None or scale.size != 1:
        raise _Refusal("its data have more than one scale, or a computed one")
    if scales.size != 1 and (scales.shape != (width,) or weights.attributes.get_int("axis", 1) not in (1, -1)):
        raise _Refusal("the scales of its weights are not one for each column")


def _byte(node: ir.Node) -> str | None:
    """INT8 or UINT8 where it dequantizes that to float32, else None; the zero point has the type where there is one."""
    import onnx_ir as ir

    quantized, _, zero = _inputs(node)
    kind = next((each.dtype for each in (zero, quantized) if each is not None and each.dtype is not None), None)
    known = kind in (ir.DataType.INT8, ir.DataType.UINT8) and node.inputs[1].dtype in (None, ir.DataType.FLOAT)
    return kind.name if kind is not None and known else None


def _inputs(node: ir.Node) -> tuple[ir.Value | None, ir.Value | None, ir.Value | None]:
    """Integers, scale, zero point."""
    return node.inputs[0], node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
