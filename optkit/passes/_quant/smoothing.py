"""Scales that move the spread of an activation's channels into the weights, and what int8 makes of the result.

    x @ W  ==  (x / s) @ (s * W)        with a positive scale for each input channel

Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optkit.passes._quant.rows import Channels
from optkit.passes._quant.stream import Floats
from optkit.passes._quant.weights import quantize_weights

LEVELS = 255
"""Steps of uint8 between the ends of a range."""


@dataclass(frozen=True)
class Smoothing:
    """The best scale that was found for one activation and the weights that it meets."""

    alpha: float
    scale: Floats
    """[K], positive, with geometric mean 1."""
    before: float
    """Error of the layers' outputs in int8 over their size, root mean square over rows, as they are."""
    after: float
    """The same with the scale."""


def smooth(channels: Channels, weights: Floats, alphas: Sequence[float], *, dynamic: bool) -> Smoothing:
    """The scale, among those of ``alphas``, with which int8 is nearest to float.

    Channels below the median count as the median: there is little to win by making them larger, and one that
    calibration hardly saw (that of padding, for instance) would take the range from all others once it is large.

    Args:
        channels: of the activation.
        weights: [K, N], of all layers that read it side by side.
        alphas: how much of the difference between channels moves into the weights, 0 to 1; at least one.
        dynamic: each batch has a range of its own, instead of one range for all batches.
    """
    wanted = channels.rows @ weights
    ones = np.ones(len(weights), np.float32)
    peaks, strongest = channels.peaks(), np.abs(weights).max(axis=1)
    scales = [smoothing_scale(np.maximum(peaks, np.median(peaks)), strongest, alpha) for alpha in alphas]
    before, *errors = (_error(channels, weights, wanted, scale, dynamic) for scale in (ones, *scales))
    best = int(np.argmin(errors))
    return Smoothing(alphas[best], scales[best], before, errors[best])


def smoothing_scale(inputs: Floats, weights: Floats, alpha: float) -> Floats:
    """``inputs ** alpha / weights ** (1 - alpha)`` over its geometric mean; 1 for channels where either is zero.

    Args:
        inputs: [K], greatest magnitude of each channel of the activation.
        weights: [K], greatest magnitude of the weights that each channel meets.
        alpha: 0 = all weights get the same magnitude, 1 = all channels do.

    Source: Xiao et al. 2022, equation 4.
    """
    tiny = np.finfo(np.float32).tiny
    alive = (inputs > tiny) & (weights > tiny)
    logs = alpha * np.log(inputs, where=alive, out=np.zeros(len(inputs)), dtype=np.float64)
    logs -= (1 - alpha) * np.log(weights, where=alive, out=np.zeros(len(inputs)), dtype=np.float64)
    mean = logs[alive].mean() if alive.any() else 0.0
    return np.exp(np.where(alive, logs - mean, 0.0)).astype(np.float32)


def _error(channels: Channels, weights: Floats, wanted: Floats, scale: Floats, dynamic: bool) -> float:
    """Error of ``rows @ weights`` in int8 over the size of ``wanted``, row by row, then the root of the mean square.

    By rows, because a few of them, as those of padding or of a first token, may be far larger than all others.
    """
    rounded, steps = quantize_weights(weights * scale[:, None], axis=-1, reduce_range=False)
    error = _squares(_rounded(channels, scale, dynamic) @ (rounded * steps) - wanted)
    size = _squares(wanted)
    return float(np.sqrt(np.mean(error[size > 0] / size[size > 0]))) if size.any() else 0.0


def _squares(rows: Floats) -> NDArray[np.float64]:
    """[rows]: sum of squares of each."""
    summed: NDArray[np.float64] = np.square(rows, dtype=np.float64).sum(axis=1)
    return summed


def _rounded(channels: Channels, scale: Floats, dynamic: bool) -> Floats:
    """The rows over ``scale`` as uint8 with a zero point holds them: one range for each call, or one for all."""
    lows = channels.call_lows[channels.row_call] if dynamic else channels.low[None]
    highs = channels.call_highs[channels.row_call] if dynamic else channels.high[None]
    low = np.minimum((lows / scale).min(axis=1, keepdims=True), 0)
    high = np.maximum((highs / scale).max(axis=1, keepdims=True), 0)
    step = np.maximum((high - low) / LEVELS, np.finfo(np.float32).tiny)
    zero = np.rint(-low / step)
    held: Floats = (np.clip(np.rint(channels.rows / scale / step) + zero, 0, LEVELS) - zero) * step
    return held
