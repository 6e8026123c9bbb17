"""Fusion of operators into onnxruntime's own kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from optkit.model.model import Form, Model
from optkit.passes._base import Context, Outcome, Pass, PassKind

if TYPE_CHECKING:
    from optkit.passes._fusion.rules import Families

DISABLED = "optimization.disable_specified_optimizers"
SKIP_NORM = "SkipLayerNormFusion"


class FuseGraph(Pass):
    """Replace groups of operators by onnxruntime's fused kernels.

    ``MatMul -> Mul -> Add -> Softmax -> MatMul`` between transposed heads becomes ``MultiHeadAttention``, spelled out
    GELU ``Gelu``, RMS normalization ``SimplifiedLayerNormalization``. On CPUs, residual additions stay outside the
    normalizations, which are faster that way, and onnxruntime is told to leave them there.
    """

    forms: ClassVar[Mapping[Form, Form]] = {"onnx": "onnx"}
    kind: ClassVar[PassKind] = "exact"
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    uses_target: ClassVar[bool] = True

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Try the fusions that are good for the target, and fewer of them where a session cannot open the result."""
        from optkit.passes._fusion.rules import attempts
        from optkit.passes._ir import frozen_inputs, load_ir, op_counts

        graph = load_ir(model.path)
        before, notes = op_counts(graph), frozen_inputs(graph)
        session, told = _session(model, before, ctx.target.provider)
        path = ctx.workdir / "model.onnx"
        skipped: list[tuple[str, str]] = []
        for families in attempts(ctx.target):
            changes = _fuse(model, path, families, before)
            if not changes:
                skipped = skipped or [(", ".join(families), "nothing in the graph has a form that they make faster")]
                break
            reason = _fails_to_open(path, session)
            if not reason:
                made = model.derive(path, "onnx", self.sentence())
                changed = _fused_nodes(changes) + len(told)
                return Outcome(made, changed, [*changes, *told], skipped, notes, session)
            skipped.append((", ".join(families), reason))
        return Outcome(model, len(told), changes=told, skipped=skipped, session=session)


def _fuse(model: Model, path: Path, families: Families, before: Counter[str]) -> list[tuple[str, str]]:
    """Write the fused model to ``path``; (type, ``before -> after``) of nodes, fused ones first, or nothing."""
    from optkit.passes._fusion.rules import fuse
    from optkit.passes._ir import count_changes, inline, load_ir, op_counts, save_ir

    graph = fuse(inline(load_ir(model.path)), families)
    changes = sorted(count_changes(before, op_counts(graph)), key=lambda change: not _is_fused(change[0]))
    if not _fused_nodes(changes):
        return []
    save_ir(graph, path)
    return changes


def _fused_nodes(changes: list[tuple[str, str]]) -> int:
    """How many more nodes of onnxruntime's own operators there are than before."""
    gains = (what.split(" -> ") for kind, what in changes if _is_fused(kind))
    return sum(max(0, int(after) - int(before)) for before, after in gains)


def _is_fused(kind: str) -> bool:
    """Whether it is one of onnxruntime's own operators, one of which it keeps in ONNX's domain."""
    return kind.startswith("com.microsoft.") or kind == "SimplifiedLayerNormalization"


def _fails_to_open(path: Path, config: Mapping[str, str]) -> str:
    """Why onnxruntime cannot open the file, or an empty string."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    try:
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  onnxruntime's errors share no base class
        return f"onnxruntime cannot open the result: {str(error).splitlines()[0]}"
    return ""


def _session(model: Model, ops: Counter[str], provider: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """On CPUs: leave Add and LayerNormalization apart, where onnxruntime would fuse them into a slower kernel."""
    disabled = [name for name in model.session.get(DISABLED, "").split(";") if name]
    if provider != "cpu" or SKIP_NORM in disabled or not (ops["LayerNormalization"] and ops["Add"]):
        return dict(model.session), []
    value = ";".join([*disabled, SKIP_NORM])
    return {**model.session, DISABLED: value}, [("session", f"{SKIP_NORM} disabled: its kernel is slower on CPUs")]
