"""What convolutions can take in: scales and shifts of their channels, batch normalization, padding; and joined clamps.

They stay plain convolutions: onnxruntime gives those a layout of its own, which is faster than its fused ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optkit.passes._fusion.apply import apply_rules, require
from optkit.passes._fusion.family import Fired
from optkit.passes._ir import constant, keep_overwritten

if TYPE_CHECKING:
    import onnx_ir as ir

Floats = NDArray[np.float64]
NUMBERS_AS_INPUTS = 11
"""Opset from which Clip and Pad take their numbers as inputs."""
BY_BATCH = "it normalizes by the batch"
STEPS: dict[str, Callable[[Floats], tuple[Floats, Floats]]] = {
    "Mul": lambda held: (held, np.zeros_like(held)),
    "Div": lambda held: (1 / held, np.zeros_like(held)),
    "Add": lambda held: (np.ones_like(held), held),
    "Sub": lambda held: (np.ones_like(held), -held),
}
"""Operator -> scale and shift that its constant means."""


def fuse_conv_affine(model: ir.Model) -> Fired:
    """``BatchNormalization(Conv(Pad(x * s)) * t + u) -> Conv(x)``, any part of it; ``Relu(Clip(x)) -> Clip(x)``."""
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    old = model.opset_imports.get("", NUMBERS_AS_INPUTS) < NUMBERS_AS_INPUTS
    rules, count = conv_rules(with_numbers_as_inputs=not old), 0
    while True:  # what one round leaves unused may be what a rule of the next takes for another reader of weights
        found = apply_rules(model, rules)
        keep_overwritten(model)
        count += found.count
        if not found.count:
            return Fired(count, found.refused)


@cache
def conv_rules(*, with_numbers_as_inputs: bool) -> Any:
    """All rules; without those for Pad and Clip where these still have attributes."""
    from onnxscript.rewriter import RewriteRuleSet
    from onnxscript.rewriter.rules import common

    rules = [*_step_rules(), *norm_rules()]
    if with_numbers_as_inputs:
        rules += [common.fuse_pad_into_conv_rule, *_clamp_rules()]
    return RewriteRuleSet(rules)


@cache
def norm_rules() -> list[Any]:
    """``BatchNormalization(Conv(x, W, b)) -> Conv(x, W', b')``; so for ConvTranspose and Gemm.

    onnxscript's own, kept off normalization by the mean and variance of the batch.
    """
    from onnxscript.rewriter.rules.common import _fuse_batchnorm as known

    class Inference:
        def check(self, context: Any, x: ir.Value, inbound_out: ir.Value, batchnorm_out: ir.Value) -> Any:
            require(not trains(batchnorm_out.producer()), BY_BATCH)
            return super().check(context, x, inbound_out, batchnorm_out)  # type: ignore[misc]

    layers = known.FuseBatchNormIntoConv, known.FuseBatchNormIntoConvTranspose, known.FuseBatchNormIntoGemm
    return [type(layer.__name__, (Inference, layer), {})().rule() for layer in layers]


def trains(norm: ir.Node | None) -> bool:
    """Whether a BatchNormalization is in training: by its attribute or, before opset 14, by its other outputs."""
    return norm is not None and (norm.attributes.get_int("training_mode", 0) != 0 or len(norm.outputs) > 1)


def _step_rules() -> list[Any]:
    """``Conv(x, W, b) * s + t -> Conv(x, W s, b s + t)`` and ``Conv(x s + t, W, b) -> Conv(x, W s, b + sum(W t))``.

    onnxscript's own take one number for all channels only, and give one name to what two convolutions with the same
    weights become.
    """
    from onnxscript.rewriter import pattern

    class Step(pattern.RewriteRuleClassBase):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def __init__(self, step: str) -> None:
            super().__init__(f"{step}{type(self).__name__}Conv")
            self._step = step

        def rewrite(self, op: Any, x: ir.Value, conv: ir.Value, **_: Any) -> Any:
            node = conv.producer()
            names = f"{conv.name}_folded_weights", f"{conv.name}_folded_bias"
            folded = (_initializer(op, *each) for each in zip(self._folded, names, strict=True))
            return op.Conv(x, *folded, **node.attributes)

    class After(Step):
        def pattern(self, op: Any, x: Any, by: Any) -> Any:
            conv = op.Conv(x, _allow_other_inputs=True, _outputs=["conv"])
            return getattr(op, self._step)(conv, by)

        def check(self, context: Any, conv: ir.Value, by: ir.Value, **_: Any) -> Any:
            del context
            weights, bias = _held(conv, by)
            scale, shift = _scale_and_shift(self._step, by, weights.ndim, len(weights))
            self._folded = _as_stored(conv, weights * _column(scale, weights.ndim), bias * scale + shift)
            return pattern.MatchResult()

    class Before(Step):
        def pattern(self, op: Any, x: Any, by: Any) -> Any:
            return op.Conv(getattr(op, self._step)(x, by), _allow_other_inputs=True, _outputs=["conv"])

        def check(self, context: Any, x: ir.Value, conv: ir.Value, by: ir.Value) -> Any:
            del context
            weights, bias = _held(conv, by)
            groups = conv.producer().attributes.get_int("group", 1)
            channels = weights.shape[1] * groups
            scale, shift = _scale_and_shift(self._step, by, weights.ndim, channels)
            known = x.shape is not None and len(x.shape) == weights.ndim and x.shape[1] == channels
            require(known, "it is not known to have as many channels before the step as behind it")
            require(not shift.any() or not _pads(conv.producer()), "what is padded is zero only behind the shift")
            grouped = weights.reshape(groups, -1, *weights.shape[1:])
            scaled, moved = (grouped * _column(each.reshape(groups, 1, -1), grouped.ndim) for each in (scale, shift))
            bias = bias + moved.reshape(len(weights), -1).sum(axis=1)
            self._folded = _as_stored(conv, scaled.reshape(weights.shape), bias)
            return pattern.MatchResult()

    return [each for step in STEPS for rule in (After, Before) for each in rule.rule(step).commute()]


def _held(conv: ir.Value, by: ir.Value) -> tuple[Floats, Floats]:
    """Weights and bias of a convolution, in float64, for the ``check`` of a rule whose step is by a constant."""
    node: Any = conv.producer()
    matrix, vector = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    weights, bias = constant(matrix), constant(vector)
    require(constant(by) is not None and weights is not None and (vector is None or bias is not None), "")
    require(len(matrix.uses()) == 1, "weights are used elsewhere too, and would be stored twice")
    wide = np.asarray(weights, np.float64)
    return wide, np.zeros(len(wide)) if bias is None else np.asarray(bias, np.float64)


def _column(values: Floats, rank: int) -> Floats:
    """[a, ..., n] as [a, ..., n, 1, ..., 1] of this rank."""
    return values.reshape(*values.shape, *[1] * (rank - values.ndim))


def _as_stored(conv: ir.Value, weights: Floats, bias: Floats) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """In the convolution's dtype, if that can hold them."""
    node: Any = conv.producer()
    kind = np.asarray(constant(node.inputs[1])).dtype
    with np.errstate(over="ignore", invalid="ignore"):
        found = weights.astype(kind), bias.astype(kind)
    require(all(np.isfinite(array).all() for array in found), f"weights would be beyond what {kind} holds")
    return found


