"""GELU that is spelled out, as one node."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

from optkit.passes._fusion.apply import apply_rules, require_kernel
from optkit.passes._fusion.family import Fired

if TYPE_CHECKING:
    import onnx_ir as ir


def fuse_gelu(model: ir.Model) -> Fired:
    """``x * 0.5 * (1 + Erf(x / sqrt 2)) -> Gelu(x)``, and ``FastGelu(x)`` for the approximation by ``Tanh``.

    onnxscript's own rules know three of these forms, each with one order of the operands, and take any dtype; GPT-2,
    the TorchScript exporter and exports below opset 20 write others.
    """
    return apply_rules(model, _rules())


@cache
def _rules() -> Any:
    from onnxscript.rewriter import pattern

    either = pattern.OrValue

    def mul(op: Any, a: Any, b: Any) -> Any:
        return either([op.Mul(a, b), op.Mul(b, a)])

    def add(op: Any, a: Any, b: Any) -> Any:
        return either([op.Add(a, b), op.Add(b, a)])

    def risen_erf(op: Any, x: Any) -> Any:
        inner = either([op.Div(x, math.sqrt(2)), op.Mul(x, math.sqrt(0.5)), op.Mul(math.sqrt(0.5), x)])
        return add(op, op.Erf(inner), 1)

    def risen_tanh(op: Any, x: Any) -> Any:
        cube = either([op.Pow(x, 3), op.Mul(x, op.Mul(x, x)), op.Mul(op.Mul(x, x), x)])
        inner = add(op, x, mul(op, cube, 0.044715))
        return add(op, op.Tanh(mul(op, inner, math.sqrt(2 / math.pi))), 1)

    forms: dict[str, Any] = {
        "whole": lambda op, x, risen: (mul(op, x, risen), 0.5),
        "risen": lambda op, x, risen: (x, mul(op, risen, 0.5)),
        "first": lambda op, x, risen: (mul(op, x, 0.5), risen),
    }

    class Spelled(pattern.RewriteRuleClassBase):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def __init__(self, name: str, kernel: str, risen: Any, form: Any, swapped: bool) -> None:
            super().__init__(name)
            self.kernel, self.risen, self.form, self.swapped = kernel, risen, form, swapped

        def pattern(self, op: Any, x: Any) -> Any:
            left, right = self.form(op, x, self.risen(op, x))
            return op.Mul(right, left) if self.swapped else op.Mul(left, right)

        def check(self, context: Any, x: ir.Value, **_: Any) -> Any:
            del context
            require_kernel(x)
            return pattern.MatchResult()

        def rewrite(self, op: Any, x: Any) -> Any:
            return getattr(op, self.kernel)(x, _domain="com.microsoft")

    return pattern.RewriteRuleSet(
        [
            Spelled.rule(f"{kernel}, {name} halved", kernel, risen, form, swapped)
            for kernel, risen in (("Gelu", risen_erf), ("FastGelu", risen_tanh))
            for name, form in forms.items()
            for swapped in (False, True)
        ]
    )
