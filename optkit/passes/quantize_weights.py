"""Weight-only quantization."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import partial
from typing import ClassVar, Literal

from pydantic import Field

from optkit.model.model import Form, Model
from optkit.passes._base import Context
from optkit.passes._quant.layered import Layered, Quantizer, never
from optkit.passes._quant.nbits import CALIBRATED, Blocks, Grid, ladder
from optkit.passes._quant.select import already_quantized, nothing, unused

WeightOp = Literal["MatMul", "Gemm", "Gather"]

OPSET = 21
"""Where DequantizeLinear learns blocks and 4 bits."""
OWN_OPERATORS = frozenset({"cpu", "cuda", "directml", "webgpu"})
"""Providers that run MatMulNBits."""


class QuantizeWeights(Quantizer):
    """Store the weights of linear layers and embeddings in 4 or 8 bits.

    ``MatMul(x, W) -> MatMulNBits(x, codes, scales)``, with a scale for every ``block_size`` weights that meet in one
    output; activations stay in float between the layers. Gemm becomes a product and an Add, ``Gather(W, ids)`` becomes
    GatherBlockQuantized, and an output layer tied to the embedding shares its codes.
    """

    forms: ClassVar[Mapping[Form, Form]] = {"onnx": "onnx"}
    for_speed: ClassVar[bool] = False
    uses_target: ClassVar[bool] = True

    bits: Literal[4, 8] = 4
    """Bits of a weight. 4 also loses accuracy in small models; 8 hardly ever does."""
    embedding_bits: Literal[4, 8] = 8
    """The same for embeddings and for output layers tied to them, at least ``bits``: with gptq at block 128, perplexity
    of SmolLM2-135M is 38.3 with 8 and 45.1 with 4."""
    block_size: Literal[16, 32, 64, 128, 256] = 32
    """Weights that share a scale of 32 bits (and a zero). 32 costs 1 bit a weight; 128 costs a quarter of that and is
    1.5 times faster on CPUs with many tokens at a time, but rounds more coarsely."""
    symmetric: bool = False
    """Let zero be the middle code of every block, instead of storing one for each: less to store, a bit less exact."""
    method: Literal["rtn", "hqq", "gptq", "awq"] = "rtn"
    """rtn rounds to the nearest value. hqq also chooses scales and zeros for few outliers (Badri & Shaji 2023). gptq
    lets the rest of the weights make up for each one's error on the calibration data (Frantar et al. 2022): the most
    exact. awq gives channels of great activations finer weights (Lin et al. 2023)."""
    format: Literal["auto", "matmul-nbits", "qdq"] = "auto"
    """matmul-nbits = onnxruntime's own operators; qdq = DequantizeLinear of opset 21 before standard operators, for
    other engines. auto = the first where the provider has them."""
    ops: tuple[WeightOp, ...] = ("MatMul", "Gemm", "Gather")
    """Operators whose weights are quantized. Of Gathers only embeddings, which pick rows of a matrix."""
    accuracy_level: Literal[0, 1, 4] = 4
    """What MatMulNBits computes in on CPUs: 4 = 8-bit activations with a scale for each block of a row (error .005 of
    the output); 0 and 1 = float32. For one token 4 is 2 to 4 times faster with 4-bit weights and about 40 times with
    8 bits; for many tokens at most 1.5 and 4 times."""
    act_order: bool = True
    """gptq: take inputs of great activations first, so that the others make up for their errors; scales are then taken
    before that. Without it the few huge channels of language models spoil it: SmolLM2-135M's layers at block 128 have
    perplexity 37.8 with and 44.3 without, rounded to nearest 43.7, in float32 32.9."""
    damping: float = Field(default=0.01, gt=0, le=1)
    """gptq: share of the mean of the Hessian's diagonal that is added to it."""

    def reads(self) -> tuple[str, ...]:
        """The split calibration for gptq and awq."""
        return (*(["calibration"] if self.method in CALIBRATED else []), *super().reads())

    def layered(self, model: Model, ctx: Context) -> Layered:
        """Find the layers, and do with calibration data what has to be done but once."""
        from optkit.passes._ir import written
        from optkit.passes._quant.from_data import compensated, scaled
        from optkit.passes._quant.nbits_build import Build, open_graph
        from optkit.passes._quant.sites import find_sites

        standard = self.format == "qdq" or (self.format == "auto" and ctx.target.provider not in OWN_OPERATORS)
        model, graph, found, notes = open_graph(model, ctx, OPSET if standard else 0)
        grid = Grid(self.bits, self.block_size, self.symmetric)
        look = partial(find_sites, graph, self.ops, self.exclude, grid)
        sites, skipped, labels = look()
        notes += unused(self.exclude, labels)
        if not sites:
            sought = f"no {' or '.join(self.ops)} with constant float32 weights"
            return Layered(model, {}, (), never, skipped, [*notes, nothing(sought, skipped, found)])
        notes += [told] if (told := already_quantized(found)) else []
        done: dict[Hashable, Blocks] = {}
        if self.method == "awq":
            told_scales, changed = scaled(model, graph, sites, grid, ctx)
            model = written(model, graph, ctx.workdir / "scaled") if changed else model
            notes += told_scales
            sites = look()[0]
        if self.method == "gptq":
            done, told_data = compensated(model, sites, grid, ctx, damping=self.damping, order=self.act_order)
            notes += told_data
        build = Build(
            model,
            graph,
            sites,
            grid,
            ctx.workdir,
            self.sentence(),
            standard=standard,
            accuracy_level=self.accuracy_level,
            embedding_bits=self.embedding_bits,
            hqq=self.method == "hqq",
            done=done,
        )
        layers = {site.label: site.output for site in sites}
        return Layered(model, layers, ladder(self.bits), build, skipped, notes)
