"""QuantizeLinear and DequantizeLinear around nodes, and weights as integers.

``y = Conv(x, W, b)  ->  y = DQ(Q(Conv(DQ(Q(x)), DQ(Wq), DQ(bq))))``, which engines run as one integer kernel.

The result keeps its name behind the DequantizeLinear, so that whoever takes it needs no change, and every tensor of the
float model is there to be compared. A tensor has one pair, shared by all that take it. Results of MatMul and Gemm are
not rounded: a pair stands only in front of those who want integers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optkit.passes._ir import constant
from optkit.passes._quant.bias import bias_shift
from optkit.passes._quant.flow import absorbed_by, gives_integers
from optkit.passes._quant.operators import FOLLOWING, OPERANDS, WEIGHTED
from optkit.passes._quant.weights import quantize_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from optkit.passes._quant.cpu import Grid
    from optkit.passes._quant.flow import Held
    from optkit.passes._quant.ranges import Activations

INT32 = 2**31 - 1
OPSET_16_BITS = 21
"""Where ONNX's own QuantizeLinear learns 16 bits; before, onnxruntime's does."""
Array = NDArray[Any]


@dataclass
class Weights:
    """Integers of weights, made once for all models that are built."""

    per_channel: bool
    reduce_range: bool
    made: dict[str, tuple[Array, Array]] = field(default_factory=dict)

    def of(self, name: str, weights: Array, axis: int | None) -> tuple[Array, Array]:
        """int8 of the weights' shape, and float32[channels], or float32[] without an axis."""
        key = f"{name} {axis}"
        if key not in self.made:
            moved = weights if axis is None else np.moveaxis(weights, axis, 0)
            integers, scale = quantize_weights(
                np.ascontiguousarray(moved), axis=None if axis is None else 0, reduce_range=self.reduce_range
            )
            self.made[key] = (integers if axis is None else np.moveaxis(integers, 0, axis)), scale
        return self.made[key]


@dataclass(frozen=True)
class _Step:
    """How a tensor is rounded."""

    grid: Grid
    scale: np.float32
    zero: int


