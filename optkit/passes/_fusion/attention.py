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

    It is also kept off attention with a mask that has neither guard nor scale, as in T5: 384 wide, batch 8 x 128, it
    was 5 to 8 % slower fused.
    """
    from onnxscript.rewriter import pattern
    from onnxscript.rewriter.ort_fusions.sdpa import SDPA

    class Guarded(SDPA):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def check(self, context: Any, *, mask: ir.Value | None, **rest: Any) -> Any:
            guarded = any(node.op_type == "IsNaN" for node in context.nodes)
            if guarded and mask is not None and not np.isfinite(largest(mask)):
                return pattern.MatchResult().fail("The mask may be infinite, and NaN is taken care of.", mask)
            found = super().check(context, mask=mask, **rest)
            if self._scale == 1.0 and mask is not None and not guarded:
                return pattern.MatchResult().fail("With a mask, but neither scale nor guard, it is slower.", mask)
            return found

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


def free_transposes(model: ir.Model) -> None:
    """``Shape(Transpose(x)) -> Gather(Shape(x), axes)``, in place.

    Exporters read sizes from heads that are transposed already, as in T5. Those transposes, done again in the opposite
    direction for onnxruntime's attention, would stay.
    """
    import onnx_ir as ir

    for node in list(model.graph):
        source = node.inputs[0].producer() if node.op_type == "Shape" and node.inputs[0] is not None else None
        if source is None or source.op_type != "Transpose" or "perm" not in source.attributes:
            continue
        start, end = (node.attributes.get(name) for name in ("start", "end"))
        axes = source.attributes["perm"].as_ints()[start and start.as_int() : end and end.as_int()]
        picked = ir.val(f"{node.outputs[0].name}_axes", const_value=ir.tensor(np.array(axes, np.int64)))
        model.graph.register_initializer(picked)
        whole = ir.node("Shape", [source.inputs[0]])
        gather = ir.node("Gather", [whole.outputs[0], picked], attributes={"axis": 0}, name=node.name)
        model.graph.insert_before(node, [whole, gather])
        ir.convenience.replace_all_uses_with(node.outputs[0], gather.outputs[0], replace_graph_outputs=True)
        model.graph.remove(node, safe=True)


def drop_idle_expands(model: ir.Model) -> None:
    """``MultiHeadAttention(q, k, v, mask=Expand(x, size)) -> MultiHeadAttention(q, k, v, mask=x)`` for x of that size.

    onnxscript puts them in for masks of one row. In T5, whose masks have a plane for each head, they copied as much as
    the rest of attention took.
    """
    for node in model.graph:
        source = node.inputs[5].producer() if node.op_type == "MultiHeadAttention" and _has_mask(node) else None
        if source is None or source.op_type != "Expand":
            continue
        mask, grown = source.inputs[0], source.outputs[0]
        if mask is not None and mask.shape is not None and mask.shape == grown.shape:
            node.replace_input_with(5, mask)


def _has_mask(node: ir.Node) -> bool:
    return len(node.inputs) > 5 and node.inputs[5] is not None
