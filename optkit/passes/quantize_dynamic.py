"""Dynamic int8 quantization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from optkit.model.model import Form, Model
from optkit.model.target import Target
from optkit.passes._base import Context, Outcome, Pass, PassKind
from optkit.passes._quant.select import EXCLUDED, NodePattern, excluded, nothing, unused

if TYPE_CHECKING:
    import onnx_ir as ir

    from optkit.passes._quant.integer import IntegerRewriter

Entries = list[tuple[str, str]]
LinearOp = Literal["MatMul", "Gemm", "Conv"]

BATCH_NOTE = "a sample's answer now depends a little on its batch: activations get one scale per tensor at run time"
OPSET = 11
"""Where DynamicQuantizeLinear begins."""
CONV_REASON = "convolutions run 5 to 8 times slower with dynamic int8; use quantize-static, or add Conv to ops"


class QuantizeDynamic(Pass):
    """Quantize weights to int8, activations to uint8 while the model runs.

    ``MatMul(x, W) -> Mul(Cast(MatMulInteger(DynamicQuantizeLinear(x), int8 W)), scales)``. Needs no data. The result is
    what ``onnxruntime.quantization.quantize_dynamic`` computes, made directly: without a second copy of the model
    in memory, without shape inference, and with Gemm, transposed weights and subgraphs included.
    """

    forms: ClassVar[Mapping[Form, Form]] = {"onnx": "onnx"}
    kind: ClassVar[PassKind] = "lossy"
    uses_target: ClassVar[bool] = True

    per_channel: bool = True
    """A scale for each output channel instead of one for all: cosine .99 instead of .96 on MiniLM, as fast."""
    ops: tuple[LinearOp, ...] = ("MatMul", "Gemm")
    """Operators to quantize. Conv is not among them: as ConvInteger it is 5 to 8 times slower than in float."""
    exclude: tuple[NodePattern, ...] = ()
    """Nodes to leave in float: names, or regular expressions that match a whole name."""
    reduce_range: bool | None = None
    """Use 7 bits for weights. Null = only on x86 processors without VNNI, whose int8 sums saturate at 16 bits."""

    def applies_to(self, target: Target) -> str:
        """Integer operators of this kind run on CPUs."""
        return "" if target.provider == "cpu" else f"dynamic int8 is made for CPUs, not for {target.provider}"

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Quantize every MatMul, Gemm or Conv of ``ops`` whose weights are constant float32."""
        from optkit.passes._ir import frozen_inputs, inline, load_ir, op_counts, raise_opset, remove_unused, save_ir
        from optkit.passes._quant.cpu import reduce_range
        from optkit.passes._quant.integer import IntegerRewriter

        loaded = load_ir(model.path)
        frozen = frozen_inputs(loaded)
        graph = raise_opset(inline(loaded), OPSET)
        found = op_counts(graph)
        narrow = reduce_range(self.reduce_range, ctx.target)
        rewriter = IntegerRewriter(per_channel=self.per_channel, reduce_range=narrow)
        changes, skipped, notes = self._rewrite(graph, rewriter)
        if not changes:
            sought = f"no {' or '.join(self.ops)} with constant float32 weights"
            return Outcome(model, 0, skipped=skipped, notes=[*notes, nothing(sought, skipped, found)])
        remove_unused(graph)
        path = ctx.workdir / "model.onnx"
        save_ir(graph, path)
        notes += [*frozen, BATCH_NOTE, *(["weights use 7 bits: no VNNI here"] if narrow else [])]
        made = model.derive(path, "onnx", self.sentence())
        return Outcome(made, len(changes), changes=changes, skipped=skipped, notes=notes)

    def _rewrite(self, model: ir.Model, rewriter: IntegerRewriter) -> tuple[Entries, Entries, list[str]]:
        from optkit.passes._ir import node_label
        from optkit.passes._quant.integer import Refusal

        changes: Entries = []
        skipped: Entries = []
        labels = []
        for node in list(model.graph.all_nodes()):
            if node.domain or node.op_type not in get_args(LinearOp):
                continue
            label = node_label(node)
            labels.append(label)
            try:
                self._refuse(node, label)
                changes.append((label, rewriter.rewrite(node)))
            except Refusal as reason:
                skipped.append((label, str(reason)))
        return changes, skipped, unused(self.exclude, labels)

    def _refuse(self, node: ir.Node, label: str) -> None:
        from optkit.passes._quant.integer import Refusal

        if node.op_type not in self.ops:
            raise Refusal(CONV_REASON if node.op_type == "Conv" else f"{node.op_type} is not among ops")
        if excluded(label, self.exclude):
            raise Refusal(EXCLUDED)
