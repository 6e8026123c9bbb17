"""Batch normalization folded into the layer before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from optkit.model.model import Form, Model
from optkit.passes._base import Context, Outcome, Pass, PassKind

if TYPE_CHECKING:
    import onnx_ir as ir

BEFORE = ("Conv", "ConvTranspose", "Gemm")
"""Operators whose weights can take a batch normalization in."""


class FoldBatchnorm(Pass):
    """Fold batch normalizations into the weights before them.

    ``BatchNormalization(Conv(x, W, b))`` becomes ``Conv(x, W', b')`` with ``W' = W * gamma / sqrt(var + eps)`` and
    ``b' = (b - mean) * gamma / sqrt(var + eps) + beta``; ConvTranspose and Gemm likewise. ``simplify`` does it too, but
    not above 1 GB of weights.
    """

    forms: ClassVar[Mapping[Form, Form]] = {"onnx": "onnx"}
    kind: ClassVar[PassKind] = "exact"

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Fold them; each that stays is told with its reason."""
        from onnx_ir.passes.common import LiftConstantsToInitializersPass
        from onnxscript.rewriter import RewriteRuleSet

        from optkit.passes._fusion.conv_affine import norm_rules
        from optkit.passes._ir import frozen_inputs, keep_overwritten, load_ir, op_counts, remove_unused, save_ir

        graph = load_ir(model.path)
        frozen = frozen_inputs(graph)
        before = op_counts(graph)["BatchNormalization"]
        LiftConstantsToInitializersPass()(graph)
        RewriteRuleSet(norm_rules()).apply_to_model(graph)
        keep_overwritten(graph)
        skipped = _left(graph)
        folded = before - len(skipped)
        if not folded:
            notes = [] if before else ["the graph has no batch normalization"]
            return Outcome(model, 0, skipped=skipped, notes=notes)
        remove_unused(graph)
        path = ctx.workdir / "model.onnx"
        save_ir(graph, path)
        changes = [("BatchNormalization", f"{before} -> {len(skipped)}")]
        return Outcome(model.derive(path, "onnx", self.sentence()), folded, changes, skipped, notes=frozen)


def _left(model: ir.Model) -> list[tuple[str, str]]:
    """(node, why it stays) for every batch normalization."""
    from optkit.passes._ir import node_label

    return [(node_label(n), _reason(n)) for n in model.graph.all_nodes() if n.op_type == "BatchNormalization"]


def _reason(node: ir.Node) -> str:
    from optkit.passes._fusion.conv_affine import BY_BATCH, trains

    if trains(node):
        return BY_BATCH
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    if source is None or source.op_type not in BEFORE:
        kind = "an input" if source is None else source.op_type
        return f"it follows {kind}, which has no weights to fold into"
    if len(source.outputs[0].uses()) > 1 or source.outputs[0].is_graph_output():
        return f"the output of {source.op_type} is used elsewhere too"
    return "its parameters or the weights before it are computed, or shared with another node"