class QdqWriter:
    """Rewrites one graph in place.

    Args:
        model: in float.
        held: its nodes that are to compute on integers, in the graph's order.
        grids: precision -> integers of activations.
        activations: what calibration found.
        weights: integers that other graphs of the same model share.
        correct_bias: see ``bias_shift``.
    """

    def __init__(
        self,
        model: ir.Model,
        held: Held,
        grids: Mapping[str, Grid],
        activations: Activations,
        weights: Weights,
        *,
        correct_bias: bool,
    ) -> None:
        self._model, self._held, self._grids = model, held, grids
        self._activations, self._weights, self._correct_bias = activations, weights, correct_bias
        self._steps: dict[ir.Value, _Step] = {}
        self._sources: dict[ir.Value, str] = {}
        self._pairs: dict[tuple[ir.Value, str], ir.Value] = {}

    def write(self) -> list[tuple[str, str]]:
        """Quantize every held node; (node, what)."""
        flows = {node: self._rounds(node) for node in self._held}
        changes = []
        for node, level in self._held.items():
            grid = self._grids[level]
            for index in self._activation_inputs(node):
                node.replace_input_with(index, self._read(node.inputs[index], grid))
            if node.op_type in WEIGHTED:
                self._quantize_weights(node)
            if flows[node]:
                for value in node.outputs:
                    self._round(node, value, grid)
            integers = ", int8 weights" if node.op_type in WEIGHTED else ""
            changes.append((node.name or "", f"{node.op_type} on {grid.name} activations{integers}"))
        return changes

    def _rounds(self, node: ir.Node) -> bool:
        output = node.outputs[0]
        return gives_integers(output, self._held) and absorbed_by(output, self._held) is None

    def _activation_inputs(self, node: ir.Node) -> list[int]:
        indices = range(len(node.inputs)) if node.op_type in OPERANDS else range(1)
        producers = [value.producer() if value is not None else None for value in node.inputs]
        return [
            index
            for index in indices
            if (value := node.inputs[index]) is not None
            and (value in self._steps or value.name in self._activations or _is_float(constant(value)))
            and not (producers[index] in self._held and absorbed_by(value, self._held) is node)
        ]

    def _read(self, value: ir.Value | None, grid: Grid) -> ir.Value:
        """The tensor on the grid: as it is where it is rounded so already, else behind a pair of its own."""
        assert value is not None  # see _activation_inputs
        step = self._steps.get(value)
        if step is not None and step.grid == grid:
            return value
        key = (value, grid.name)
        if key not in self._pairs:
            self._pairs[key] = self._constant(value, grid) if constant(value) is not None else self._pair(value, grid)
        return self._pairs[key]

    def _pair(self, value: ir.Value, grid: Grid) -> ir.Value:
        step = self._step(value, grid)
        nodes = self._q_and_dq(value, step)
        producer = value.producer()
        if producer is None or producer.graph is not self._model.graph:
            self._model.graph.insert_before(self._model.graph[0], nodes)
        else:
            producer.append(nodes)
        made = nodes[1].outputs[0]
        made.name = f"{value.name}_{grid.name}"
        return self._note(made, value, step, value.name or "")

    def _round(self, node: ir.Node, value: ir.Value, grid: Grid) -> None:
        """Behind ``node``, with the value's name on what comes out of DequantizeLinear."""
        if value.name not in self._activations:
            return
        step = self._steps.get(node.inputs[0]) if node.op_type in FOLLOWING else None
        step = step or self._step(value, grid)
        name, users, outputs = value.name, list(value.uses()), self._model.graph.outputs
        nodes = self._q_and_dq(value, step)
        node.append(nodes)
        made = nodes[1].outputs[0]
        for user in users:
            user.node.replace_input_with(user.idx, made)
        for index, output in enumerate(outputs):
            if output is value:
                outputs[index] = made
        value.name, made.name = f"{name}_float", name
        self._note(made, value, step, name or "")

    def _note(self, made: ir.Value, like: ir.Value, step: _Step, source: str) -> ir.Value:
        made.shape, made.type = like.shape, like.type
        self._steps[made], self._sources[made] = step, source
        return made

    def _step(self, value: ir.Value, grid: Grid) -> _Step:
        found = self._activations[value.name or ""]
        return _Step(grid, *grid.step(*(found.bounds if grid.bits == 8 else found.seen)))

    def _q_and_dq(self, value: ir.Value, step: _Step) -> list[ir.Node]:
        name = f"{value.name}_{step.grid.name}"
        scale = self._tensor(f"{name}_scale", np.array(step.scale))
        zero = self._tensor(f"{name}_zero_point", np.array(step.zero, step.grid.name))
        quantize = self._node("QuantizeLinear", [value, scale, zero], f"{name}_quantize")
        quantize.outputs[0].name = f"{name}_integers"
        return [quantize, self._node("DequantizeLinear", [quantize.outputs[0], scale, zero], f"{name}_dequantize")]

    def _node(self, kind: str, inputs: list[ir.Value], name: str, axis: int | None = None) -> ir.Node:
        import onnx_ir as ir

        sixteen = any(value.dtype in (ir.DataType.INT16, ir.DataType.UINT16) for value in inputs)
        own = sixteen and (self._model.opset_imports.get("") or 0) < OPSET_16_BITS
        if own:
            self._model.opset_imports["com.microsoft"] = 1
        return ir.node(
            kind, inputs, {} if axis is None else {"axis": axis}, domain="com.microsoft" if own else "", name=name
        )

    def _tensor(self, name: str, array: Array) -> ir.Value:
        import onnx_ir as ir

        held = self._model.graph.initializers
        free = next(each for number in range(len(held) + 1) if (each := name + "_" * number) not in held)
        value = ir.val(free, const_value=ir.tensor(array, name=free))
        self._model.graph.register_initializer(value)
        return value

    def _dequantized(self, node: ir.Node, name: str, integers: Array, scale: Array, zero: int, axis: int) -> ir.Value:
        """Integers in the file, and the node that makes floats of them, before ``node``."""
        inputs = [self._tensor(f"{name}_integers", integers), self._tensor(f"{name}_scale", scale)]
        inputs.append(self._tensor(f"{name}_zero_point", np.full(scale.shape, zero, integers.dtype)))
        made = self._node("DequantizeLinear", inputs, f"{name}_dequantize", axis if scale.ndim else None)
        made.outputs[0].name = f"{name}_dequantized"
        node.prepend(made)
        return made.outputs[0]

    def _constant(self, value: ir.Value, grid: Grid) -> ir.Value:
        """A constant operand on the grid."""
        array: Array | None = constant(value)
        assert array is not None  # see _read
        scale, zero = grid.step(float(array.min()), float(array.max()))
        limits = np.iinfo(grid.name)
        integers = np.clip(np.rint(array / scale) + zero, limits.min, limits.max).astype(grid.name)
        first = self._model.graph[0]
        return self._dequantized(first, f"{value.name}_{grid.name}", integers, np.array(scale), zero, 0)

    def _quantize_weights(self, node: ir.Node) -> None:
        source, data = node.inputs[1], node.inputs[0]
        weights = constant(source)
        assert source is not None and data is not None and weights is not None  # see operators.refusal
        axis = channel_axis(node, weights) if self._weights.per_channel else None
        integers, scale = self._weights.of(source.name or "", weights, axis)
        factor = node.attributes.get_float("alpha", 1.0) if node.op_type == "Gemm" else 1.0
        bias = self._bias(node, weights, integers, scale, axis)
        if bias is not None:
            # A bias far above its channel's products needs a coarser scale to fit into 32 bits.
            step = np.float64(self._steps[data].scale) * factor
            least = np.asarray(np.abs(bias).max() if axis is None else np.abs(bias)) / (step * INT32 / 2)
            if (scale < least).any():
                coarse = np.maximum(scale, least).astype(np.float32)
                integers = np.rint(integers * _along(scale / coarse, axis, integers.ndim)).astype(np.int8)
                scale = coarse
            exact = np.clip(np.rint(bias / (step * scale)), -INT32, INT32).astype(np.int32)
            name = f"{node.name}_bias"
            node.resize_inputs(3)
            node.attributes.pop("beta", None)  # 1 already where there was a bias, without a meaning where there was none
            made = self._dequantized(node, name, exact, np.asarray(step * scale, np.float32), 0, 0)
            node.replace_input_with(2, made)
        key = (source, f"weights {axis} {scale.tobytes()!r}")
        if key not in self._pairs:
            self._pairs[key] = self._dequantized(self._model.graph[0], source.name or "", integers, scale, 0, axis or 0)
        node.replace_input_with(1, self._pairs[key])

    def _bias(self, node: ir.Node, weights: Array, integers: Array, scale: Array, axis: int | None) -> Array | None:
        """float64[out] with the correction, or None where the layer has none and needs none."""
        value = node.inputs[2] if len(node.inputs) > 2 else None
        given = constant(value)
        if node.op_type == "MatMul":
            return None
        out_axis = channel_axis(node, weights)
        channels = weights.shape[out_axis] if out_axis is not None else 0
        shift = self._shift(node, weights - integers * _along(scale, axis, weights.ndim)) if channels else None
        if given is None and shift is None:
            return None
        bias = np.zeros(channels) if given is None else np.asarray(given, np.float64).reshape(-1)
        bias = np.broadcast_to(bias, (max(channels, bias.size),))
        return bias if shift is None else bias + shift

    def _shift(self, node: ir.Node, lost: Array) -> Array | None:
        data = node.inputs[0]
        assert data is not None  # the checker guarantees it
        found = self._activations.get(self._sources[data])
        if not self._correct_bias or found is None or node.op_type not in ("Conv", "Gemm"):
            return None
        if node.op_type == "Conv":
            return bias_shift(lost, found.means, node.attributes.get_int("group", 1))
        lost = lost if node.attributes.get_int("transB", 0) else lost.T
        return bias_shift(lost * node.attributes.get_float("alpha", 1.0), found.means, 1)


def channel_axis(node: ir.Node, weights: Array) -> int | None:
    """The axis of a layer's output channels in its weights, or None where engines take one scale for all."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if node.attributes.get_int("group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 1 if weights.ndim == 2 else None


def _along(scale: Array, axis: int | None, ndim: int) -> Array:
    return scale if axis is None else scale.reshape([-1 if each == axis else 1 for each in range(ndim)])


def _is_float(array: Array | None) -> bool:
    return array is not None and array.dtype == np.float32 and array.size > 0
