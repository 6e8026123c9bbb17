"""Parallel projections of one tensor as one product, as of queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from optkit.passes._fusion.family import Fired
from optkit.passes._ir import add_constant, constant, node_label

if TYPE_CHECKING:
    import onnx_ir as ir

FEWEST, MOST = 3, 6
"""So many projections are joined. More of them are those of many layers, as a decoder makes of an encoder's result."""
LARGEST = 256 * 2**20
"""Bytes of weights up to which they are joined: the joined ones are held in memory beside those that they replace."""
SIZES_AS_INPUT = 13
"""Opset from which Split takes its sizes as an input."""


class Projection(NamedTuple):
    """``Add(MatMul(x, weights), bias)``, or without the addition."""

    product: ir.Node
    weights: NDArray[np.generic]
    addition: ir.Node | None
    bias: NDArray[np.generic] | None

    @property
    def result(self) -> ir.Value:
        """What the rest of the graph reads."""
        return (self.addition or self.product).outputs[0]


def fuse_qkv(model: ir.Model) -> Fired:
    """``x W1 + b1, x W2 + b2, x W3 + b3 -> Split(x [W1 W2 W3] + [b1 b2 b3])``; widths may differ (grouped heads)."""
    opset = model.opset_imports.get("", SIZES_AS_INPUT)
    joined, refused = 0, []
    for graph, parallel in _groups(model):
        if reason := _reason_against(parallel, opset):
            refused.append((_label(parallel), reason))
        else:
            _join(graph, parallel)
            joined += 1
    return Fired(joined, tuple(refused))


def _groups(model: ir.Model) -> Iterator[tuple[ir.Graph, list[Projection]]]:
    """Products of one tensor with constant matrices, in the order of their graph, where there are enough of them."""
    for graph in list(model.graphs()):
        found: dict[ir.Value, list[Projection]] = {}
        for node in graph:
            if node.op_type == "MatMul" and node.inputs[0] is not None and (each := _projection(graph, node)):
                found.setdefault(node.inputs[0], []).append(each)
        yield from ((graph, parallel) for parallel in found.values() if len(parallel) >= FEWEST)


def _projection(graph: ir.Graph, node: ir.Node) -> Projection | None:
    weights = constant(node.inputs[1])
    if weights is None or weights.ndim != 2:
        return None
    addition, bias = _addition(graph, node.outputs[0], weights.shape[1])
    return Projection(node, weights, addition, bias)


def _addition(graph: ir.Graph, product: ir.Value, width: int) -> tuple[ir.Node | None, NDArray[np.generic] | None]:
    """The only reader of a product and the vector of ``width`` that it adds, or neither."""
    uses = list(product.uses())
    if len(uses) != 1 or product.is_graph_output() or uses[0].node.op_type != "Add":
        return None, None
    node, index = uses[0]
    bias = constant(node.inputs[1 - index])
    fits = bias is not None and bias.shape == (width,) and node.graph is graph
    return (node, bias) if fits else (None, None)


def _reason_against(parallel: Sequence[Projection], opset: int) -> str:
    """Why they stay apart, or nothing."""
    matrices = [each.product.inputs[1] for each in parallel]
    if len(parallel) > MOST:
        return f"{len(parallel)} projections of one tensor: joined, all of their results would be held at once"
    if any(matrix is not None and (len(matrix.uses()) > 1 or matrix.is_graph_output()) for matrix in matrices):
        return "weights are used elsewhere too, and would be stored twice"
    if sum(each.weights.nbytes for each in parallel) > LARGEST:
        return f"weights of more than {LARGEST // 2**20} MB together"
    if opset < SIZES_AS_INPUT:
        return f"opset {opset}: {SIZES_AS_INPUT} or later is needed"
    return ""


def _label(parallel: Sequence[Projection]) -> str:
    return ", ".join(node_label(each.product) for each in parallel)


def _join(graph: ir.Graph, parallel: Sequence[Projection]) -> None:
    """Put one product in the place of the first of them."""
    import onnx_ir as ir

    first = parallel[0].product
    name = f"{parallel[0].result.name}_joined"
    new = [ir.node("MatMul", [first.inputs[0], add_constant(graph, f"{name}_weights", _weights(parallel))])]
    if any(each.bias is not None for each in parallel):
        new.append(ir.node("Add", [new[-1].outputs[0], add_constant(graph, f"{name}_bias", _bias(parallel))]))
    sizes = np.array([each.weights.shape[1] for each in parallel], np.int64)
    split = ir.node(
        "Split",
        [new[-1].outputs[0], add_constant(graph, f"{name}_sizes", sizes)],
        attributes={"axis": -1},
        num_outputs=len(parallel),
    )
    old = [node for each in parallel for node in (each.product, each.addition) if node is not None]
    results = [each.result for each in parallel]
    ir.convenience.replace_nodes_and_values(graph, first, old, [*new, split], results, split.outputs)


def _weights(parallel: Sequence[Projection]) -> NDArray[np.generic]:
    """[rows, sum of columns]."""
    return np.concatenate([each.weights for each in parallel], axis=1)


def _bias(parallel: Sequence[Projection]) -> NDArray[np.generic]:
    """[sum of columns], zero for those that have none."""
    return np.concatenate(
        [np.zeros(each.weights.shape[1], each.weights.dtype) if each.bias is None else each.bias for each in parallel]
    )
