"""Static int8 quantization."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from optkit.model.model import Form, Model
from optkit.model.onnx_file import load_onnx, save_onnx
from optkit.model.target import Target
from optkit.passes._base import Context, Outcome, Pass, PassKind
from optkit.passes._quant.qdq import QdqOp
from optkit.passes._quant.select import NodePattern, nothing, unused

if TYPE_CHECKING:
    from onnx import ModelProto

    from optkit.data.dataset import Dataset
    from optkit.passes._quant.qdq import Selection
    from optkit.passes._quant.ranges import Range

FEW_SAMPLES = 32
OPSET = 13
"""Where QuantizeLinear learns channels."""


class QuantizeStatic(Pass):
    """Quantize weights and activations to int8, with ranges measured on calibration data.

    ``Conv(x, W) -> DequantizeLinear(QuantizeLinear(Conv(DequantizeLinear(xq), DequantizeLinear(Wq))))``, which
    onnxruntime runs as one integer kernel. Ranges are measured batch by batch, in constant memory.
    """

    forms: ClassVar[Mapping[Form, Form]] = {"onnx": "onnx"}
    kind: ClassVar[PassKind] = "lossy"
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    uses_target: ClassVar[bool] = True
    uses_data: ClassVar[tuple[str, ...]] = ("calibration",)

    activations: Literal["auto", "uint8", "int8"] = "auto"
    """Type of activations. auto = uint8 on x86 CPUs, where int8 is no faster than float32, else int8."""
    per_channel: bool = True
    """A scale for each output channel of a weight instead of one for all."""
    calibration: Literal["minmax", "percentile"] = "minmax"
    """minmax keeps every value seen; percentile cuts off outliers, which makes room for the rest."""
    percentile: float = Field(default=99.99, gt=50, le=100)
    """Share of values, %, that calibration: percentile keeps; half of the rest is cut off at either end."""
    ops: tuple[QdqOp, ...] = ()
    """Operators to quantize. Empty = all that int8 can flow through in convolutional networks; MatMul and Gemm alone
    where there is attention or layer normalization, as the rest costs accuracy there (error .024 against .38)."""
    exclude: tuple[NodePattern, ...] = ()
    """Nodes to leave in float: names, or regular expressions that match a whole name."""
    reduce_range: bool | None = None
    """Use 7 bits for weights. Null = only on x86 processors without VNNI, whose int8 sums saturate at 16 bits."""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Measure ranges on the split ``calibration``, then quantize.

        Raises:
            PassError: an activation is not finite on the calibration data.
            DataError: there are no calibration data.
        """
        from optkit.passes._quant.qdq import auto_ops, select
        from optkit.passes._quant.ranges import measure_ranges

        data = ctx.batches("calibration")
        prepared, proto, frozen = _prepare(model, ctx)
        chosen = select(proto.graph, self.ops or auto_ops(proto.graph), self.exclude)
        notes = [*unused(self.exclude, [node.name for node in proto.graph.node]), *_graph_notes(proto)]
        if not chosen.nodes:
            return Outcome(model, 0, skipped=chosen.skipped, notes=[*notes, _nothing(proto, chosen)])
        ranges = measure_ranges(prepared, chosen.tensors(proto.graph), ctx, data, self._range)
        made, changes, told = self._quantize(proto, chosen, ranges, ctx)
        prepared.path.unlink()
        if not changes:
            return Outcome(model, 0, skipped=chosen.skipped, notes=[*notes, _nothing(proto, chosen)])
        path = ctx.workdir / "model.onnx"
        save_onnx(made, path)
        result = model.derive(path, "onnx", self.sentence())
        notes += [*frozen, *told, *_data_notes(data, ranges)]
        return Outcome(result, len(changes), changes=changes, skipped=chosen.skipped, notes=notes)

    def _range(self) -> Range:
        from optkit.passes._quant.ranges import MinMax, Percentile

        return MinMax() if self.calibration == "minmax" else Percentile(self.percentile)

    def _quantize(
        self, proto: ModelProto, chosen: Selection, ranges: Mapping[str, Range], ctx: Context
    ) -> tuple[ModelProto, list[tuple[str, str]], list[str]]:
        from optkit.passes._quant.cpu import reduce_range
        from optkit.passes._quant.qdq import quantize_qdq, quantized_nodes

        signed = _signed(self.activations, ctx.target)
        narrow = reduce_range(self.reduce_range, ctx.target)
        made = quantize_qdq(proto, chosen, ranges, signed=signed, per_channel=self.per_channel, reduce_range=narrow)
        told = [f"activations {'int8' if signed else 'uint8'}, weights {'7 bits' if narrow else 'int8'}"]
        return made, list(quantized_nodes(made.graph, chosen)), told


def _prepare(model: Model, ctx: Context) -> tuple[Model, ModelProto, list[str]]:
    """The model at a fit opset, without functions and with a name for every node; as a file, in memory, and notes."""
    from optkit.passes._ir import frozen_inputs, inline, load_ir, raise_opset, save_ir

    loaded = load_ir(model.path)
    frozen = frozen_inputs(loaded)
    graph = raise_opset(inline(loaded), OPSET)
    for node in graph.graph:
        node.name = node.name or f"{node.op_type}_{node.outputs[0].name}"
    path = ctx.workdir / "prepared.onnx"
    save_ir(graph, path)
    return replace(model, path=path), load_onnx(path), frozen


def _signed(asked: str, target: Target) -> bool:
    """Whether activations are int8. On x86 CPUs only uint8 x int8 has an instruction of its own."""
    from optkit.model.machine import machine

    return asked == "int8" or (asked == "auto" and not (target.provider == "cpu" and machine().is_x86))


def _nothing(proto: ModelProto, chosen: Selection) -> str:
    sought = f"no quantizable {', '.join(chosen.ops)}"
    return nothing(sought, chosen.skipped, Counter(node.op_type for node in proto.graph.node))


def _graph_notes(proto: ModelProto) -> Iterator[str]:
    convolved = {node.output[0] for node in proto.graph.node if node.op_type == "Conv"}
    norms = [node for node in proto.graph.node if node.op_type == "BatchNormalization" and node.input[0] in convolved]
    if norms:
        yield f"{len(norms)} BatchNormalization after Conv stay in float: put simplify before this pass"


def _data_notes(data: Dataset, ranges: Mapping[str, Range]) -> Iterator[str]:
    if data.count < FEW_SAMPLES:
        yield f"only {data.count} calibration samples: ranges may be too narrow; {FEW_SAMPLES} to 500 are usual"
    if data.synthetic:
        yield "the calibration data are synthetic: ranges are guesses"
    bounds = [found.bounds() for found in ranges.values()]
    if bounds and all(low == high for low, high in bounds):
        yield "the calibration data are constant: every activation has one value only"
