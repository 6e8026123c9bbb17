"""Blocks of 4 and 8 bits in a graph: as onnxruntime's own operators, or between standard ones.

    MatMul(x, W)        ->  MatMulNBits(x, codes, scales, zeros)
    Gather(W, ids)      ->  GatherBlockQuantized(codes, ids, scales, zeros)

    MatMul(x, W)        ->  MatMul(x, DequantizeLinear(codes, scales, zeros))            opset 21
    Gather(W, ids)      ->  DequantizeLinear(Gather(codes, ids), Gather(scales, ids), Gather(zeros, ids))

Gemm becomes the first, with an Add for its bias. The last has 8 bits always, as Gather takes no tensors of 4 bits.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optkit.passes._ir import add_constant, constant
from optkit.passes._quant.integer import replace
from optkit.passes._quant.linear import read_layer
from optkit.passes._quant.nbits import Blocks, pack

if TYPE_CHECKING:
    import onnx_ir as ir

    from optkit.passes._quant.sites import Site

CONTRIB = "com.microsoft"
ONE = np.float32(1)


@dataclass
class Writer:
    """Puts quantized weights into one graph, each matrix once."""

    graph: ir.Graph
    """The main graph, which keeps the constants of onnxruntime's own operators."""
    standard: bool
    """Standard operators instead of onnxruntime's own."""
    accuracy_level: int
    made: dict[Hashable, ir.Value] = field(default_factory=dict)

    def linear(self, node: ir.Node, site: Site, blocks: Blocks) -> str:
        """Replace a MatMul or Gemm. Returns what was done, for people."""
        layer = read_layer(node)
        name = node.name or f"{node.outputs[0].name}"
        weights = self._dequantized if self.standard else self._nbits
        nodes = weights(node, name, site, blocks, np.float32(layer.factor))
        if layer.bias is not None:
            nodes.append(_node("Add", [nodes[-1].outputs[0], layer.bias], f"{name}_bias"))
        replace(node, nodes)
        return f"{node.op_type} -> {'DequantizeLinear, MatMul' if self.standard else 'MatMulNBits'}, {_told(blocks)}"

    def gather(self, node: ir.Node, site: Site, blocks: Blocks) -> str:
        """Replace a Gather. Returns what was done, for people."""
        name = node.name or f"{node.outputs[0].name}"
        if self.standard:
            replace(node, self._gathered(node, name, site, blocks))
            return f"Gather -> Gather, DequantizeLinear, {_told(blocks)}"
        shared = (site.key, blocks.grid, "codes", self.graph) in self.made and node.inputs[1].shape is not None
        replace(node, (self._gather_shared if shared else self._gather_own)(node, name, site, blocks))
        return f"Gather -> GatherBlockQuantized, {_told(blocks)}{', shared with a linear layer' if shared else ''}"

    def _nbits(self, node: ir.Node, name: str, site: Site, blocks: Blocks, factor: np.float32) -> list[ir.Node]:
        grid = blocks.grid
        inputs = [node.inputs[0], self._codes(site, blocks), self._scales(site, blocks, factor)]
        if not grid.symmetric:
            inputs.append(self._constant(site, blocks, "zeros", lambda: pack(blocks.zeros, grid.bits)))
        sizes = {"K": blocks.width, "N": len(blocks.packed), "bits": grid.bits, "block_size": grid.block}
        return [
            _node("MatMulNBits", inputs, f"{name}_nbits", {**sizes, "accuracy_level": self.accuracy_level}, CONTRIB)
        ]

    def _gather_own(self, node: ir.Node, name: str, site: Site, blocks: Blocks) -> list[ir.Node]:
        """Rows of [rows, width * bits / 8] bytes."""
        grid, rows = blocks.grid, len(blocks.packed)
        size = blocks.width * grid.bits // 8
        codes = self._constant(site, blocks, "rows", lambda: blocks.packed.reshape(rows, -1)[:, :size])
        inputs = [codes, node.inputs[1], self._scales(site, blocks)]
        if not grid.symmetric:
            inputs.append(self._constant(site, blocks, "zeros", lambda: pack(blocks.zeros, grid.bits)))
        return [_gather_blocks(inputs, f"{name}_nbits", blocks, axis=1)]

    def _gather_shared(self, node: ir.Node, name: str, site: Site, blocks: Blocks) -> list[ir.Node]:
        """Rows of [rows, blocks, block * bits / 8] bytes, as MatMulNBits has them, so that both read the same."""
        grid, ids = blocks.grid, node.inputs[1]
        assert ids is not None and ids.shape is not None  # see gather
        axis = self._constant(site, blocks, "axis", lambda: np.array([-1]))
        scales = _node("Unsqueeze", [self._scales(site, blocks), axis], f"{name}_scales")
        inputs = [self._codes(site, blocks), ids, scales.outputs[0]]
        if not grid.symmetric:
            inputs.append(self._constant(site, blocks, "zero rows", lambda: pack(blocks.zeros[..., None], grid.bits)))
        rows = _gather_blocks(inputs, f"{name}_nbits", blocks, axis=2)
        shape = self._constant(
            site, blocks, f"shape {len(ids.shape)}", lambda: np.array([0] * len(ids.shape or ()) + [-1])
        )
        whole = _node("Reshape", [rows.outputs[0], shape], f"{name}_whole")
        if blocks.width % grid.block == 0:
            return [scales, rows, whole]
        ends = [self._constant(site, blocks, f"end {at}", lambda at=at: np.array([at])) for at in (0, blocks.width)]
        return [scales, rows, whole, _node("Slice", [whole.outputs[0], *ends, axis], f"{name}_cut")]

    def _dequantized(self, node: ir.Node, name: str, site: Site, blocks: Blocks, factor: np.float32) -> list[ir.Node]:
        made = partial(self._constant, site, blocks, home=node.graph)  # onnxruntime seeks them nowhere else
        inputs = [
            made("columns", lambda: _typed(blocks.codes().T, blocks)),
            made(f"scale columns {factor}", lambda: blocks.scales.T * factor),
        ]
        if not blocks.grid.symmetric:
            inputs.append(made("zero columns", lambda: _typed(blocks.zeros.T, blocks)))
        matrix = _node("DequantizeLinear", inputs, f"{name}_dq", {"axis": 0, "block_size": blocks.grid.block})
        return [matrix, _node("MatMul", [node.inputs[0], matrix.outputs[0]], f"{name}_product")]

    def _gathered(self, node: ir.Node, name: str, site: Site, blocks: Blocks) -> list[ir.Node]:
        parts = {
            "codes": self._constant(site, blocks, "table", lambda: _typed(blocks.codes(), blocks)),
            "scales": self._scales(site, blocks),
        }
        if not blocks.grid.symmetric:
            parts["zeros"] = self._constant(site, blocks, "zero table", lambda: blocks.zeros)
        picked = [_node("Gather", [part, node.inputs[1]], f"{name}_{what}") for what, part in parts.items()]
        attributes = {"axis": -1, "block_size": blocks.grid.block}
        return [*picked, _node("DequantizeLinear", [each.outputs[0] for each in picked], f"{name}_dq", attributes)]

    def _codes(self, site: Site, blocks: Blocks) -> ir.Value:
        return self._constant(site, blocks, "codes", lambda: blocks.packed)

    def _scales(self, site: Site, blocks: Blocks, factor: np.float32 = ONE) -> ir.Value:
        """[rows, blocks]."""
        return self._constant(site, blocks, f"scales {factor}", lambda: blocks.scales * factor)

    def _constant(self, site: Site, blocks: Blocks, what: str, make: Any, home: Any = None) -> ir.Value:
        """In the graph ``home``, None = the main one."""
        graph = self.graph if home is None else home
        key = (site.key, blocks.grid, what, graph)
        if key not in self.made:
            name = f"{site.source.name}_{what.split(maxsplit=1)[0]}_{blocks.grid.bits}bit"
            self.made[key] = add_constant(graph, name, np.ascontiguousarray(make()))
        return self.made[key]


