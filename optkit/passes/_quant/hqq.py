"""Half-quadratic quantization: blocks whose scale and zero let most weights be exact and a few be far off.

Source: Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models". Theirs keeps the scale and
lets the zero be any number, which onnxruntime's CPU kernels compute 2 to 100 times slower than whole ones. So the zero
is rounded here, and the scale takes part: given codes, zero and outliers, the best is a least squares solution too.
"""

from __future__ import annotations

import numpy as np

from optkit.passes._quant.nbits import Floats, Grid

NORM = 0.7
"""p of the l_p norm of the errors, below 1 so that a few great errors are better than many small ones."""
SHARPNESS, GROWTH = 4.0, 1.05
"""Weight of the quadratic term, in steps of the grid, and its growth from one iteration to the next."""
ITERATIONS = 20


def fit_hqq(grid: Grid, weights: Floats) -> tuple[Floats, Floats]:
    """Scale and zero of [rows, blocks, block] as [rows, blocks, 1], none worse in the l_p norm than ``Grid.fit``'s."""
    scale, zero = grid.fit(weights, -1)
    codes = grid.codes(weights, scale, zero)
    best, least = (scale, zero), _error(weights, codes, scale, zero)
    sharpness = SHARPNESS
    for _ in range(ITERATIONS):
        outliers = _shrink(weights / scale - (codes - zero), sharpness) * scale
        scale, zero = _solve(grid, weights - outliers, codes, scale, zero)
        codes = grid.codes(weights, scale, zero)
        error = _error(weights, codes, scale, zero)
        better = error < least
        if not better.any():
            break
        best = (np.where(better, scale, best[0]), np.where(better, zero, best[1]))
        least = np.minimum(error, least)
        sharpness *= GROWTH
    return best


def _shrink(errors: Floats, sharpness: float) -> Floats:
    """The part of each error that counts as an outlier: the generalized soft threshold of the l_p norm."""
    size = np.abs(errors)
    threshold = np.maximum(size, np.float32(1e-6)) ** np.float32(NORM - 1) / np.float32(sharpness)
    found: Floats = np.sign(errors) * np.maximum(size - threshold, 0)
    return found


def _solve(grid: Grid, target: Floats, codes: Floats, scale: Floats, zero: Floats) -> tuple[Floats, Floats]:
    """Zero, then scale, that bring ``(codes - zero) * scale`` nearest to ``target``."""
    if not grid.symmetric:
        zero = np.clip(np.rint((codes - target / scale).mean(axis=-1, keepdims=True)), 0, grid.top)
    steps = codes - zero
    squares = (steps * steps).sum(axis=-1, keepdims=True)
    found = (steps * target).sum(axis=-1, keepdims=True) / np.maximum(squares, 1)
    return np.where(np.abs(found) < np.finfo(np.float32).tiny, scale, found), zero


def _error(weights: Floats, codes: Floats, scale: Floats, zero: Floats) -> Floats:
    errors = np.abs(weights - (codes - zero) * scale)
    found: Floats = (errors ** np.float32(NORM)).sum(axis=-1, keepdims=True)
    return found
