"""What attention needs beyond onnxscript's rules to be recognized, and to stay exact."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

_SAME_VALUES = frozenset(
    "Expand Flatten Gather GatherElements GatherND Identity Reshape Slice Squeeze Transpose Unsqueeze".split()
)
"""Operators whose result has no other values than their first input."""


@cache
def mask_rules() -> Any:
    """``Softmax(Add(Add(scores, bias), mask)) -> Softmax(Add(scores, Add(bias, mask)))``: one mask, as in MPNet."""
    from onnxscript.rewriter import pattern

    class OneMask(pattern.RewriteRuleClassBase):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def pattern(self, op: Any, scores: Any, bias: Any, mask: Any) -> Any:
            return op.Softmax(op.Add(op.Add(scores, bias), mask), axis=-1)

        def check(self, context: Any, scores: ir.Value, **_: Any) -> bool:
            source = scores.producer()
            return source is not None and source.op_type in ("MatMul", "Mul", "Div")

        def rewrite(self, op: Any, scores: ir.Value, bias: ir.Value, mask: ir.Value) -> Any:
            return op.Softmax(op.Add(scores, op.Add(bias, mask)), axis=-1)

    return pattern.RewriteRuleSet([OneMask.rule()])


@cache
def sdpa_rules() -> Any:
    """onnxscript's rule, but kept off ``Where(IsNaN(p), 0, p)`` where its mask may be -inf.

    Exporters add it for rows that are masked all over: their softmax is NaN, and becomes 0. onnxruntime's attention
    leaves NaN. Where a mask has finite values only, such a row has no NaN, and both are the same.
    """
    from onnxscript.rewriter import pattern
    from onnxscript.rewriter.ort_fusions.sdpa import SDPA

    class Guarded(SDPA):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def check(self, context: Any, *, mask: ir.Value | None, **rest: Any) -> Any:
            guarded = any(node.op_type == "IsNaN" for node in context.nodes)
            if guarded and mask is not None and not np.isfinite(largest(mask)):
                return pattern.MatchResult().fail("The mask may be infinite, and NaN is taken care of.", mask)
            return super().check(context, mask=mask, **rest)

    return pattern.RewriteRuleSet([Guarded.rule()])


def largest(value: ir.Value | None) -> np.float32:
    """A bound of the absolute values of a tensor that is computed from constants alone; infinite where unknown."""
    from optkit.passes._ir import constant

    held = constant(value)
    if held is not None:
        return np.float32(np.abs(held.astype(np.float64)).max(initial=0.0))
    node = None if value is None else value.producer()
    if node is None:
        return np.float32(np.inf)
    if node.op_type in _SAME_VALUES:
        return largest(node.inputs[0])
    return _largest_result(node)


def _largest_result(node: ir.Node) -> np.float32:
    """``largest`` of the output of an operator that computes; in float32, in which a mask and a small bias fit."""
    import onnx_ir as ir

    first = node.inputs[0]
    if node.op_type == "Cast" and first is not None and first.dtype == ir.DataType.BOOL:
        return np.float32(1)
    with np.errstate(over="ignore", invalid="ignore"):
        match node.op_type:
            case "Where":
                return np.maximum(largest(node.inputs[1]), largest(node.inputs[2]))
            case "Concat" | "Max" | "Min":
                return np.max([largest(each) for each in node.inputs])
            case "Add" | "Sub":
                return largest(first) + largest(node.inputs[1])
            case "Mul":
                return largest(first) * largest(node.inputs[1])
            case "Cast" | "Neg":
                return largest(first)
    return np.float32(np.inf)
