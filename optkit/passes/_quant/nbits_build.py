"""Models with layers of 4 and 8 bits, from one float graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from optkit.model.model import Model
from optkit.passes._ir import derived, frozen_inputs, inline, load_ir, op_counts, raise_opset, written
from optkit.passes._quant.hqq import fit_hqq
from optkit.passes._quant.layered import FLOAT, Built
from optkit.passes._quant.nbits import Blocks, Grid
from optkit.passes._quant.nbits_graph import CONTRIB, Writer, scaled_biases

if TYPE_CHECKING:
    import onnx_ir as ir

    from optkit.passes._base import Context
    from optkit.passes._quant.sites import Site


def open_graph(model: Model, ctx: Context, opset: int = 0) -> tuple[Model, ir.Model, Counter[str], list[str]]:
    """The model and its graph with every node in sight at ``opset`` or later, its operators as they were, and notes."""
    loaded = load_ir(model.path)
    notes, found, functions = frozen_inputs(loaded), op_counts(loaded), bool(loaded.functions)
    graph = raise_opset(inline(loaded), opset)
    scaled_biases(graph)
    if functions:  # inner tensors may have other names now
        model = written(model, graph, ctx.workdir / "inlined")
    return model, graph, found, notes


@dataclass
class Build:
    """``Layered.build``. Matrices are quantized once for all that is built, and kept (4 bits: a seventh of it)."""

    model: Model
    graph: ir.Model
    """In float, with every node of ``sites``; copies of it are written."""
    sites: Sequence[Site]
    grid: Grid
    """Of layers at the first level."""
    workdir: Path
    sentence: str
    standard: bool
    """Standard operators instead of onnxruntime's own."""
    accuracy_level: int
    embedding_bits: int
    hqq: bool
    done: dict[Hashable, Blocks]
    """Matrices by ``Site.key`` and grid; those that are missing are rounded when needed."""
    number: count[int] = field(default_factory=count)

    def __call__(self, levels: Mapping[str, str]) -> Built:
        """Write the model with each layer at its level."""
        made = self.graph.clone()
        nodes = list(made.graph.all_nodes())
        writer = Writer(made.graph, self.standard, self.accuracy_level)
        changes = {}
        for site in sorted(self.sites, key=lambda site: site.kind == "Gather"):  # an embedding finds what it can share
            level = levels.get(site.label, f"int{self.grid.bits}")
            if level != FLOAT:
                write = writer.gather if site.kind == "Gather" else writer.linear
                changes[site.label] = write(nodes[site.index], site, self._blocks(site, self._bits(site, level)))
        if not self.standard:
            made.opset_imports[CONTRIB] = 1
        model = derived(self.model, made, self.workdir / f"build-{next(self.number)}", self.sentence)
        ordered = [(site.label, changes[site.label]) for site in self.sites if site.label in changes]
        return Built(model, ordered)

    def _bits(self, site: Site, level: str) -> int:
        bits = int(level.removeprefix("int"))
        if site.kind == "Gather" and (self.standard or site.weights.shape[1] % 2):
            return 8  # Gather takes no tensors of 4 bits, and rows of GatherBlockQuantized are whole bytes
        embeddings = {each.key for each in self.sites if each.kind == "Gather"}
        return max(bits, self.embedding_bits) if site.key in embeddings else bits

    def _blocks(self, site: Site, bits: int) -> Blocks:
        grid = replace(self.grid, bits=bits)
        if (site.key, grid) not in self.done:
            self.done[site.key, grid] = grid.round(site.weights, partial(fit_hqq, grid) if self.hqq else None)
        return self.done[site.key, grid]
