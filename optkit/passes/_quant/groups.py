"""Linear layers that read one activation, which one scale smooths for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from optkit.passes._ir import add_constant, constant, node_label
from optkit.passes._quant.folding import Fold, find_fold, set_weight_matrix, weight_matrix
from optkit.passes._quant.integer import Refusal
from optkit.passes._quant.stream import Floats

if TYPE_CHECKING:
    import onnx_ir as ir

Entries = list[tuple[str, str]]


@dataclass(frozen=True)
class Group:
    """MatMul and Gemm nodes with constant weights that read one activation."""

    source: ir.Value
    nodes: Sequence[ir.Node]
    fold: Fold | None
    """What takes a scale in for free."""
    reason: str = ""
    """Why nothing does."""

    def label(self) -> str:
        """The nodes' names."""
        return ", ".join(node_label(node) for node in self.nodes)

    def weights(self) -> Floats:
        """[K, N]: those of all nodes side by side."""
        return np.concatenate([weight_matrix(node) for node in self.nodes], axis=1)

    def apply(self, scale: Floats) -> str:
        """Divide the activation by ``scale`` and multiply the weights by it.

        Returns:
            Where the division went, for people.
        """
        for node in self.nodes:
            set_weight_matrix(node, weight_matrix(node) * scale[:, None])
        if self.fold is not None:
            self.fold(scale)
            return f"into {self.fold.into}"
        _insert_mul(self.source, self.nodes, np.reciprocal(scale))
        return "by a Mul"


def find_groups(model: ir.Model) -> tuple[list[Group], Entries]:
    """The groups of the main graph in order, and the linear layers that are in none, with the reason."""
    readers: dict[ir.Value, list[ir.Node]] = {}
    widths: dict[ir.Value, int] = {}
    skipped: Entries = []
    for node in model.graph:
        source = node.inputs[0] if (node.domain, node.op_type) in (("", "MatMul"), ("", "Gemm")) else None
        if source is None or constant(source) is not None:
            continue
        try:
            widths[source] = len(weight_matrix(node))
            readers.setdefault(source, []).append(node)
        except Refusal as reason:
            skipped.append((node_label(node), str(reason)))
    return [_group(source, nodes, widths[source]) for source, nodes in readers.items()], skipped


def _group(source: ir.Value, nodes: list[ir.Node], width: int) -> Group:
    try:
        return Group(source, nodes, find_fold(source, nodes, width))
    except Refusal as reason:
        return Group(source, nodes, None, str(reason))


def _insert_mul(source: ir.Value, nodes: Sequence[ir.Node], factors: Floats) -> None:
    import onnx_ir as ir

    graph = nodes[0].graph
    assert graph is not None  # it came from iterating over a graph
    name = f"{source.name}_smooth"
    product = ir.node("Mul", [source, add_constant(graph, f"{name}_factors", factors)], name=name)
    product.outputs[0].name = f"{name}_out"
    product.outputs[0].type, product.outputs[0].shape = source.type, source.shape
    graph.insert_before(nodes[0], product)
    for node in nodes:
        node.replace_input_with(0, product.outputs[0])