def scaled_biases(model: ir.Model) -> None:
    """``Gemm<beta>(x, W, b) -> Gemm<beta = 1>(x, W, beta * b)`` where b is constant."""
    import onnx_ir as ir

    for node in model.graph.all_nodes():
        if (node.domain, node.op_type) != ("", "Gemm") or len(node.inputs) < 3:
            continue
        beta, bias = float(node.attributes.get_float("beta", 1.0)), constant(node.inputs[2])
        if beta != 1.0 and bias is not None and node.inputs[2] is not None:
            name = f"{node.inputs[2].name}_scaled"
            scaled = np.asarray(bias * np.asarray(beta, bias.dtype))
            node.replace_input_with(2, add_constant(model.graph, name, scaled))
            node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)


def _gather_blocks(inputs: list[Any], name: str, blocks: Blocks, axis: int) -> ir.Node:
    sizes = {"bits": blocks.grid.bits, "block_size": blocks.grid.block}
    return _node("GatherBlockQuantized", inputs, name, {"gather_axis": 0, "quantize_axis": axis, **sizes}, CONTRIB)


def _node(
    kind: str, inputs: list[Any], name: str, attributes: Mapping[str, Any] | None = None, domain: str = ""
) -> ir.Node:
    import onnx_ir as ir

    made = ir.node(kind, inputs, attributes, domain=domain, name=name)
    made.outputs[0].name = f"{name}_out"
    return made


def _typed(codes: NDArray[np.uint8], blocks: Blocks) -> NDArray[Any]:
    """Codes of DequantizeLinear: signed around 0 where the grid is symmetric, so that it needs no zeros."""
    import ml_dtypes

    grid = blocks.grid
    if grid.symmetric:
        signed = (codes.astype(np.int16) - grid.middle).astype(np.int8)
        return signed.astype(ml_dtypes.int4) if grid.bits == 4 else signed
    return codes.astype(ml_dtypes.uint4) if grid.bits == 4 else codes


def _told(blocks: Blocks) -> str:
    return f"{blocks.grid.bits} bits, weights {[len(blocks.packed), blocks.width]}"
