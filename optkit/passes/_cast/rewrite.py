"""The chosen nodes put into a 16-bit type, with Casts where tensors cross the border."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from optkit.passes._cast.choose import Seen
from optkit.passes._cast.half import Half
from optkit.passes._cast.slots import Slots
from optkit.passes._ir import add_constant

if TYPE_CHECKING:
    import onnx_ir as ir


INDIFFERENT = ("Shape", "Size", "Cast")
"""Operators that take either type as it comes."""


class Rewriter:
    """``MatMul(x, W) -> Cast(MatMul(Cast(x), W16))``, with one Cast for each tensor that crosses the border.

    Args:
        model: is changed in place.
        chosen: nodes of its main graph, with the tensors that change their type.
        seen: what the float32 tensors held on the sample.
        half: the type.
    """

    def __init__(self, model: ir.Model, chosen: Mapping[ir.Node, Slots], seen: Mapping[str, Seen], half: Half) -> None:
        self._model, self._chosen, self._seen, self._half = model, chosen, seen, half
        self._copies: dict[ir.Value, ir.Value] = {}

    def rewrite(self) -> None:
        """Do it."""
        import onnx_ir as ir

        inside = {node.outputs[i] for node, slots in self._chosen.items() for i in slots.outputs}
        for node, slots in self._chosen.items():
            for i in slots.inputs:
                if (value := node.inputs[i]) is not None and value not in inside:
                    node.replace_input_with(i, self._lowered(value))
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", int(self._half.dtype))
        for node, slots in self._chosen.items():
            for i in slots.outputs:
                node.outputs[i].dtype = self._half.dtype
                self._raise(node.outputs[i])

    def _lowered(self, value: ir.Value) -> ir.Value:
        """The tensor in the type."""
        if value not in self._copies:
            weight = value.const_value
            name = f"{value.name}_{self._half.name}"
            self._copies[value] = (
                self._cast(value)
                if weight is None
                else add_constant(self._model.graph, name, self._half.round(weight.numpy()))
            )
        return self._copies[value]

    def _cast(self, value: ir.Value) -> ir.Value:
        """``Cast(x)``; ``Cast(Max(Min(x, cut), -cut))`` where x masks with values that would become infinite."""
        import onnx_ir as ir

        nodes, last = list[ir.Node](), value
        if self._seen.get(value.name or "", Seen()).masks:
            for kind, bound in (("Min", self._half.cut), ("Max", -self._half.cut)):
                limit = add_constant(self._model.graph, f"{value.name}_{kind}", np.asarray(bound, np.float32))
                nodes.append(ir.node(kind, [last, limit]))
                last = nodes[-1].outputs[0]
        nodes.append(ir.node("Cast", [last], {"to": int(self._half.dtype)}))
        if (producer := value.producer()) is None:
            self._model.graph.insert_before(self._model.graph[0], nodes)
        else:
            self._model.graph.insert_after(producer, nodes)
        return nodes[-1].outputs[0]

    def _raise(self, value: ir.Value) -> None:
        """A float32 copy for everything else that reads the tensor; outputs of the graph keep their names."""
        import onnx_ir as ir

        outside = [(node, i) for node, i in value.uses() if not self._takes(node, i)]
        if not outside and not value.is_graph_output():
            return
        producer = value.producer()
        cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)})
        copy = cast.outputs[0]
        copy.type, copy.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
        if producer is not None:
            self._model.graph.insert_after(producer, cast)
        for node, i in outside:
            node.replace_input_with(i, copy)
        if value.is_graph_output():
            value.name, copy.name = f"{value.name}_{self._half.name}", value.name
            for graph in self._model.graphs():
                for i, output in enumerate(graph.outputs):
                    if output is value:
                        graph.outputs[i] = copy

    def _takes(self, node: ir.Node, index: int) -> bool:
        slots = self._chosen.get(node)
        main = node.graph is self._model.graph
        return (slots is not None and index in slots.inputs) or (main and node.op_type in INDIFFERENT)
