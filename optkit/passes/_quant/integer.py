"""Float layers as dynamically quantized integer ones, in the shape that onnxruntime fuses into one kernel.

    MatMul(x, W)  ->  Mul(Cast(MatMulInteger(xq, Wq, xz)), Mul(xs, ws))   with  xq, xs, xz = DynamicQuantizeLinear(x)

Gemm and Conv become the same, with MatMulInteger and ConvInteger, and an Add for the bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optkit.passes._ir import constant
from optkit.passes._quant.weights import quantize_weights

if TYPE_CHECKING:
    import onnx_ir as ir


class Refusal(Exception):
    """Why a node stays as it is."""


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
    weights = constant(layer.source)
    if weights is None:
        raise Refusal("its second input is computed, not a constant weight")
    if weights.dtype != np.float32:
        raise Refusal(f"its weights are {weights.dtype}, and dynamic quantization takes float32 only")
    if weights.ndim < 2:
        raise Refusal("its weights are a vector")
    return layer


def _matmul(node: ir.Node) -> Layer:
    source, transposed = _through_transpose(node.inputs[1])
    return Layer("MatMulInteger", source, axis=0 if transposed else -1, transposed=transposed)


def _gemm(node: ir.Node) -> Layer:
    attributes = node.attributes
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if attributes.get_int("transA", 0):
        raise Refusal("its data are transposed (transA)")
    if bias is not None and attributes.get_float("beta", 1.0) != 1.0:
        raise Refusal("its bias is scaled (beta)")
    source, swapped = _through_transpose(node.inputs[1])
    transposed = swapped != bool(attributes.get_int("transB", 0))
    alpha = float(attributes.get_float("alpha", 1.0))
    return Layer("MatMulInteger", source, 0 if transposed else -1, transposed, factor=alpha, bias=bias)


def _conv(node: ir.Node) -> Layer:
    source, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    weights, offsets = constant(source), constant(bias)
    assert source is not None  # the checker guarantees Conv's weights
    if bias is not None and offsets is None:
        raise Refusal("its bias is computed")
    if offsets is not None and weights is not None:
        bias = _initializer(node, f"{node.outputs[0].name}_bias", offsets.reshape(-1, *[1] * (weights.ndim - 2)))
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    return Layer("ConvInteger", source, axis=0, bias=bias, attributes=attributes)


def _initializer(node: ir.Node, name: str, array: NDArray[Any]) -> ir.Value:
    """A new initializer in the node's graph, under ``name`` or, where that is taken, ``name_2`` and so on."""
    import onnx_ir as ir

    assert node.graph is not None  # it came from iterating over a graph
    names = (f"{name}_{number}" if number > 1 else name for number in count(1))
    free = next(candidate for candidate in names if candidate not in node.graph.initializers)
    value = ir.val(free, const_value=ir.tensor(array))
    node.graph.register_initializer(value)
    return value


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


class IntegerRewriter:
    """Replaces nodes one by one, sharing quantized inputs and quantized weights between them."""

    def __init__(self, *, per_channel: bool, reduce_range: bool) -> None:
        self._per_channel = per_channel
        self._reduce_range = reduce_range
        self._made: dict[tuple[object, ...], tuple[ir.Value, ...]] = {}

    def rewrite(self, node: ir.Node) -> str:
        """Put the integer form of a MatMul, Gemm or Conv in its place; its output keeps its name.

        Returns:
            What was done, for people.

        Raises:
            Refusal: see ``read_layer``.
        """
        import onnx_ir as ir

        layer = read_layer(node)
        data, data_scale, data_zero = self._input(node)
        weight, scale = self._weights(node, layer)
        name = node.name or f"{node.outputs[0].name}"
        product = ir.node(layer.op, [data, weight, data_zero], layer.attributes, name=f"{name}_quant")
        cast = ir.node("Cast", product.outputs, {"to": ir.DataType.FLOAT}, name=f"{name}_cast")
        scales = ir.node("Mul", [data_scale, scale], name=f"{name}_scales")
        nodes = [product, cast, scales, ir.node("Mul", [cast.outputs[0], scales.outputs[0]], name=f"{name}_rescale")]
        if layer.bias is not None:
            nodes.append(ir.node("Add", [nodes[-1].outputs[0], layer.bias], name=f"{name}_bias"))
        for inner in nodes[:-1]:
            inner.outputs[0].name = f"{inner.name}_out"
        assert node.graph is not None  # it came from iterating over a graph
        ir.convenience.replace_nodes_and_values(node.graph, node, [node], nodes, node.outputs, nodes[-1].outputs)
        return f"{node.op_type} -> {layer.op}, weights {list(weight.shape or ())}"

    def _input(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """DynamicQuantizeLinear of the node's data: uint8 of the same shape, float32[], uint8[]."""
        import onnx_ir as ir

        value, graph = node.inputs[0], node.graph
        assert value is not None and graph is not None  # see rewrite
        key = (id(graph), id(value))
        if key not in self._made:
            made = ir.node("DynamicQuantizeLinear", [value], num_outputs=3, name=f"{value.name}_quantize")
            for output, what in zip(made.outputs, ("quantized", "scale", "zero_point"), strict=True):
                output.name = f"{value.name}_{what}"
            graph.insert_before(node, made)
            self._made[key] = tuple(made.outputs)
        return self._made[key]

    def _weights(self, node: ir.Node, layer: Layer) -> tuple[ir.Value, ...]:
        """Initializers for the int8 weights as ``layer.op`` takes them, and their float32 scale."""
        key = (id(node.graph), id(layer.source), layer.transposed, layer.factor, layer.op)
        if key not in self._made:
            rounded, scale = self._round(layer)
            name = layer.source.name
            self._made[key] = (_initializer(node, f"{name}_int8", rounded), _initializer(node, f"{name}_scale", scale))
        return self._made[key]

    def _round(self, layer: Layer) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        weights = constant(layer.source)
        assert weights is not None  # read_layer looked
        axis = layer.axis if self._per_channel else None
        rounded, scale = quantize_weights(weights, axis=axis, reduce_range=self._reduce_range)
        if layer.transposed:
            rounded = np.ascontiguousarray(rounded.T)
        if layer.op == "ConvInteger" and scale.ndim:
            scale = scale.reshape(-1, *[1] * (weights.ndim - 2))
        return rounded, scale * np.float32(layer.factor)
