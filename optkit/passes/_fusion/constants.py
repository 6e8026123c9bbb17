"""New constants of a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx_ir as ir


def add_constant(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """A new initializer of the graph, named after ``name`` and unlike its other initializers."""
    import onnx_ir as ir

    free = name
    while free in graph.initializers:
        free += "_"
    value = ir.val(free, const_value=ir.tensor(array, name=free))
    graph.register_initializer(value)
    return value


def keep_overwritten(model: ir.Model) -> None:
    """Give constants back to the graph that lost them, under the names that the rewriter has given them meanwhile.

    onnxscript's rules name a new constant after another, and put it in the place of one that has the name already.
    """
    for node in model.graph.all_nodes():
        for value in node.inputs:
            known = value is None or value.producer() or value.is_initializer() or value.is_graph_input()
            if value is not None and not known and value.const_value is not None:
                model.graph.register_initializer(value)
