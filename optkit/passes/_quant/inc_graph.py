"""What neural-compressor made of a module's layers, written into the ONNX graph that was exported from it.

    MatMul(x, W)  ->  MatMulNBits(x, codes, scales, zeros)
    MatMul(x, W)  ->  MatMulNBits(Mul(x, factors), codes, scales, zeros)                                    awq
    MatMul(x, W)  ->  Add(MatMulNBits(x, codes, scales, zeros), MatMul(MatMul(x, sums), rest))              hqq

The zeros of HQQ lie between two codes, and onnxruntime's CPU kernel is 15 to 40 times slower with such zeros than with
whole ones. So the zeros are rounded, and what is left of each goes into a small product: with ``z = round(z) + r`` a
block gives ``sum x (q - z) s = sum x (q - round(z)) s - r s sum x``.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from optkit.model.model import Model
from optkit.passes._base import Context
from optkit.passes._ir import add_constant, derived
from optkit.passes._quant.inc_layers import Taken
from optkit.passes._quant.integer import replace
from optkit.passes._quant.layered import FLOAT, Built
from optkit.passes._quant.nbits import Blocks, Floats, Grid
from optkit.passes._quant.nbits_graph import CONTRIB, Writer

if TYPE_CHECKING:
    import onnx_ir as ir

    from optkit.passes._quant.sites import Site


def match(sites: Iterable[Site], layers: Mapping[str, Floats]) -> dict[str, str]:
    """Label of each site -> the layer that has the same weights, for those that have one.

    Args:
        sites: layers of a graph.
        layers: name -> float32[N, K]; where several have the same weights, the first stands for all.
    """
    names: dict[Hashable, str] = {}
    for name, weights in layers.items():
        names.setdefault(_content(weights), name)
    found = {site.label: names.get(_content(site.weights)) for site in sites}
    return {label: name for label, name in found.items() if name is not None}


def _content(weights: Floats) -> Hashable:
    return weights.shape, hashlib.sha256(np.ascontiguousarray(weights).data).digest()


@dataclass
class Bridge:
    """``Layered.build``."""

    model: Model
    graph: ir.Model
    """Stays as it is."""
    layers: Mapping[int, tuple[Site, Taken]]
    """By the index of the node."""
    accuracy_level: int
    sentence: str
    ctx: Context
    finer: dict[Hashable, Blocks] = field(default_factory=dict)
    """Layers that were given back to 8 bits, rounded to nearest."""
    count: itertools.count[int] = field(default_factory=itertools.count)

    def __call__(self, levels: Mapping[str, str]) -> Built:
        """Write the model with each layer at its level."""
        made = self.graph.clone()
        nodes = list(made.graph.all_nodes())
        writer = Writer(made.graph, standard=False, accuracy_level=self.accuracy_level)
        sums: dict[Hashable, ir.Value] = {}
        changes = []
        for index, (site, taken) in self.layers.items():
            level = levels.get(site.label, f"int{taken.blocks.grid.bits}")
            if level == f"int{taken.blocks.grid.bits}":
                changes.append((site.label, _write(writer, nodes[index], site, taken, sums)))
            elif level != FLOAT:
                blocks = self._finer(site, taken.blocks.grid)
                changes.append((site.label, writer.linear(nodes[index], site, blocks)))
        made.opset_imports[CONTRIB] = 1
        folder = self.ctx.workdir / f"build-{next(self.count)}"
        return Built(derived(self.model, made, folder, self.sentence), changes)

    def _finer(self, site: Site, grid: Grid) -> Blocks:
        if site.key not in self.finer:
            self.finer[site.key] = Grid(8, grid.block, grid.symmetric).round(site.weights)
        return self.finer[site.key]


def _write(writer: Writer, node: ir.Node, site: Site, taken: Taken, sums: dict[Hashable, ir.Value]) -> str:
    if taken.factors is not None:
        _scale_input(writer.graph, node, taken.factors)
    if taken.rest is None:
        return writer.linear(node, site, taken.blocks)
    return writer.linear(_add_rest(writer.graph, node, taken, sums), site, taken.blocks)


def _scale_input(graph: ir.Graph, node: ir.Node, factors: Floats) -> None:
    import onnx_ir as ir

    name = f"{node.name or node.outputs[0].name}_awq"
    scaled = ir.node("Mul", [node.inputs[0], add_constant(graph, f"{name}_factors", factors)], name=name)
    scaled.outputs[0].name = f"{name}_out"
    assert node.graph is not None  # it came from iterating over a graph
    node.graph.insert_before(node, scaled)
    node.replace_input_with(0, scaled.outputs[0])


def _add_rest(graph: ir.Graph, node: ir.Node, taken: Taken, sums: dict[Hashable, ir.Value]) -> ir.Node:
    """``y -> Add(y, MatMul(MatMul(x, sums), rest))``; the node that still computes y in float."""
    import onnx_ir as ir

    assert taken.rest is not None  # _write looked
    name = f"{node.name or node.outputs[0].name}"
    attributes = {key: attribute.value for key, attribute in node.attributes.items()}
    factor = np.float32(attributes.get("alpha", 1.0))
    rest = add_constant(
        graph, f"{name}_rest_weights", np.ascontiguousarray((taken.rest * -taken.blocks.scales).T) * factor
    )
    whole = ir.node(node.op_type, node.inputs, attributes, name=f"{name}_whole")
    summed = ir.node("MatMul", [node.inputs[0], _block_sums(graph, taken.blocks, sums)], name=f"{name}_sums")
    small = ir.node("MatMul", [summed.outputs[0], rest], name=f"{name}_rest")
    both = ir.node("Add", [whole.outputs[0], small.outputs[0]], name=name)
    for inner in (whole, summed, small):
        inner.outputs[0].name = f"{inner.name}_out"
    replace(node, [whole, summed, small, both])
    return whole


def _block_sums(graph: ir.Graph, blocks: Blocks, made: dict[Hashable, ir.Value]) -> ir.Value:
    """float32[K, blocks] of 0 and 1, shared by all layers of one width."""
    key = (blocks.width, blocks.grid.block)
    if key not in made:
        places = np.arange(blocks.width) // blocks.grid.block
        ones = (places[:, None] == np.arange(blocks.scales.shape[1])).astype(np.float32)
        made[key] = add_constant(graph, f"block_sums_{blocks.width}_{blocks.grid.block}", ones)
    return made[key]
