"""What a mask of attention may hold, and masks in the one form that attention is recognized with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from optkit.passes._fusion.apply import require, shaped

if TYPE_CHECKING:
    import onnx_ir as ir

Bound = np.floating[Any]
FAR = np.float32(-1e30)
"""At most so much is added where attention is masked: then a score beside it is lost in rounding."""

_HIGHEST: dict[str, Callable[[list[np.float32]], Bound]] = {
    "Where": lambda sides: np.max(sides[1:]),
    "Add": lambda terms: terms[0] + terms[1],
    **dict.fromkeys(("Concat", "Max", "Min"), np.max),
    **dict.fromkeys(("Cast", "Expand", "Gather", "GatherElements", "GatherND", "Identity"), lambda values: values[0]),
    **dict.fromkeys(("Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"), lambda values: values[0]),
}
"""Operator -> highest value of its result, from those of its inputs."""
_LARGEST = _HIGHEST | {
    "Sub": lambda terms: terms[0] + terms[1],
    "Mul": lambda factors: factors[0] * factors[1],
    "Neg": lambda values: values[0],
}
"""The same of absolute values."""


def largest(value: ir.Value | None, known: dict[ir.Value, np.float32] | None = None) -> np.float32:
    """A bound of the absolute values of a tensor that is computed from constants alone; infinite where unknown.

    In float32, in which adding a small bias to the lowest number gives the lowest number, as it does in the model.

    ``known``: of the results of Max that were seen before.
    """
    known = {} if known is None else known
    node = None if value is None else value.producer()
    if value is not None and node is not None and node.op_type == "Max":
        if value not in known:  # not below the highest of its inputs' own lower bounds
            least = np.min([largest(each, known) for each in node.inputs])
            known[value] = np.max([np.abs(highest(value)), least])
        return known[value]
    return _bound(value, _LARGEST, lambda held: np.abs(held).max(initial=0.0))


def largest_finite(value: ir.Value | None) -> np.float32:
    """The same of what is not infinite in the constants that it comes from."""
    return _bound(value, _LARGEST, lambda held: np.abs(held[np.isfinite(held)]).max(initial=0.0))


def highest(value: ir.Value | None) -> np.float32:
    """The same of the values themselves: finite for zeros and -inf. Where it is finite, there is no NaN either."""
    return _bound(value, _HIGHEST, lambda held: held.max(initial=-np.inf))


def _bound(
    value: ir.Value | None,
    table: Mapping[str, Any],
    measure: Callable[[Any], Bound],
    known: dict[ir.Value | None, np.float32] | None = None,
) -> np.float32:
    known = {} if known is None else known
    if value not in known:
        known[value] = _bound_of(value, table, measure, known)
    return known[value]


def _bound_of(
    value: ir.Value | None,
    table: Mapping[str, Any],
    measure: Callable[[Any], Bound],
    known: dict[ir.Value | None, np.float32],
) -> np.float32:
    import onnx_ir as ir

    from optkit.passes._ir import constant

    held = constant(value)
    if held is not None:
        return np.float32(measure(held.astype(np.float64)))
    node = None if value is None else value.producer()
    if node is None:
        return np.float32(np.inf)
    if node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.BOOL:
        return np.float32(1)
    if node.op_type not in table:
        return np.float32(np.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.float32(table[node.op_type]([_bound(each, table, measure, known) for each in node.inputs]))


@cache
def mask_rules() -> Any:
    """Masks in the one form that onnxscript's rule knows, ``Softmax(Add(scores, mask))``.

    ``Softmax(Add(Add(scores, bias), mask)) -> Softmax(Add(scores, Add(bias, mask)))``: one mask, as in MPNet.

    ``Softmax(Where(keep, scores, far)) -> Softmax(Add(scores, Where(keep, 0, far)))``, and the same with the sides
    swapped, as ``masked_fill`` has them, for ``far`` of at most ``FAR``: what is closer to the scores would make a
    difference in rows that are masked all over.

    ``Where(IsNaN(p), [0], p) -> Where(IsNaN(p), 0, p)``, which the TorchScript exporter writes.
    """
    from onnxscript.rewriter import pattern

    class OneMask(pattern.RewriteRuleClassBase):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def pattern(self, op: Any, scores: Any, bias: Any, mask: Any) -> Any:
            return op.Softmax(op.Add(op.Add(scores, bias), mask), axis=-1)

        def check(self, context: Any, scores: ir.Value, **_: Any) -> Any:
            del context
            require(_made_by(scores, "MatMul", "Mul", "Div"), "")
            return pattern.MatchResult()

        def rewrite(self, op: Any, scores: ir.Value, bias: ir.Value, mask: ir.Value) -> Any:
            return op.Softmax(op.Add(scores, op.Add(bias, mask)), axis=-1)

    class Chosen(pattern.RewriteRuleClassBase):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def __init__(self, name: str, swapped: bool) -> None:
            super().__init__(name)
            self.swapped = swapped

        def pattern(self, op: Any, keep: Any, scores: Any, far: Any) -> Any:
            return op.Softmax(op.Where(keep, *((far, scores) if self.swapped else (scores, far))), axis=-1)

        def check(self, context: Any, keep: ir.Value, scores: ir.Value, far: ir.Value) -> Any:
            del context
            require(_made_by(scores, "MatMul", "Mul", "Div"), "")
            require(known(scores) and fits(keep, scores.shape), "the mask is not known to have the size of the scores")
            require(bool(highest(far) <= FAR), f"masked scores are replaced by more than {FAR:g}")
            require(far.const_value is not None and far.const_value.size == 1, "masked scores differ")
            return pattern.MatchResult()

        def rewrite(self, op: Any, keep: ir.Value, scores: ir.Value, far: ir.Value) -> Any:
            sides = (far, _zero(op, far)) if self.swapped else (_zero(op, far), far)
            return op.Softmax(op.Add(scores, op.Where(keep, *sides)), axis=-1)

    class ScalarZero(pattern.RewriteRuleClassBase):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def pattern(self, op: Any, p: Any, zero: Any) -> Any:
            return op.Where(op.IsNaN(p), zero, p)

        def check(self, context: Any, p: ir.Value, zero: ir.Value) -> Any:
            del context
            held = zero.const_value
            require(_made_by(p, "Softmax") and held is not None and held.size == 1 and len(held.shape) > 0, "")
            require(zero.const_value.numpy().item() == 0, "NaN becomes another value than 0")
            return pattern.MatchResult()

        def rewrite(self, op: Any, p: ir.Value, zero: ir.Value) -> Any:
            return op.Where(op.IsNaN(p), _zero(op, zero), p)

    return pattern.RewriteRuleSet(
        [OneMask.rule(), Chosen.rule("kept", False), Chosen.rule("dropped", True), ScalarZero.rule()]
    )


@cache
def row_rules() -> Any:
    """``Join(Transpose(Where(dead, 0, SDPA))) -> Where(Reshape(dead), 0, Join(Transpose(SDPA)))``: heads stay together.

    ``dead`` [B, 1, S, 1] tells rows that are masked all over; behind the heads it is [B, S, 1].
    """
    from onnxscript.rewriter import pattern

    class Moved(pattern.RewriteRuleClassBase):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def pattern(self, op: Any, dead: Any, zero: Any, heads: Any, shape: Any) -> Any:
            kept = op.Where(dead, zero, heads)
            return op.Reshape(op.Transpose(kept, perm=[0, 2, 1, 3]), shape, _outputs=["joined"])

        def check(self, context: Any, dead: ir.Value, heads: ir.Value, joined: ir.Value, **_: Any) -> Any:
            del context
            require(_made_by(heads, "SDPA") and dead.shape is not None and joined.shape is not None, "")
            require(len(dead.shape or ()) == 4 and len(joined.shape or ()) == 3 and known(heads), "")
            require(dead.shape[1] == 1 and dead.shape[3] == 1, "")
            return pattern.MatchResult()

        def rewrite(
            self, op: Any, dead: ir.Value, zero: ir.Value, heads: ir.Value, shape: ir.Value, joined: ir.Value
        ) -> Any:
            batch, count, tokens, size = heads.shape
            rows = op.Reshape(dead, op.Constant(value_ints=[0, -1, 1]))
            turned = shaped(op.Transpose(heads, perm=[0, 2, 1, 3]), [batch, tokens, count, size], heads)
            return op.Where(rows, zero, shaped(op.Reshape(turned, shape), joined.shape, heads))

    return pattern.RewriteRuleSet([Moved.rule()])


def fits(mask: ir.Value, scores: Sequence[Any]) -> bool:
    """Whether every dimension of the mask is known to be 1 or that of the scores, and the last one is theirs.

    Where the mask has 5 columns, scores whose columns have a name have 5 of them too, or values could not be taken by
    them; then so has every dimension of that name.
    """
    sizes = list(mask.shape or ()) if known(mask) else []
    if not 0 < len(sizes) <= len(scores):
        return False
    columns, wanted = sizes[-1], list(scores[-len(sizes) :])
    if isinstance(columns, int) and columns > 1 and not isinstance(scores[-1], int):
        wanted = [columns if size == scores[-1] else size for size in wanted]
    return bool(columns == wanted[-1]) and all(size in (1, want) for size, want in zip(sizes, wanted, strict=True))


def known(value: ir.Value | None) -> bool:
    """Whether each dimension has a size or a name. Two without are equal for onnx-ir, whatever they turn out to be."""
    if value is None or value.shape is None:
        return False
    return all(isinstance(size, int) or size.value is not None for size in value.shape)


def _made_by(value: ir.Value, *kinds: str) -> bool:
    source = value.producer()
    return source is not None and source.op_type in kinds


def _zero(op: Any, like: ir.Value) -> Any:
    """0 without dimensions, of the same dtype."""
    import onnx_ir as ir

    held = like.const_value
    return op.Constant(value=ir.tensor(np.zeros((), held.numpy().dtype if held is not None else np.float32)))
