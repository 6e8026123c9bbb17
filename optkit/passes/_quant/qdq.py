"""QuantizeLinear and DequantizeLinear around nodes, and weights as integers.

``y = Conv(x, W, b)  ->  y = DQ(Q(Conv(DQ(Q(x)), DQ(Wq), DQ(bq))))``, which engines run as one integer kernel.

The result keeps its name behind the DequantizeLinear, so that whoever takes it needs no change, and every tensor of the
float model is there to be compared. A tensor has one pair, shared by all that take it. Results of MatMul and Gemm are
not rounded: a pair stands only in front of those who want integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optkit.passes._ir import add_constant, constant
from optkit.passes._quant.flow import absorbed_by, gives_integers
from optkit.passes._quant.operators import FOLLOWING, OPERANDS, WEIGHTED

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from optkit.passes._quant.cpu import Grid
    from optkit.passes._quant.flow import Held
    from optkit.passes._quant.layer_weights import Weights
    from optkit.passes._quant.ranges import Activations

OPSET_16_BITS = 21
"""Where ONNX's own QuantizeLinear learns 16 bits; before, onnxruntime's does."""
Array = NDArray[Any]


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
        graph = self._model.graph
        scale = add_constant(graph, f"{name}_scale", np.array(step.scale))
        zero = add_constant(graph, f"{name}_zero_point", np.array(step.zero, step.grid.name))
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

    def _dequantized(self, node: ir.Node, name: str, integers: Array, scale: Array, zero: int, axis: int) -> ir.Value:
        """Integers in the file, and the node that makes floats of them, before ``node``."""
        parts = {"integers": integers, "scale": scale, "zero_point": np.full(scale.shape, zero, integers.dtype)}
        inputs = [add_constant(self._model.graph, f"{name}_{what}", array) for what, array in parts.items()]
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
        assert source is not None and data is not None  # see operators.refusal
        found = self._activations.get(self._sources[data]) if self._correct_bias else None
        made = self._weights.of_layer(node, self._steps[data].scale, found.means if found else None)
        if made.bias is not None:
            node.resize_inputs(3)
            node.attributes.pop("beta", None)  # 1 where there was a bias, without a meaning where not
            bias = self._dequantized(node, f"{node.name}_bias", made.bias, made.bias_scale, 0, 0)
            node.replace_input_with(2, bias)
        key = (source, f"weights {made.axis} {made.scale.tobytes()!r}")
        if key not in self._pairs:
            first, axis = self._model.graph[0], made.axis or 0
            self._pairs[key] = self._dequantized(first, source.name or "", made.integers, made.scale, 0, axis)
        node.replace_input_with(1, self._pairs[key])


def _is_float(array: Array | None) -> bool:
    return array is not None and array.dtype == np.float32 and array.size > 0
