"""GPTQ: weights rounded one input after the other, while the rest of a row makes up for the error in the output.

Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.errors import PassError
from optkit.passes._quant.nbits import Blocks, Floats, Grid

LAZY = 32
"""Inputs after which errors are passed on to all later ones at once, as a matrix product; blocks begin with these."""
ROWS = 512
"""Rows at a time, which do not know of each other, so that they stay in the processor's cache."""


@dataclass(frozen=True)
class Compensation:
    """How the inputs of a layer make up for each other's errors."""

    places: NDArray[np.int64]
    """[width]: the inputs in the order in which they are rounded."""
    upper: Floats
    """float32[width, width], upper triangular: ``U^T U`` is the inverse of the damped Hessian, in that order."""
    ordered: bool
    """Whether that is another order than that of the inputs."""

    @classmethod
    def of(cls, hessian: NDArray[Any], *, damping: float, order: bool) -> Compensation:
        """For all layers that read one input.

        Args:
            hessian: float[width, width], sum over the calibration data of ``x x^T``.
            damping: share of the mean of the diagonal that is added to it.
            order: take inputs of great activations first instead of as they come.
        """
        places = np.argsort(-np.diag(hessian), kind="stable") if order else np.arange(len(hessian))
        return cls(places, inverse_factor(hessian[np.ix_(places, places)] if order else hessian, damping), order)


def gptq(weights: Floats, grid: Grid, how: Compensation) -> Blocks:
    """Quantize a matrix so that its product with the calibration data changes least.

    Args:
        weights: float32[rows, width], a row for each output; in any memory layout.
        grid: the values to round to. Scales of a block are taken when its turn comes, from weights that make up for the
            errors before it; where inputs are ordered, from the original weights.
        how: from the calibration data.
    """
    made = Blocks.empty(grid, *weights.shape)
    for start in range(0, len(weights), ROWS):
        part = np.array(weights[start : start + ROWS].T, np.float32, order="C")
        made.put(start, *_Rows(part, grid, how).quantize())
    return made


def inverse_factor(hessian: NDArray[Any], damping: float) -> Floats:
    """The upper triangular U with ``U^T U = (H + damping * mean(diag H) * I)^-1``: float32[width, width].

    With J turning the order around, ``J H J = L L^T`` gives ``H = R R^T`` for the upper ``R = J L J``, and
    ``U = R^-1``: one factorization instead of two with an inversion between.

    Raises:
        PassError: H is infinite, or so flat that the damping does not make it invertible.
    """
    matrix = np.array(hessian[::-1, ::-1], np.float64)
    diagonal = np.einsum("ii->i", matrix)
    mean = diagonal.mean() or 1.0
    diagonal += damping * mean
    try:
        turned = np.asarray(np.linalg.cholesky(matrix)[::-1, ::-1], np.float64)
    except np.linalg.LinAlgError:
        turned = np.full_like(matrix, np.nan)
    if not np.isfinite(turned).all():
        raise PassError(
            f"The calibration data of a layer of {len(matrix)} inputs are too much alike, or too large, for gptq.",
            expected="second moments that can be inverted",
            fix="calibrate on more samples, raise damping, or use another method",
        )
    return _inverse(turned).astype(np.float32)


def _inverse(upper: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of an upper triangular matrix: by halves, a sixth of the work of a general inverse."""
    half = len(upper) // 2
    if half < LAZY:
        return np.triu(np.linalg.inv(upper))
    found = np.zeros_like(upper)
    found[:half, :half], found[half:, half:] = _inverse(upper[:half, :half]), _inverse(upper[half:, half:])
    found[:half, half:] = -found[:half, :half] @ upper[:half, half:] @ found[half:, half:]
    return found


class _Rows:
    """Some rows of the matrix, as [width, rows]; row i of it is the weights of input ``places[i]``."""

    def __init__(self, weights: Floats, grid: Grid, how: Compensation) -> None:
        width, rows = weights.shape
        blocks = -(-width // grid.block)
        self._grid, self._how = grid, how
        self._codes = np.full((blocks * grid.block, rows), grid.middle, np.float32)
        self._scales, self._zeros = np.empty((2, blocks, rows), np.float32)
        if how.ordered:
            for block in range(blocks):
                self._fit(block, weights[block * grid.block : (block + 1) * grid.block])
            weights = weights[how.places]
        self._weights = weights

    def quantize(self) -> tuple[Floats, Floats, Floats]:
        """Codes [rows, blocks, block], scales and zeros [rows, blocks]."""
        upper = self._how.upper
        width, step = len(upper), min(LAZY, self._grid.block)
        for start in range(0, width, step):
            stop = min(start + step, width)
            errors = self._some(start, stop, upper[start:stop, start:stop])
            self._weights[stop:] -= upper[start:stop, stop:].T @ errors
        codes = self._codes.T.reshape(self._codes.shape[1], -1, self._grid.block)
        return codes, self._scales.T, self._zeros.T

    def _some(self, start: int, stop: int, upper: Floats) -> Floats:
        """Round the inputs from ``start`` to ``stop``; their errors in units of U's diagonal, [stop - start, rows]."""
        weights, block = self._weights[start:stop], self._grid.block
        if not self._how.ordered and start % block == 0:
            self._fit(start // block, self._weights[start : start + block])
        errors = np.empty_like(weights)
        for index in range(stop - start):
            place = self._how.places[start + index]
            scale, zero = self._scales[place // block], self._zeros[place // block]
            codes = self._grid.codes(weights[index], scale, zero)
            self._codes[place] = codes
            errors[index] = (weights[index] - (codes - zero) * scale) / upper[index, index]
            weights[index + 1 :] -= upper[index, index + 1 :, None] * errors[index]
        return errors

    def _fit(self, block: int, weights: Floats) -> None:
        scale, zero = self._grid.fit(weights, 0)
        self._scales[block], self._zeros[block] = scale[0], zero[0]
