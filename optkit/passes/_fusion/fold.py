"""Constants computed in advance, and what can be read off shapes: the clean-up before and after fusions."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

EXACT = ["no_op", "broadcast_to_matmul", "cast_constant_of_shape", "collapse_slices", "materialize_reshape_shape"]
EXACT += ["redundant_scatter_nd", "remove_optional_bias"]
"""Files of onnxscript's rules."""
ROUNDS = 2
"""As often as onnxscript does by default."""


def fold(model: ir.Model) -> None:
    """As ``onnxscript.optimizer.optimize``, in place, without its rules for Clip, Min, Max, Pad and BatchNormalization.

    ``Relu(Clip(x, -5, -1))`` came out as ``Clip(x, 0, -1)``, which is -1 and not 0; two clamps of one tensor could not
    be opened, as their bounds had one name. The others belong to the family ``conv-affine``, which tells what it did.
    """
    from onnx_ir.passes import Sequential, common
    from onnxscript.optimizer import fold_constants
    from onnxscript.rewriter import rewrite

    for _ in range(ROUNDS):
        fold_constants(model, onnx_shape_inference=True)
        rewrite(model, _rules())
    Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


@cache
def _rules() -> Any:
    from onnxscript.rewriter import RewriteRuleSet
    from onnxscript.rewriter.rules import common

    rules = [rule for name in EXACT for rule in getattr(common, f"_{name}").rules]
    return RewriteRuleSet([*rules, *common._basic_rules.basic_optimization_rules()])
