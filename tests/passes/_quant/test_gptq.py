from __future__ import annotations

import numpy as np
import pytest

from optkit.errors import PassError
from optkit.passes._quant.gptq import Compensation, gptq, inverse_factor
from optkit.passes._quant.moments import Moments, few, grouped
from optkit.passes._quant.nbits import Grid
from tests.helpers import normal


def correlated(rows: int, width: int) -> np.ndarray:
    """Inputs whose directions have variances from 1 to 1e-4."""
    turn = np.linalg.qr(normal(width, width, seed=7))[0]
    return (normal(rows, width, seed=8) * np.logspace(0, -2, width)) @ turn


def error(made, x, weights) -> float:
    """Of the layer's output, relative."""
    return float(np.linalg.norm(x @ (made.floats() - weights).T) / np.linalg.norm(x @ weights.T))


def test_the_factor_is_that_of_the_damped_inverse():
    x = correlated(200, 48)
    hessian = x.T @ x
    upper = inverse_factor(hessian, 0.01).astype(np.float64)
    damped = hessian + 0.01 * np.diag(hessian).mean() * np.eye(48)
    assert (np.tril(upper, -1) == 0).all()
    np.testing.assert_allclose(upper.T @ upper @ damped, np.eye(48), atol=1e-4)


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "block"), [(4, 128), (4, 32), (8, 16)])
def test_at_most_seven_tenths_of_the_error_of_rounding(bits, block, symmetric, order):
    x, weights, grid = correlated(2000, 200).astype(np.float32), normal(96, 200), Grid(bits, block, symmetric)
    how = Compensation.of(x.T @ x, damping=0.01, order=order)
    unseen = correlated(4000, 200)[2000:].astype(np.float32)
    assert error(gptq(weights, grid, how), unseen, weights) <= 0.7 * error(grid.round(weights), unseen, weights)


def test_a_small_case_by_hand():
    """One output, two inputs that are always equal: the second makes up for the first's error in full."""
    grid = Grid(4, 16, False)
    weights = np.zeros((1, 16), np.float32)
    weights[0, :3] = [0.26, 0.26, 1.5]  # steps of 0.1
    hessian = np.eye(16)
    hessian[:2, :2] = 1
    found = gptq(weights, grid, Compensation.of(hessian, damping=1e-6, order=False)).floats()
    np.testing.assert_allclose(found[0, :3], [0.3, 0.2, 1.5], atol=1e-6)


def test_uncorrelated_inputs_are_rounded_to_nearest():
    weights, grid = normal(8, 64), Grid(4, 32, False)
    made = gptq(weights, grid, Compensation.of(np.eye(64), damping=0.01, order=False))
    np.testing.assert_array_equal(made.packed, grid.round(weights).packed)
    silent = gptq(weights, grid, Compensation.of(np.zeros((64, 64)), damping=0.01, order=False))
    np.testing.assert_array_equal(silent.packed, made.packed)


def test_moments_do_not_depend_on_batches():
    x = normal(10, 3, 6)
    whole, parts = Moments.of(6), Moments.of(6)
    whole.add(x)
    for part in np.array_split(x, 4):
        parts.add(part)
    np.testing.assert_allclose(parts.square, whole.square, rtol=1e-5)
    np.testing.assert_allclose(whole.square, x.reshape(-1, 6).T @ x.reshape(-1, 6), rtol=1e-5)
    assert parts.rows == whole.rows == 30
    assert few([whole]) == ""
    assert "only 2 rows of calibration data" in few([Moments(np.zeros((6, 6)), np.zeros(6), 2)])


def test_groups_keep_to_the_bound():
    widths = {"a": 10, "b": 10, "c": 30, "d": 10}
    assert list(grouped(widths, 800)) == [["a", "b"], ["c"], ["d"]]


@pytest.mark.parametrize(
    ("hessian", "damping"),
    [(-np.eye(8), 1e-9), (np.full((8, 8), np.inf), 0.01), (np.full((8, 8), np.nan), 0.01)],
)
def test_moments_that_cannot_be_inverted_are_an_error(hessian, damping):
    with pytest.raises(PassError, match="layer of 8 inputs are too much alike, or too large"):
        inverse_factor(hessian, damping)
