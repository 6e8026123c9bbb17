"""Models with layers of 4 and 8 bits, from one float graph."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from optkit.model.model import Model
from optkit.passes._ir import remove_unused, save_ir
from optkit.passes._quant.hqq import fit_hqq
from optkit.passes._quant.layered import FLOAT, Built
from optkit.passes._quant.nbits import Blocks, Grid
from optkit.passes._quant.nbits_graph import CONTRIB, Writer

if TYPE_CHECKING:
    import onnx_ir as ir

    from optkit.passes._quant.sites import Site


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
        remove_unused(made)
        path = self.workdir / f"build-{next(self.number)}" / "model.onnx"
        path.parent.mkdir()
        save_ir(made, path)
        ordered = [(site.label, changes[site.label]) for site in self.sites if site.label in changes]
        return Built(self.model.derive(path, "onnx", self.sentence), ordered)

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
