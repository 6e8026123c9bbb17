"""Applying rewrite rules, and asking the places that look alike, but were left, for the reason."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from optkit.passes._fusion.family import Fired
from optkit.passes._ir import node_label

if TYPE_CHECKING:
    import onnx_ir as ir

Refusals = tuple[tuple[str, str], ...]


def apply_rules(model: ir.Model, rules: Any) -> Fired:
    """Rewrite every place that one of the rules fits, subgraphs included.

    Args:
        model: rewritten in place.
        rules: a ``RewriteRuleSet`` of onnxscript.

    Returns:
        How many places were rewritten, and the places that have the form, but failed a rule's condition or whose inner
        values are needed elsewhere.
    """
    count = rules.apply_to_model(model)
    return Fired(count, refusals(model, rules))


def refusals(model: ir.Model, rules: Any) -> Refusals:
    """(node, reason) of places that have the form of a rule and are not rewritten by any; changes nothing."""
    tracer = _tracer_class()()
    rules.apply_to_model(model, tracer=tracer)
    return tuple(dict.fromkeys(tracer.refused))


def together(*parts: Fired) -> Fired:
    """What several rule sets did, as one."""
    return Fired(sum(part.count for part in parts), tuple(place for part in parts for place in part.refused))


def require(held: bool, reason: str, *sources: Any) -> None:
    """In a rule's ``check``: go on only if ``held``; an empty reason is for places that are only alike by chance.

    Raises:
        MatchFailureError: not held; the rewriter takes it for a refusal.
    """
    from onnxscript.rewriter._basics import MatchFailureError

    if not held:
        raise MatchFailureError(reason, *sources)


def require_kernel(value: ir.Value) -> None:
    """In a rule's ``check``: go on only with float32 and float16, which onnxruntime's fused kernels take everywhere."""
    import onnx_ir as ir

    known = "unknown" if value.dtype is None else value.dtype.name.lower()
    require(value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16), f"its kernel takes no values of type {known}")


def require_row(vector: ir.Value, values: ir.Value, what: str) -> None:
    """In a rule's ``check``: go on only if ``vector`` is [D] where ``values`` is [..., D], D known."""
    sizes = [None if each.shape is None else each.shape.dims for each in (vector, values)]
    width = sizes[1][-1] if sizes[1] else None
    require(isinstance(width, int) and sizes[0] == (width,), f"{what} is not known to be one value for each column")


def shaped(value: ir.Value, shape: Sequence[Any], like: ir.Value) -> ir.Value:
    """The same value, now known to have this shape and the dtype of ``like``; inference stops at onnxruntime's ops."""
    import onnx_ir as ir

    value.shape, value.type = ir.Shape(shape), like.type
    return value


@cache
def _tracer_class() -> Any:
    from onnxscript.rewriter.pattern import MatchingTracer, MatchStatus

    failed = (MatchStatus.CONDITION_FAILED, MatchStatus.REPLACEMENT_FAILED)

    class Refused(MatchingTracer):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def __init__(self) -> None:
            super().__init__()
            self.refused: list[tuple[str, str]] = []

        def log(self, rule: Any, container: Any, node: ir.Node, match_result: Any, status: Any) -> None:
            del rule, container
            shared = "other uses" in match_result.reason
            if match_result.reason and (status in failed or shared):
                reason = "an inner value is needed elsewhere" if shared else match_result.reason
                self.refused.append((node_label(node), reason))

    return Refused
