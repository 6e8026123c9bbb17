"""What dynamically quantized layers are made of: quantized data, rounded weights, and the kinds of layers there are.

    MatMul(x, W)  ->  Mul(Cast(MatMulInteger(xq, Wq, xz)), Mul(xs, ws))   with  xq, xs, xz = DynamicQuantizeLinear(x)

``linear``, ``lstm`` and ``attention`` hold a kind of layer each.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from optkit.passes._ir import add_constant, constant
from optkit.passes._quant.weights import quantize_weights, unfit

if TYPE_CHECKING:
    import onnx_ir as ir

Rounded = tuple[NDArray[np.int8], NDArray[np.float32]]
"""int8 weights and their float32 scales, in the layout that an operator takes."""


COMPUTED = "its second input is computed, not a constant weight"


class Refusal(Exception):
    """Why a node stays as it is."""


def float_weights(value: ir.Value | None, computed: str = COMPUTED) -> NDArray[np.float32]:
    """The array of a constant float32 weight of rank 2 and more.

    Raises:
        Refusal: it is something else; says ``computed`` where it is no constant.
    """
    weights = constant(value)
    if weights is None:
        raise Refusal(computed)
    if weights.dtype != np.float32:
        raise Refusal(f"its weights are {weights.dtype}, and only float32 is quantized")
    if weights.ndim < 2:
        raise Refusal("its weights are a vector")
    if reason := unfit(weights):
        raise Refusal(reason)
    return cast("NDArray[np.float32]", weights)


def optional_input(node: ir.Node, index: int) -> ir.Value | None:
    """The node's input there, if it has so many."""
    return node.inputs[index] if index < len(node.inputs) else None


@dataclass(frozen=True)
class Kind:
    """An operator that has an integer form."""

    check: Callable[[ir.Node], object]
    """Raises Refusal where a node cannot take it."""
    rewrite: Callable[[ir.Node, Parts], str]
    """Puts it in the node's place, whose outputs keep their names; returns what was done, for people."""


class Rounding:
    """Weights of a model, each rounded once for all that is built of it. It and its copies must outlive this."""

    def __init__(self, *, per_channel: bool, reduce_range: bool) -> None:
        self.per_channel = per_channel
        self.reduce_range = reduce_range
        self._done: dict[Hashable, Rounded] = {}

    def round(self, weights: NDArray[np.float32], axis: int) -> Rounded:
        """``quantize_weights``, with a scale for each channel of ``axis`` (0 or -1) or one for all, as was asked."""
        return quantize_weights(weights, axis=axis if self.per_channel else None, reduce_range=self.reduce_range)

    def once(self, source: ir.Value, how: Hashable, make: Callable[[], Rounded]) -> Rounded:
        """What ``make`` gives for the constant ``source``; ``how`` tells apart what it is made for."""
        import onnx_ir as ir

        key = (id(ir.convenience.get_const_tensor(source)), how)  # copies of a model share its tensors
        if key not in self._done:
            self._done[key] = make()
        return self._done[key]


class Parts:
    """Quantized data and weights in one graph, each made once."""

    def __init__(self, model: ir.Model, rounding: Rounding) -> None:
        self.rounding = rounding
        self._model = model
        self._made: dict[Hashable, tuple[ir.Value, ...]] = {}

    def data(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """DynamicQuantizeLinear of the node's first input: uint8 of the same shape, float32[], uint8[]."""
        import onnx_ir as ir

        value, graph = node.inputs[0], node.graph
        assert value is not None and graph is not None  # the checker guarantees data, and it came from a graph
        key = (id(graph), value)
        if key not in self._made:
            made = ir.node("DynamicQuantizeLinear", [value], num_outputs=3, name=f"{value.name}_quantize")
            for output, what in zip(made.outputs, ("quantized", "scale", "zero_point"), strict=True):
                output.name = f"{value.name}_{what}"
            graph.insert_before(node, made)
            self._made[key] = tuple(made.outputs)
        return self._made[key]

    def weights(self, source: ir.Value, how: Hashable, make: Callable[[], Rounded]) -> tuple[ir.Value, ir.Value]:
        """Initializers of int8 weights and scales, see ``Rounding.once``."""
        key = (source, how)
        if key not in self._made:
            rounded, scale = self.rounding.once(source, how, make)
            name = source.name
            self._made[key] = (self.initializer(f"{name}_int8", rounded), self.initializer(f"{name}_scale", scale))
        weights, scales = self._made[key]
        return weights, scales

    def initializer(self, name: str, array: NDArray[Any]) -> ir.Value:
        """A new initializer, seen from every subgraph, see ``add_constant``."""
        return add_constant(self._model.graph, name, array)

    def declare_contrib(self) -> None:
        """State that the model uses onnxruntime's own operators."""
        self._model.opset_imports.setdefault("com.microsoft", 1)


def replace(node: ir.Node, nodes: list[ir.Node]) -> None:
    """Put ``nodes`` in the place of ``node``; the outputs of the last one take over its outputs' names."""
    import onnx_ir as ir

    assert node.graph is not None  # it came from iterating over a graph
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], nodes, node.outputs, nodes[-1].outputs)
