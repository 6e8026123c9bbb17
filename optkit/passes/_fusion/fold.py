"""Constants computed in advance, and what can be read off shapes: the clean-up before and after fusions."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from optkit.passes._fusion.apply import require
from optkit.passes._ir import constant

if TYPE_CHECKING:
    import onnx_ir as ir

EXACT = ["broadcast_to_matmul", "cast_constant_of_shape", "collapse_slices", "materialize_reshape_shape"]
EXACT += ["remove_optional_bias"]
"""Files of onnxscript's rules."""
RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
RANDOM |= {"BiasDropout", "BitmaskDropout", "BitmaskBiasDropout"}
"""Operators that may give something else each time; so does Dropout in training."""
NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}
"""Operator -> number that changes nothing as its second input, but for the sign of a zero."""
ROUNDS = 2
"""As often as onnxscript does by default."""


def fold(model: ir.Model) -> None:
    """As ``onnxscript.optimizer.optimize``, in place, without some of its rules.

    Those for ``x + 0`` and ``x * 1`` take 1e-9 for 0 and 1.000009 for 1; here only 0 and 1 count. Those for ScatterND
    take one that adds for one that replaces. Those for Clip, Min and Max make ``Clip(x, 0, -1)``, which is -1, of
    ``Relu(Clip(x, -5, -1))``, which is 0; and two clamps of one tensor could not be opened, as their bounds had one
    name. Those for Pad and BatchNormalization belong to the family ``conv-affine``, which tells what it did.
    """
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants
    from onnxscript.rewriter import rewrite

    for _ in range(ROUNDS):
        fold_constants(model, onnx_shape_inference=True, should_fold=lambda node: False if _draws(node) else None)
        rewrite(model, _rules())
    for clean in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        merge_repeated,
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        clean(model)


def merge_repeated(model: ir.Model) -> None:
    """``f(Relu(x), Relu(x)) -> f(r, r)``; nothing in a graph that draws random numbers, as two draws are not one."""
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass

    if not is_random(model):
        CommonSubexpressionEliminationPass()(model)


def is_random(model: ir.Model) -> bool:
    """Whether it draws random numbers, in subgraphs and functions too."""
    return any(_draws(node) for graph in (model.graph, *model.functions.values()) for node in graph.all_nodes())


def _draws(node: ir.Node) -> bool:
    if node.op_type != "Dropout" or len(node.inputs) < 3 or node.inputs[2] is None:
        return node.op_type in RANDOM
    training = constant(node.inputs[2])
    return training is None or bool(training.any())


@cache
def _rules() -> Any:
    from onnxscript.rewriter import RewriteRuleSet
    from onnxscript.rewriter.rules import common

    rules = [rule for name in EXACT for rule in getattr(common, f"_{name}").rules]
    return RewriteRuleSet([*_neutral_rules(), *rules, *common._basic_rules.basic_optimization_rules()])


def _neutral_rules() -> list[Any]:
    """``x + 0``, ``x - 0``, ``x * 1``, ``x / 1`` ``-> x``, where the constant is that number to the last bit."""
    from onnxscript.rewriter import pattern

    class Neutral(pattern.RewriteRuleClassBase):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def __init__(self, step: str) -> None:
            super().__init__(f"{step}{NEUTRAL[step]}")
            self._step = step

        def pattern(self, op: Any, x: Any, by: Any) -> Any:
            return getattr(op, self._step)(x, by)

        def check(self, context: Any, by: ir.Value, **_: Any) -> Any:
            del context
            held = constant(by)
            require(held is not None and held.ndim == 0 and held.item() == NEUTRAL[self._step], "")
            return pattern.MatchResult()

        def rewrite(self, op: Any, x: ir.Value, **_: Any) -> Any:
            return op.Identity(x)

    return [
        rule
        for step in NEUTRAL
        for rule in (Neutral.rule(step).commute() if step in ("Add", "Mul") else [Neutral.rule(step)])
    ]
