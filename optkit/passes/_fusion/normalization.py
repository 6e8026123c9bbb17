"""Normalizations that are spelled out, as one node."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from optkit.passes._fusion.apply import apply_rules, require, require_row, together
from optkit.passes._fusion.family import Fired

if TYPE_CHECKING:
    import onnx_ir as ir

LAYER_NORM_FROM = 17
"""Opset that ``LayerNormalization`` came with."""


def fuse_normalization(model: ir.Model) -> Fired:
    """``x / Sqrt(ReduceMean(x * x) + e) * scale -> SimplifiedLayerNormalization(x, scale)``.

    And ``d / Sqrt(ReduceMean(d * d) + e) * scale + bias -> LayerNormalization(x, scale, bias)`` for
    ``d = x - ReduceMean(x)``.
    """
    newer = model.opset_imports.get("", 0) >= LAYER_NORM_FROM
    layers = apply_rules(model, _layer_rules()) if newer else Fired()
    return together(layers, apply_rules(model, _rms_rules()))  # in this order: the second is a part of the first


class _EitherAxes:
    """Operators of a pattern, with the axes of ``ReduceMean`` as input or, as before opset 18, as attribute."""

    def __init__(self, op: Any) -> None:
        self.op = op

    def __getattr__(self, name: str) -> Any:
        return getattr(self.op, name)

    def ReduceMean(self, x: Any, axes: list[int], keepdims: int) -> Any:
        from onnxscript.rewriter import pattern

        means = self.op.ReduceMean(x, axes, keepdims=keepdims), self.op.ReduceMean(x, axes=axes, keepdims=keepdims)
        return pattern.OrValue(means)


@cache
def _rms_rules() -> Any:
    from onnxscript.rewriter import pattern
    from onnxscript.rewriter.ort_fusions.rms_normalization import RmsNormFusion

    either = pattern.OrValue

    class Rms(RmsNormFusion):  # type: ignore[misc]  # onnxscript is not followed by mypy
        """onnxscript's rule, which knows the dynamo exporter's form, and the form of the TorchScript exporter."""

        def pattern(self, op: Any, x: Any, scale: Any, epsilon: Any, compute_dtype: Any, target_dtype: Any) -> Any:
            x = either([op.Cast(x, to=compute_dtype), x])
            square = either([op.Pow(x, 2.0), op.Mul(x, x)])
            root = op.Sqrt(op.Add(_EitherAxes(op).ReduceMean(square, [-1], keepdims=1), epsilon))
            normal = either([op.Mul(x, op.Reciprocal(root)), op.Mul(x, op.Div(1.0, root)), op.Div(x, root)])
            normal = either([op.Cast(normal, to=target_dtype), normal])
            scale = either([op.Cast(scale, to=compute_dtype), scale])
            return op.Mul(normal, scale) if self._mul_order else op.Mul(scale, normal)

        def check(self, context: Any, x: ir.Value, scale: ir.Value, **rest: Any) -> Any:
            require_row(scale, x, "the scale")
            return super().check(context, x=x, scale=scale, **rest)

    return pattern.RewriteRuleSet([Rms.rule(f"rms, scale last: {last}", last) for last in (True, False)])


@cache
def _layer_rules() -> Any:
    """onnxscript's rules, kept off scales and biases that are not one row, which the kernel refuses or mistakes."""
    from onnxscript.rewriter import pattern
    from onnxscript.rewriter.rules.fusion._layer_norm import LayerNormBiasFusion, LayerNormFusion

    class Layer(LayerNormFusion):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def pattern(self, op: Any, x: Any, scale: Any, epsilon: Any) -> Any:
            return super().pattern(_EitherAxes(op), x, scale, epsilon)

        def check(self, context: Any, x: ir.Value, scale: ir.Value, **rest: Any) -> Any:
            require_row(scale, x, "the scale")
            return super().check(context, x=x, scale=scale, **rest)

    class Biased(LayerNormBiasFusion):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def check(self, context: Any, x: ir.Value, scale: ir.Value, bias: ir.Value, normalized: ir.Value) -> Any:
            del context, scale
            require(bias.const_value is not None, "")  # the residual addition behind a normalization
            axis = normalized.producer().attributes.get("axis")
            require(axis is None or axis.as_int() == -1, "it normalizes more than the last axis")
            require_row(bias, x, "the bias")
            return pattern.MatchResult()

    return pattern.RewriteRuleSet([Layer.rule(), *Biased.rule().commute()])
