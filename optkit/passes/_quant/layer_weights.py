"""Weights and biases of layers as integers, for QDQ graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optkit.passes._ir import constant
from optkit.passes._quant.bias import bias_shift
from optkit.passes._quant.weights import quantize_weights

if TYPE_CHECKING:
    import onnx_ir as ir

INT32 = 2**31 - 1
Array = NDArray[Any]


@dataclass(frozen=True)
class LayerWeights:
    """One layer in integers."""

    integers: Array
    """int8, of the weights' shape."""
    scale: Array
    """float32[channels] along ``axis``, or float32[] without one."""
    axis: int | None
    bias: Array | None
    """int32[channels]; None = the layer has none and needs none."""
    bias_scale: Array
    """float32, of the shape of ``scale``."""


@dataclass
class Weights:
    """Integers of weights, made once for all models that are built."""

    per_channel: bool
    reduce_range: bool
    made: dict[str, tuple[Array, Array]] = field(default_factory=dict)

    def of(self, name: str, weights: Array, axis: int | None) -> tuple[Array, Array]:
        """int8 of the weights' shape, and float32[channels], or float32[] without an axis."""
        key = f"{name} {axis}"
        if key not in self.made:
            moved = weights if axis is None else np.moveaxis(weights, axis, 0)
            integers, scale = quantize_weights(
                np.ascontiguousarray(moved), axis=None if axis is None else 0, reduce_range=self.reduce_range
            )
            self.made[key] = (integers if axis is None else np.moveaxis(integers, 0, axis)), scale
        return self.made[key]

    def of_layer(self, node: ir.Node, step: np.float32, means: Sequence[float] | None) -> LayerWeights:
        """A layer whose data are rounded in steps of ``step``.

        Args:
            node: Conv, ConvTranspose, MatMul or Gemm with constant weights.
            step: scale of its data.
            means: of its data's channels, to correct its bias by; None = as it is.
        """
        source, weights = node.inputs[1], constant(node.inputs[1])
        assert source is not None and weights is not None  # see operators.refusal
        axis = channel_axis(node, weights) if self.per_channel else None
        integers, scale = self.of(source.name or "", weights, axis)
        factor = node.attributes.get_float("alpha", 1.0) if node.op_type == "Gemm" else 1.0
        bias = _bias(node, weights, weights - integers * _along(scale, axis, weights.ndim), means)
        products = np.float64(step) * factor
        if bias is None:
            return LayerWeights(integers, scale, axis, None, np.asarray(products * scale, np.float32))
        # A bias far above its channel's products needs a coarser scale to fit into 32 bits.
        least = np.asarray(np.abs(bias).max() if axis is None else np.abs(bias)) / (abs(products) * INT32 / 2)
        if (scale < least).any():
            coarse = np.maximum(scale, least).astype(np.float32)
            integers = np.rint(integers * _along(scale / coarse, axis, integers.ndim)).astype(np.int8)
            scale = coarse
        exact = np.clip(np.rint(bias / (products * scale)), -INT32, INT32).astype(np.int32)
        return LayerWeights(integers, scale, axis, exact, np.asarray(products * scale, np.float32))


def channel_axis(node: ir.Node, weights: Array) -> int | None:
    """The axis of a layer's output channels in its weights, or None where engines take one scale for all."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if node.attributes.get_int("group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 1 if weights.ndim == 2 else None


def _bias(node: ir.Node, weights: Array, lost: Array, means: Sequence[float] | None) -> Array | None:
    """float64[out] with the correction, or None where the layer has none and needs none."""
    given = constant(node.inputs[2] if len(node.inputs) > 2 else None)
    if node.op_type == "MatMul":
        return None
    out_axis = channel_axis(node, weights)
    channels = weights.shape[out_axis] if out_axis is not None else 0
    shift = _shift(node, lost, means) if channels and means is not None else None
    if given is None and shift is None:
        return None
    bias = np.zeros(channels) if given is None else np.asarray(given, np.float64).reshape(-1)
    bias = np.broadcast_to(bias, (max(channels, bias.size),))
    return bias if shift is None else bias + shift


def _shift(node: ir.Node, lost: Array, means: Sequence[float]) -> Array | None:
    if node.op_type == "Conv":
        return bias_shift(lost, means, node.attributes.get_int("group", 1))
    if node.op_type != "Gemm":
        return None
    lost = lost if node.attributes.get_int("transB", 0) else lost.T
    return bias_shift(lost * node.attributes.get_float("alpha", 1.0), means, 1)


def _along(scale: Array, axis: int | None, ndim: int) -> Array:
    return scale if axis is None else scale.reshape([-1 if each == axis else 1 for each in range(ndim)])
