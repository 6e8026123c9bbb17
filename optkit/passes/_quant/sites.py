"""Where a model keeps weights that can be quantized: linear layers and embeddings with constant float32 matrices."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from optkit.passes._ir import constant, node_label
from optkit.passes._quant.integer import Refusal, float_weights
from optkit.passes._quant.linear import read_layer
from optkit.passes._quant.nbits import Floats, Grid
from optkit.passes._quant.select import EXCLUDED, excluded

if TYPE_CHECKING:
    import onnx_ir as ir

Entries = list[tuple[str, str]]

SMALL = 0.02
"""Share of all weights found below which an embedding is left alone: positions, token types, rotations."""


@dataclass(frozen=True)
class Site:
    """A MatMul, Gemm or Gather with constant weights."""

    label: str
    index: int
    """Of the node among all nodes of the model, those of subgraphs included; the same in its copies."""
    kind: str
    source: ir.Value
    """The constant."""
    transposed: bool
    """Whether the constant is stored as [rows, width] (embeddings, turned weights) instead of [width, rows]."""
    output: str
    data: str = ""
    """The tensor that it multiplies, as far as it can be seen from outside; else empty."""

    @property
    def weights(self) -> Floats:
        """[rows, width]: a row for each output or token. A view of what is stored."""
        stored = constant(self.source)
        assert stored is not None  # it was one when the site was found
        return (stored if self.transposed else stored.T).view(np.ndarray)

    @property
    def key(self) -> Hashable:
        """Says which sites have the same matrix."""
        return id(self.source), self.transposed


def find_sites(
    model: ir.Model, ops: Collection[str], exclude: Sequence[str], grid: Grid
) -> tuple[list[Site], Entries, list[str]]:
    """What can be quantized, what cannot and why, and the labels of all that was looked at."""
    sites: list[Site] = []
    skipped: Entries = []
    labels: list[str] = []
    for index, node in enumerate(model.graph.all_nodes()):
        if node.domain or node.op_type not in ops or (node.op_type == "Gather" and not _is_embedding(node)):
            continue
        label = _free(node_label(node), labels)
        labels.append(label)
        try:
            if excluded(label, exclude):
                raise Refusal(EXCLUDED)
            sites.append(replace(_read(node, grid, model.graph), label=label, index=index))
        except Refusal as reason:
            skipped.append((label, str(reason)))
    sites, small = _without_small(sites)
    return sites, [*skipped, *small], labels


def _free(label: str, taken: Sequence[str]) -> str:
    same = sum(each == label or each.startswith(f"{label} #") for each in taken)
    return f"{label} #{same + 1}" if same else label


def _is_embedding(node: ir.Node) -> bool:
    """Whether it picks rows of a constant matrix of floats; all other Gathers are no weights."""
    held = constant(node.inputs[0])
    return held is not None and held.ndim == 2 and held.dtype.kind == "f" and node.attributes.get_int("axis", 0) == 0


def _read(node: ir.Node, grid: Grid, graph: ir.Graph) -> Site:
    if node.op_type == "Gather":
        source = node.inputs[0]
        assert source is not None  # _is_embedding looked
        float_weights(source)
        site = Site("", 0, "Gather", source, True, str(node.outputs[0].name))
    else:
        layer = read_layer(node)
        site = Site("", 0, node.op_type, layer.source, layer.transposed, str(node.outputs[0].name), _data(node, graph))
    stored = constant(site.source)
    if stored is None or stored.ndim != 2:
        raise Refusal("its weights are no matrix")
    rows, width = site.weights.shape
    _require_gain(rows, width, grid)
    return site


def _require_gain(rows: int, width: int, grid: Grid) -> None:
    blocks = -(-width // grid.block)
    if rows * blocks * (grid.block * grid.bits / 8 + 4 + grid.bits / 8) >= 4 * rows * width:
        raise Refusal(f"its weights, {rows} rows of {width}, would not be smaller in blocks of {grid.block}")


def _data(node: ir.Node, graph: ir.Graph) -> str:
    value = node.inputs[0]
    assert value is not None  # the checker guarantees both operands
    if value.shape is not None and len(value.shape) < 2:
        raise Refusal("its data are a vector")
    producer = value.producer()
    outside = value.is_graph_input() if producer is None else producer.graph is graph
    return str(value.name) if outside and (producer is not None or value in graph.inputs) else ""


def _without_small(sites: list[Site]) -> tuple[list[Site], Entries]:
    sizes = {site.key: site.weights.size for site in sites}
    least = SMALL * sum(sizes.values())
    linear = {site.key for site in sites if site.kind != "Gather"}
    small = [site for site in sites if site.key not in linear and sizes[site.key] < least]
    told = [(site.label, f"an embedding with less than {SMALL:.0%} of the weights") for site in small]
    return [site for site in sites if site not in small], told
