"""The residual addition in front of a normalization, inside of it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from optkit.passes._fusion.apply import apply_rules, require, require_kernel
from optkit.passes._fusion.family import Fired
from optkit.passes._fusion.masks import known

if TYPE_CHECKING:
    import onnx_ir as ir


def fuse_skip_norm(model: ir.Model) -> Fired:
    """``LayerNormalization(s = Add(x, skip)), s -> SkipLayerNormalization(x, skip)``, and the same for RMS.

    A bias that was added before or after goes in with it.
    """
    return apply_rules(model, _rules())


@cache
def _rules() -> Any:
    from onnxscript.rewriter import pattern
    from onnxscript.rewriter.ort_fusions.skip_normalization import SkipLayerNormFusion, SkipRmsNormFusion

    def guarded(base: Any) -> Any:
        class Guarded(base):  # type: ignore[misc]  # onnxscript is not followed by mypy
            def check(self, context: Any, input: ir.Value, skip: ir.Value, bias: ir.Value | None, **rest: Any) -> Any:
                chance = self._has_bias and (bias is None or bias.shape is None or len(bias.shape) != 1)
                require(not chance, "")  # three addends, none of which is a bias: another rule looks at them
                require_kernel(input)
                alike = known(input) and known(skip) and input.shape == skip.shape
                require(alike, "the addends are not known to be of one size")
                return super().check(context, input=input, skip=skip, bias=bias, **rest)

        return Guarded

    places = {"biased": (True, True), "then bias": (True, False), "plain": (False, False)}
    return pattern.RewriteRuleSet(
        [
            guarded(base).rule(f"{base.__name__}, {name}", has_bias=has_bias, bias_pre_add=before)
            for base in (SkipLayerNormFusion, SkipRmsNormFusion)
            for name, (has_bias, before) in places.items()
        ]
    )
