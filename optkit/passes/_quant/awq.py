"""AWQ: channels of great activations get finer weights, by a scale that goes into the operator before.

Source: Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from optkit.passes._quant.nbits import Floats, Grid

if TYPE_CHECKING:
    from optkit.passes._quant.groups import Group
    from optkit.passes._quant.moments import Moments

EXPONENTS = np.linspace(0, 1, 11)[1:]
"""Exponents tried; 0 would be no scale."""
ROWS = 512
"""Outputs whose errors stand for those of all, evenly chosen: the error is a mean over them."""
MUL_GAIN = 0.2
"""Share of the squared error that a scale has to take away where it costs a multiplication of the activations."""


def scale_groups(groups: Sequence[Group], known: Mapping[str, Moments], grid: Grid) -> list[tuple[str, str]]:
    """Apply to each group the scale that makes the error of its layers least; (layers, what was done)."""
    done = []
    for group in groups:
        moments = known[str(group.source.name)]
        weights = group.weights().T
        found, before, after, exponent = best_scale(weights, moments, grid)
        if after < before * (1 if group.fold else 1 - MUL_GAIN):
            where = group.apply(found)
            done.append((group.label(), f"exponent {exponent:g} {where}, squared error x {after / before:.2f}"))
    return done


def best_scale(weights: Floats, moments: Moments, grid: Grid) -> tuple[Floats, float, float, float]:
    """The best scale of [rows, width] weights; the squared error of the layers' outputs before and after; exponent.

    The error of ``x @ dW^T`` over the calibration data is the trace of ``dW (sum x x^T) dW^T``.
    """
    rows = weights[np.linspace(0, len(weights) - 1, min(ROWS, len(weights))).astype(np.int64)]
    ones = np.ones(weights.shape[1], np.float32)
    before = _error(rows, ones, moments, grid)
    best, least, chosen = ones, before, 0.0
    for exponent in EXPONENTS:
        scale = _scale(moments, exponent)
        error = _error(rows, scale, moments, grid)
        if error < least:
            best, least, chosen = scale, error, float(exponent)
    return best, before, least, chosen


def _scale(moments: Moments, exponent: float) -> Floats:
    """``mean|x| ** exponent`` around 1; channels that are always 0 count as the least of the others."""
    size = moments.size.astype(np.float64)
    alive = size > 0
    if not alive.any():
        return np.ones(len(size), np.float32)
    logs = exponent * np.log(np.where(alive, size, size[alive].min()))
    scale: Floats = np.exp(logs - (logs.max() + logs.min()) / 2).astype(np.float32)
    return scale


def _error(rows: Floats, scale: Floats, moments: Moments, grid: Grid) -> float:
    wrong = grid.round(rows * scale).floats() / scale - rows
    return float(np.einsum("rk,rk->", wrong @ moments.square, wrong, dtype=np.float64))
