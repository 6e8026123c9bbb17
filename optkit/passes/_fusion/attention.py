"""What attention needs beyond onnxscript's rules to be recognized, and to stay exact."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

_BOUNDS: dict[str, Callable[[list[np.float32]], np.floating[Any]]] = {
    "Where": lambda sides: np.max(sides[1:]),
    "Add": lambda terms: terms[0] + terms[1],
    "Sub": lambda terms: terms[0] + terms[1],
    "Mul": lambda factors: factors[0] * factors[1],
    **dict.fromkeys(("Concat", "Max", "Min"), np.max),
    **dict.fromkeys(("Cast", "Expand", "Gather", "GatherElements", "GatherND", "Identity"), lambda values: values[0]),
    **dict.fromkeys(("Neg", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"), lambda values: values[0]),
}
"""Operator -> bound of its result, from those of its inputs."""


@cache
def mask_rules() -> Any:
    """``Softmax(Add(Add(scores, bias), mask)) -> Softmax(Add(scores, Add(bias, mask)))``: one mask, as in MPNet."""
    from onnxscript.rewriter import pattern

    class OneMask(pattern.RewriteRuleClassBase):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def pattern(self, op: Any, scores: Any, bias: Any, mask: Any) -> Any:
            return op.Softmax(op.Add(op.Add(scores, bias), mask), axis=-1)

        def check(self, context: Any, scores: ir.Value, **_: Any) -> bool:
            del context
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
    """A bound of the absolute values of a tensor that is computed from constants alone; infinite where unknown.

    In float32, in which adding a small bias to the lowest number gives the lowest number, as it does in the model.
    """
    import onnx_ir as ir

    from optkit.passes._ir import constant

    held = constant(value)
    if held is not None:
        return np.float32(np.abs(held.astype(np.float64)).max(initial=0.0))
    node = None if value is None else value.producer()
    if node is None:
        return np.float32(np.inf)
    if node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.BOOL:
        return np.float32(1)
    if node.op_type not in _BOUNDS:
        return np.float32(np.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.float32(_BOUNDS[node.op_type]([largest(each) for each in node.inputs]))
