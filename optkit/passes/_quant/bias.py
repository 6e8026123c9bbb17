"""Correction of what rounded weights add to a layer's mean output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def bias_shift(lost: NDArray[Any], means: Sequence[float], group: int) -> NDArray[np.float64] | None:
    """What to add to the bias, float64[out], so that the layer's mean output stays as in float.

    ``W x + b  ->  Q(W) x + b + (W - Q(W)) E[x]``

    Args:
        lost: W - Q(W), float[out, in / group, ...], kernel axes last.
        means: E[x], of each of the ``in`` channels, on the calibration data.
        group: of a convolution.

    Returns:
        None where ``means`` are not those of the layer's input channels.

    Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", equation 16;
    with E[x] measured, as in NNCF's fast bias correction. Padding is taken for values of the mean.
    """
    summed = lost.astype(np.float64).reshape(*lost.shape[:2], -1).sum(axis=2)
    if len(means) != summed.shape[1] * group:
        return None
    inputs = np.asarray(means).reshape(group, -1, 1)
    shift: NDArray[np.float64] = summed.reshape(group, -1, summed.shape[1]) @ inputs
    return shift.reshape(-1)
