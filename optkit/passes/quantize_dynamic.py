"""Dynamic int8 quantization."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from optkit.model.model import Form, Model
from optkit.model.target import Target
from optkit.passes._base import Context
from optkit.passes._quant.dynamic import INT8, NO_KERNEL, DynamicOp
from optkit.passes._quant.layered import FLOAT, Layered, Quantizer
from optkit.passes._quant.prepare import FLOAT_FOLDER
from optkit.passes._quant.select import EXCLUDED, already_quantized, excluded, nothing, unused

if TYPE_CHECKING:
    import onnx_ir as ir

    from optkit.passes._quant.dynamic import Found

CONV_REASON = "convolutions run 5 to 8 times slower with dynamic int8; use quantize-static, or add Conv to ops"


class QuantizeDynamic(Quantizer):
    """Quantize weights to int8, activations to uint8 while the model runs.

    ``MatMul(x, W) -> Mul(Cast(MatMulInteger(DynamicQuantizeLinear(x), int8 W)), scales)``;
    ``LSTM(x, W, R) -> DynamicQuantizeLSTM(x, int8 W, int8 R)``;
    ``Attention(x, W, b) -> QAttention(DynamicQuantizeLinear(x), int8 W, b)``. Needs no data. For MatMul the result is
    what ``onnxruntime.quantization.quantize_dynamic`` computes, made directly: without a second copy of the model
    in memory, without shape inference, and with Gemm, transposed weights and subgraphs included. Integer products of
    affine uint8 data and symmetric int8 weights: Jacob et al. 2018, "Quantization and Training of Neural Networks for
    Efficient Integer-Arithmetic-Only Inference".
    """

    forms: ClassVar[Mapping[Form, Form]] = {"onnx": "onnx"}
    uses_target: ClassVar[bool] = True

    per_channel: bool = True
    """A scale for each output channel instead of one for all: cosine .99 instead of .96 on MiniLM, as fast."""
    ops: tuple[DynamicOp, ...] = ("MatMul", "Gemm", "LSTM", "Attention")
    """Operators to quantize. Conv is not among them: as ConvInteger it is 5 to 8 times slower than in float. Attention
    is onnxruntime's own, which holds weights. GRU and RNN have no integer kernel."""
    lstm_on_inputs: bool = False
    """Quantize also LSTMs that read the model's inputs as they come. Raw features seldom fit 8 bits: with its first
    layer a 3-layer speaker encoder falls to a cosine of .81, without it it keeps .9995."""
    reduce_range: bool | None = None
    """Use 7 bits for weights. Null = only on x86 processors without VNNI, whose int8 sums saturate at 16 bits."""

    def applies_to(self, target: Target) -> str:
        """Integer operators of this kind run on CPUs."""
        return "" if target.provider == "cpu" else f"dynamic int8 is made for CPUs, not for {target.provider}"

    def layered(self, model: Model, ctx: Context) -> Layered:
        """Every node of ``ops`` whose weights are constant float32.

        Raises:
            PassError: the model's opset is too old and cannot be raised.
        """
        from optkit.passes._ir import frozen_inputs, load_ir, op_counts, written
        from optkit.passes._quant.cpu import reduce_range
        from optkit.passes._quant.dynamic import Builder, find, prepare
        from optkit.passes._quant.integer import Rounding

        loaded = load_ir(model.path)
        frozen = frozen_inputs(loaded)
        graph, renamed = prepare(loaded)
        found = find(graph, lambda node, label: self._refusal(node, label, graph))
        notes = [*unused(self.exclude, [*found.layers, *dict(found.skipped)]), *(frozen if found.layers else ())]
        notes.append(self._told(found, op_counts(graph)))
        if renamed and found.layers:
            model = written(model, graph.clone(), ctx.workdir / FLOAT_FOLDER)
        narrow = reduce_range(self.reduce_range, ctx.target)
        rounding = Rounding(per_channel=self.per_channel, reduce_range=narrow)
        build = Builder(model, graph, found, rounding, ctx.workdir, self.sentence())
        return Layered(model, found.layers, (INT8, FLOAT), build, found.skipped, [note for note in notes if note])

    def _told(self, found: Found, counts: Counter[str]) -> str:
        if found.layers:
            return already_quantized(counts)
        sought = " or ".join(filter(None, [", ".join(self.ops[:-1]), *self.ops[-1:]]))
        return nothing(f"no {sought} with constant float32 weights", found.skipped, counts)

    def _refusal(self, node: ir.Node, label: str, model: ir.Model) -> str:
        from optkit.passes._quant.lstm import RAW_REASON, reads_input

        if (node.domain, node.op_type) in NO_KERNEL:
            return f"onnxruntime has no integer kernel for {node.op_type}"
        if node.op_type not in self.ops:
            return CONV_REASON if node.op_type == "Conv" else f"{node.op_type} is not among ops"
        if excluded(label, self.exclude):
            return EXCLUDED
        raw = node.op_type == "LSTM" and not self.lstm_on_inputs and reads_input(node, model.graph.inputs)
        return RAW_REASON if raw else ""
