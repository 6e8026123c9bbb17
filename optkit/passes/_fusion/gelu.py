"""GELU in the forms that onnxscript's rules do not know."""

from __future__ import annotations

import math
from functools import cache
from typing import Any


@cache
def tanh_rules() -> Any:
    """``(0.5 x) * (1 + Tanh(sqrt(2/pi) (x + 0.044715 x^3))) -> FastGelu(x)``, as GPT-2 spells it."""
    from onnxscript.rewriter import pattern

    class HalfFirst(pattern.RewriteRuleClassBase):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def pattern(self, op: Any, x: Any) -> Any:
            inner = op.Add(x, op.Mul(op.Pow(x, 3), 0.044715))
            risen = op.Add(op.Tanh(op.Mul(inner, math.sqrt(2 / math.pi))), 1)
            return op.Mul(op.Mul(x, 0.5), risen)

        def rewrite(self, op: Any, x: Any) -> Any:
            return op.FastGelu(x, _domain="com.microsoft")

    return pattern.RewriteRuleSet([HalfFirst.rule()])
