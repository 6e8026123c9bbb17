"""Weight-only quantization by neural-compressor."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from optkit.errors import PassError
from optkit.model.model import Form, Model
from optkit.model.target import Target
from optkit.passes._base import Context
from optkit.passes._quant.inc import check_version, quantize
from optkit.passes._quant.inc_layers import Method, Settings, Taken, linear_layers
from optkit.passes._quant.layered import Layered, Quantizer
from optkit.passes._quant.nbits import CALIBRATED, Grid, ladder
from optkit.passes._quant.select import nothing, unused

if TYPE_CHECKING:
    from optkit.passes._quant.sites import Site

ELSEWHERE = "its weights are not those of a linear layer of the original"
LEFT = "neural-compressor's {} left it in float"


class IncWeightOnly(Quantizer):
    """Quantize the linear layers of a Hugging Face model with Intel's neural-compressor, to 4 or 8 bits.

    ``MatMul(x, W) -> MatMulNBits(x, codes, scales, zeros)``. neural-compressor quantizes the live torch module that the
    ONNX graph was exported from; its codes, scales and zeros are then written into the graph, layer by layer, found by
    equal weights. So it goes right behind the export, before fusions. Its own ONNX export would give float32 weights.
    Heads and embeddings stay in float: put quantize-weights behind it for these, or in its place for any other model.

    neural-compressor 3.8 and later have no ONNX code, no pruning and no distillation any more: quantize-static,
    quantize-dynamic and quantize-weights do on ONNX graphs what it did.
    """

    forms: ClassVar[Mapping[Form, Form]] = {"onnx": "onnx"}
    needs: ClassVar[tuple[str, ...]] = ("neural_compressor", "torch", "transformers")
    for_speed: ClassVar[bool] = False

    method: Method = "gptq"
    """gptq makes up for each weight's error on the calibration data (Frantar et al. 2022). awq gives channels of great
    activations finer weights, at a Mul before each layer (Lin et al. 2023). hqq puts zeros where most weights are
    nearly exact, at a small product beside each layer (Badri & Shaji 2023). rtn rounds to the nearest value."""
    bits: Literal[4, 8] = 4
    """Bits of a weight."""
    block_size: Literal[16, 32, 64, 128, 256] = 32
    """Weights that share a scale of 32 bits."""
    symmetric: bool = False
    """Let zero be the middle code of every block, instead of storing one for each. Never so with hqq."""
    samples: int = Field(default=128, ge=1)
    """gptq, awq: calibration samples at most. Their activations are held in memory, those of one block of the model."""
    accuracy_level: Literal[0, 1, 4] = 4
    """What MatMulNBits computes in on CPUs: 4 = 8-bit activations with a scale for each block of a row; 0 and 1 =
    float32, which is slower."""

    def reads(self) -> tuple[str, ...]:
        """The split calibration for gptq and awq."""
        return (*(["calibration"] if self.method in CALIBRATED else []), *super().reads())

    def applies_to(self, target: Target) -> str:
        """Asks for the version of neural-compressor.

        Raises:
            PackageError: it is not one that optkit knows.
        """
        del target
        check_version()
        return ""

    def applies(self, model: Model, target: Target) -> str:
        """Refuses models that were given as ONNX."""
        del target
        if model.lineage:
            return ""
        return "neural-compressor quantizes torch modules, and this model was given as ONNX; use quantize-weights"

    def layered(self, model: Model, ctx: Context) -> Layered:
        """Let neural-compressor quantize the original's module, and find its layers in the graph."""
        from optkit.passes._quant.inc_graph import Bridge, match
        from optkit.passes._quant.nbits_build import open_graph
        from optkit.passes._quant.sites import find_sites
        from optkit.passes._quant.unpadded import few

        _require_folder(ctx.original)
        model, graph, found, notes = open_graph(model, ctx)
        grid = Grid(self.bits, self.block_size, self.symmetric)
        sites, skipped, labels = find_sites(graph, ("MatMul", "Gemm"), self.exclude, grid)
        notes += unused(self.exclude, labels)
        module = ctx.load_torch(ctx.original)
        names = match(sites, linear_layers(module))
        skipped += [(site.label, ELSEWHERE) for site in sites if site.label not in names]
        layers = self._quantized(module, names, sites, ctx) if names else {}
        if layers and self.method in CALIBRATED:
            notes += few(ctx, self.samples, max(site.weights.shape[1] for site, _ in layers.values()))
        taken = {site.label for site, _ in layers.values()}
        skipped += [(label, LEFT.format(self.method)) for label in names if label not in taken]
        if not layers:
            sought = "no linear layer whose weights are those of a layer of the original, as right behind the export"
            notes.append(nothing(sought, skipped, found))
        build = Bridge(model, graph, layers, self.accuracy_level, self.sentence(), ctx)
        outputs = {site.label: site.output for site, _ in layers.values()}
        return Layered(model, outputs, ladder(self.bits), build, skipped, notes)

    def _quantized(
        self, module: object, names: Mapping[str, str], sites: list[Site], ctx: Context
    ) -> dict[int, tuple[Site, Taken]]:
        """Index of the node -> its site, and what neural-compressor made of its weights."""
        from optkit.passes._quant.unpadded import unpadded_tensors

        settings = Settings(self.method, self.bits, self.block_size, self.symmetric)
        batches = partial(unpadded_tensors, ctx, self.samples) if self.method in CALIBRATED else None
        with tempfile.TemporaryDirectory(dir=ctx.workdir) as folder:
            found = quantize(
                module, set(names.values()), settings, batches, source=ctx.original.path, folder=Path(folder)
            )
        return {site.index: (site, found[names[site.label]]) for site in sites if names.get(site.label) in found}


def _require_folder(original: Model) -> None:
    if original.kind != "huggingface":
        raise PassError(
            f"neural-compressor quantizes Hugging Face models, and {original.path.name} is none ({original.kind}).",
            expected="a Hugging Face folder with config.json and weights as the original",
            fix="use quantize-weights, which takes any ONNX graph",
        )