def _scale_and_shift(step: str, by: ir.Value, rank: int, channels: int) -> tuple[Floats, Floats]:
    """[channels] each, of a step whose constant is one number, or one for each channel of tensors of this rank."""
    values = np.asarray(constant(by), np.float64)
    full = (1,) * (rank - values.ndim) + values.shape
    require(
        len(full) == rank and full[1] in (1, channels) and values.size == full[1],
        "its constant is not one number for each channel",
    )
    with np.errstate(divide="ignore"):
        scale, shift = STEPS[step](np.broadcast_to(values.ravel(), channels))
    return scale, shift


def _pads(node: ir.Node) -> bool:
    automatic = node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return automatic or any(node.attributes.get_ints("pads", ()))


def _clamp_rules() -> list[Any]:
    """``Clip(Clip(x, a, b), c, d) -> Clip(x, max(a, c), min(b, d))``, Relu being ``Clip(x, 0)``.

    Only where the ranges meet: ``Relu(Clip(x, -5, -1))`` is 0, and ``Clip(x, 0, -1)``, as onnxscript's rule has it, -1.
    """
    from onnxscript.rewriter import pattern
    from onnxscript.rewriter.rules import common

    class Clamp(pattern.RewriteRuleClassBase):  # type: ignore[misc]
        def __init__(self, outer: str, inner: str) -> None:
            super().__init__(f"{outer}Of{inner}")
            self._ops = outer, inner

        def pattern(self, op: Any, x: Any) -> Any:
            outer, inner = (getattr(op, each) for each in self._ops)
            found = inner(x, _allow_other_inputs=True, _outputs=["first"])
            return outer(found, _allow_other_inputs=True, _outputs=["second"])

        def check(self, context: Any, first: ir.Value, second: ir.Value, **_: Any) -> Any:
            del context
            bounds = [_bounds(value.producer()) for value in (first, second)]
            lows, highs = ([each for each in side if each is not None] for side in zip(*bounds, strict=True))
            require(not (lows and highs) or max(lows) <= min(highs), "their ranges do not meet: all values become one")
            kinds = [each.dtype for each in (*lows, *highs) if isinstance(each, np.ndarray)]
            require(bool(kinds), "")
            self._ends = [
                np.array(pick(ends), kinds[0]) if ends else None for pick, ends in ((max, lows), (min, highs))
            ]
            return pattern.MatchResult()

        def rewrite(self, op: Any, x: ir.Value, second: ir.Value, **_: Any) -> Any:
            names = f"{second.name}_low", f"{second.name}_high"
            return op.Clip(x, *(_initializer(op, *each) for each in zip(self._ends, names, strict=True)))

    pairs = (("Clip", "Clip"), ("Clip", "Relu"), ("Relu", "Clip"))
    return [*(Clamp.rule(*pair) for pair in pairs), common.successive_relu_rule]


def _bounds(node: ir.Node) -> list[Any]:
    """Lowest and highest value that a Clip or Relu lets through; None where there is none."""
    if node.op_type == "Relu":
        return [0.0, None]
    held = [constant(value) for value in node.inputs[1:]]
    require(all(each is not None or value is None for value, each in zip(node.inputs[1:], held, strict=True)), "")
    return [*held, None, None][:2]


def _initializer(op: Any, array: NDArray[np.generic] | None, name: str) -> Any:
    import onnx_ir as ir

    return None if array is None else op.initializer(ir.tensor(array), name)
