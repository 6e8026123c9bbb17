"""The bias in front of a GELU, inside of it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from optkit.passes._fusion.apply import apply_rules, require, require_kernel, require_row
from optkit.passes._fusion.family import Fired

if TYPE_CHECKING:
    import onnx_ir as ir


def fuse_bias_gelu(model: ir.Model) -> Fired:
    """``Gelu(Add(x, bias)) -> BiasGelu(x, bias)``, for ONNX's and onnxruntime's own Gelu."""
    return apply_rules(model, _rules())


@cache
def _rules() -> Any:
    from onnxscript.rewriter import pattern
    from onnxscript.rewriter.ort_fusions.bias_gelu import BiasGeluFusion

    class OneRow(BiasGeluFusion):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def check(self, context: Any, gelu: ir.Value, input: ir.Value, bias: ir.Value, **rest: Any) -> Any:
            require(bias.shape is not None and len(bias.shape) == 1, "")  # a sum of two tensors, or the other order
            require_row(bias, input, "the bias")
            require_kernel(input)
            return super().check(context, gelu=gelu, input=input, bias=bias, **rest)

    rules = [OneRow.rule(f"contrib: {contrib}", contrib_op=contrib) for contrib in (False, True)]
    return pattern.RewriteRuleSet(rules, commute=True)
