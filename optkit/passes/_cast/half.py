"""The 16-bit floating types: what they hold, and which operators stay in float32 beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx_ir as ir

    from optkit.data.dataset import Array

MASKING = 1e9
"""Values of this size and beyond, infinities among them, stand for minus infinity in masks: they are cut off, see
``_Rewriter.lowered``, and are no reason to leave a node in float32."""

FLOAT32_OPS = {
    **dict.fromkeys(
        (
            *("Softmax", "LogSoftmax", "LayerNormalization", "GroupNormalization", "InstanceNormalization"),
            *("RMSNormalization", "SimplifiedLayerNormalization", "MeanVarianceNormalization", "LpNormalization"),
            *("ReduceSum", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum"),
            *("ReduceLogSumExp", "CumSum", "CumProd", "Exp", "Log", "Pow", "Reciprocal", "Softplus"),
        ),
        "is kept in float32, as torch's autocast does with sums and steep functions",
    ),
    **dict.fromkeys(
        ("NonMaxSuppression", "TopK", "RoiAlign", "MaxRoiPool", "Range", "OneHot", "Upsample"),
        "is kept in float32: providers have it there only, or choose by comparing",
    ),
    **dict.fromkeys(
        (
            *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "RandomNormalLike", "RandomUniformLike"),
            *("EyeLike", "Multinomial", "Bernoulli"),
        ),
        "is kept in float32: its output's type is its own",
    ),
}
"""Operators that stay in float32 whatever their values are, and why. The first group is the list of ``torch.autocast``
(https://docs.pytorch.org/docs/stable/amp.html, "CUDA Ops that can autocast to float32") in ONNX's names."""


@dataclass(frozen=True)
class Half:
    """A 16-bit floating type."""

    name: str
    """ONNX's: ``float16``, ``bfloat16``."""
    largest: float
    smallest: float
    """The smallest normal number."""
    opset: int
    """From which Cast gives it."""

    @property
    def dtype(self) -> ir.DataType:
        """As onnx-ir has it."""
        import onnx_ir as ir

        return ir.DataType[self.name.upper()]

    @property
    def cut(self) -> float:
        """What stands for infinity in masks: far enough from the largest that adding a score stays finite."""
        return self.largest / 2

    def round(self, weights: NDArray[np.float32]) -> Array:
        """The weights in this type, masking values cut off."""
        masked = np.abs(weights) >= MASKING
        if masked.any():
            weights = np.where(masked, np.clip(weights, -self.cut, self.cut), weights)
        rounded: Array = weights.astype(self.dtype.numpy())
        return rounded


FLOAT16 = Half("float16", 65504.0, 2.0**-14, 8)
BFLOAT16 = Half("bfloat16", float.fromhex("0x1.fep127"), 2.0**-126, 13)
