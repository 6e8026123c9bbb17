"""Static int8 quantization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from optkit.model.model import Form, Model
from optkit.passes._base import Context
from optkit.passes._quant.calibrators import Calibration
from optkit.passes._quant.cpu import ActivationType
from optkit.passes._quant.layered import FLOAT, Layered, Quantizer, never
from optkit.passes._quant.operators import QdqOp
from optkit.passes._quant.select import NodePattern, already_quantized, nothing, unused

if TYPE_CHECKING:
    import onnx_ir as ir

    from optkit.passes._quant.prepare import Prepared
    from optkit.passes._quant.ranges import Activations
    from optkit.passes._quant.static import Builder


class QuantizeStatic(Quantizer):
    """Quantize weights and activations to int8, with ranges measured on calibration data.

    ``Conv(x, W) -> DequantizeLinear(QuantizeLinear(Conv(DequantizeLinear(xq), DequantizeLinear(Wq))))``, which
    onnxruntime runs as one integer kernel (Jacob et al. 2018, "Quantization and Training of Neural Networks for
    Efficient Integer-Arithmetic-Only Inference"). Ranges are measured batch by batch, in constant memory, and kept for
    later runs. Results of MatMul and Gemm, and what only feeds Softmax or a normalization, stay in float.
    """

    forms: ClassVar[Mapping[Form, Form]] = {"onnx": "onnx"}
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    uses_target: ClassVar[bool] = True
    uses_data: ClassVar[tuple[str, ...]] = ("calibration", "sample")

    activations: ActivationType = "auto"
    """Type of activations. auto = uint8 on x86 CPUs, where int8 is no faster than float32, else int8. int16 = 16 bits,
    signed where auto is, for devices with kernels for them: onnxruntime has none for CPUs and converts for every layer,
    3.8 times slower than float32 on EfficientNet-Lite0."""
    per_channel: bool = True
    """A scale for each output channel of a weight instead of one for all."""
    calibration: Calibration = "minmax"
    """minmax keeps every value seen, as text encoders need (MiniLM: cosine .992, with percentile .974); percentile cuts
    off outliers, which makes room for the rest; mse takes the range with the least squared error of rounding and
    cutting off. Which is best differs from model to model."""
    percentile: float = Field(default=99.99, gt=50, le=100)
    """Share of values, %, that calibration: percentile keeps; half of the rest is cut off at either end."""
    bias_correction: bool = True
    """Put what rounded weights take from the mean of a Conv's or Gemm's output into its bias: error .073 instead of
    .117 on EfficientNet-Lite0, and no slower."""
    ops: tuple[QdqOp, ...] = ()
    """Operators to quantize. Empty = all that integers can flow through where convolutions do the work; MatMul and Gemm
    alone elsewhere, as the rest costs accuracy there (error .024 against .38)."""
    include: tuple[NodePattern, ...] = ()
    """Nodes to quantize, by names or regular expressions that match a whole name; ``exclude`` still counts. Empty =
    every node of the operators, where it saves more converting than it adds."""
    reduce_range: bool | None = None
    """Use 7 bits for weights. Null = only on x86 processors without VNNI, whose int8 sums saturate at 16 bits."""

    def layered(self, model: Model, ctx: Context) -> Layered:
        """Measure ranges on the split ``calibration``, and say what can be quantized with them.

        Raises:
            DataError: there are no calibration data, or they are not finite.
            PassError: an activation is not finite.
        """
        from optkit.passes._quant.flow import Flow, candidates
        from optkit.passes._quant.operators import KNOWN, WEIGHTED, auto_ops
        from optkit.passes._quant.prepare import prepare
        from optkit.passes._quant.ranges import ranges_by
        from optkit.passes._quant.static import data_notes, rungs, sizes_of, strangers, tensors_of, told

        data = ctx.batches("calibration")
        prepared = prepare(model, ctx)
        graph, forced = prepared.graph.graph, bool(self.ops or self.include)
        ops = self.ops or (KNOWN if self.include else auto_ops(prepared.graph, ctx.target.provider))
        chosen = candidates(graph, ops, self.include, self.exclude)
        notes = [*self._idle_patterns(graph), *prepared.notes]
        if not any(node.name in chosen.names and (forced or node.op_type in WEIGHTED) for node in graph):
            return self._nothing(prepared, ops, chosen.skipped, notes)
        everything = candidates(graph, ops).names
        tensors = tensors_of(graph, everything, chosen.names)
        found = ranges_by(self.calibration, self.percentile, prepared.model, tensors, ctx)
        sizes = sizes_of(graph, everything, chosen.names, found)
        flow = Flow(graph, chosen.names, sizes, forced=forced)
        held, left = flow.held({}, "int8")
        layers = flow.layers(held)
        if not layers:
            return self._nothing(prepared, ops, chosen.skipped, notes)
        build = self._builder(model, prepared, chosen.names, sizes, found, ctx)
        skipped = [*chosen.skipped, *(place for place in left if place[1].startswith("it feeds"))]
        already = already_quantized(prepared.found)
        notes += [told(build), *data_notes(data), *([already] if already else [])]
        notes += strangers(ctx.batches("search" if self.repair else "sample"), found)
        return Layered(prepared.model, layers, (*rungs(build, ctx), FLOAT), build, skipped, notes)

    def _builder(
        self,
        model: Model,
        prepared: Prepared,
        chosen: list[str],
        sizes: Mapping[str, int],
        found: Activations,
        ctx: Context,
    ) -> Builder:
        from optkit.passes._quant.cpu import activation_grid, reduce_range, wide
        from optkit.passes._quant.layer_weights import Weights
        from optkit.passes._quant.static import Builder

        grid = activation_grid(self.activations, ctx.target)
        grids = {"int8": grid, "int16": wide(grid)} if grid.bits == 8 else {"int16": grid}
        weights = Weights(self.per_channel, reduce_range(self.reduce_range, ctx.target))
        return Builder(
            model,
            prepared.model.path,
            chosen,
            sizes,
            found,
            grids,
            weights,
            ctx.workdir,
            self.sentence(),
            forced=bool(self.ops or self.include),
            correct_bias=self.bias_correction,
        )

    def _nothing(
        self, prepared: Prepared, ops: Sequence[str], skipped: Sequence[tuple[str, str]], notes: Sequence[str]
    ) -> Layered:
        sought = f"no quantizable {', '.join(ops)}"
        return Layered(prepared.model, {}, (FLOAT,), never, skipped, [*notes, nothing(sought, skipped, prepared.found)])

    def _idle_patterns(self, graph: ir.Graph) -> list[str]:
        names = [node.name or "" for node in graph]
        return [*unused(self.exclude, names), *unused(self.include, names, "include")]
