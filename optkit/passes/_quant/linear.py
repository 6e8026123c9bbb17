"""MatMul, Gemm and Conv as integer products, in the shape that onnxruntime fuses into one kernel.

    MatMul(x, W)  ->  Mul(Cast(MatMulInteger(xq, Wq, xz)), Mul(xs, ws))   with  xq, xs, xz = DynamicQuantizeLinear(x)

Gemm and Conv become the same, with MatMulInteger and ConvInteger, and an Add for the bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from optkit.passes._ir import constant
from optkit.passes._quant.integer import Kind, Parts, Refusal, Rounded, Rounding, float_weights, optional_input, replace

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Layer:
    """One linear layer, whatever operator spells it: ``op(x, weights) * factor + bias``."""

    op: str
    """MatMulInteger or ConvInteger."""
    source: ir.Value
    """Where the float weights come from; with ``transposed`` and ``factor`` it says which layers share them."""
    axis: int
    """Axis of output channels of the float weights as they are stored, 0 or -1."""
    transposed: bool = False
    """Whether the stored weights are the transposed of what ``op`` takes."""
    factor: float = 1.0
    bias: ir.Value | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


def read_layer(node: ir.Node) -> Layer:
    """What a MatMul, Gemm or Conv computes.

    Raises:
        Refusal: its weights are not constant float32, or it has attributes that integer operators cannot express.
    """
    layer = {"MatMul": _matmul, "Gemm": _gemm, "Conv": _conv}[node.op_type](node)
    float_weights(layer.source)
    return layer


def _matmul(node: ir.Node) -> Layer:
    source, transposed = _through_transpose(node.inputs[1])
    return Layer("MatMulInteger", source, axis=0 if transposed else -1, transposed=transposed)


def _gemm(node: ir.Node) -> Layer:
    attributes = node.attributes
    bias = optional_input(node, 2)
    if attributes.get_int("transA", 0):
        raise Refusal("its data are transposed (transA)")
    if bias is not None and attributes.get_float("beta", 1.0) != 1.0:
        raise Refusal("its bias is scaled (beta)")
    source, swapped = _through_transpose(node.inputs[1])
    transposed = swapped != bool(attributes.get_int("transB", 0))
    alpha = float(attributes.get_float("alpha", 1.0))
    return Layer("MatMulInteger", source, 0 if transposed else -1, transposed, factor=alpha, bias=bias)


def _conv(node: ir.Node) -> Layer:
    source, bias = node.inputs[1], optional_input(node, 2)
    assert source is not None  # the checker guarantees Conv's weights
    if bias is not None and constant(bias) is None:
        raise Refusal("its bias is computed")
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    return Layer("ConvInteger", source, axis=0, bias=bias, attributes=attributes)


def _through_transpose(value: ir.Value | None) -> tuple[ir.Value, bool]:
    """The value behind a Transpose of a constant matrix (tied embeddings), and whether it swaps the axes."""
    assert value is not None  # the checker guarantees both operands
    node = value.producer()
    if node is None or (node.domain, node.op_type) != ("", "Transpose") or node.inputs[0] is None:
        return value, False
    weights = constant(node.inputs[0])
    if weights is None or weights.ndim != 2:
        return value, False
    return node.inputs[0], list(node.attributes.get_ints("perm", [1, 0])) == [1, 0]


def _rewrite(node: ir.Node, parts: Parts) -> str:
    import onnx_ir as ir

    layer = read_layer(node)
    data, data_scale, data_zero = parts.data(node)
    how = (layer.op, layer.transposed, layer.factor)
    weight, scale = parts.weights(layer.source, how, lambda: _round(layer, parts.rounding))
    name = node.name or f"{node.outputs[0].name}"
    product = ir.node(layer.op, [data, weight, data_zero], layer.attributes, name=f"{name}_quant")
    cast = ir.node("Cast", product.outputs, {"to": ir.DataType.FLOAT}, name=f"{name}_cast")
    scales = ir.node("Mul", [data_scale, scale], name=f"{name}_scales")
    nodes = [product, cast, scales, ir.node("Mul", [cast.outputs[0], scales.outputs[0]], name=f"{name}_rescale")]
    if layer.bias is not None:
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], _bias(layer, name, parts)], name=f"{name}_bias"))
    for inner in nodes[:-1]:
        inner.outputs[0].name = f"{inner.name}_out"
    replace(node, nodes)
    return f"{node.op_type} -> {layer.op}, weights {list(weight.shape or ())}"


def _bias(layer: Layer, name: str, parts: Parts) -> ir.Value | None:
    """The bias, for a convolution with an axis of its own for each spatial axis."""
    offsets, weights = constant(layer.bias), constant(layer.source)
    if layer.op != "ConvInteger" or offsets is None or weights is None:
        return layer.bias
    return parts.initializer(f"{name}_bias_values", offsets.reshape(-1, *[1] * (weights.ndim - 2)))


def _round(layer: Layer, rounding: Rounding) -> Rounded:
    weights = float_weights(layer.source)
    rounded, scale = rounding.round(weights, layer.axis)
    if layer.transposed:
        rounded = np.ascontiguousarray(rounded.T)
    if layer.op == "ConvInteger" and scale.ndim:
        scale = scale.reshape(-1, *[1] * (weights.ndim - 2))
    return rounded, scale * np.float32(layer.factor)


LINEAR = Kind(check=read_layer, rewrite=_rewrite)
