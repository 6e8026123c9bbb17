from __future__ import annotations

import numpy as np
import pytest

from optkit.passes._quant.hqq import fit_hqq
from optkit.passes._quant.nbits import Grid, pack, unpack
from tests.helpers import normal


def test_the_first_of_two_codes_has_the_low_bits():
    np.testing.assert_array_equal(pack(np.uint8([1, 2, 3]), 4), np.uint8([0x21, 0x03]))
    np.testing.assert_array_equal(unpack(np.uint8([0x21, 0x03]), 4), np.uint8([1, 2, 3, 0]))
    np.testing.assert_array_equal(pack(np.uint8([1, 255]), 8), np.uint8([1, 255]))


def test_symmetric_blocks_give_the_extra_code_to_the_greatest_magnitude():
    made = Grid(4, 16, True).round(np.float32([[8, -3.1, 0, *[0] * 13], [-4, 3.4, 0, *[0] * 13]]))
    np.testing.assert_allclose(made.scales, [[-1], [0.5]])
    np.testing.assert_allclose(made.floats()[:, :3], [[8, -3, 0], [-4, 3.5, 0]])


def test_asymmetric_blocks_span_from_least_to_greatest():
    values = np.linspace(-1, 2, 16, dtype=np.float32)[None]
    made = Grid(4, 16, False).round(values)
    np.testing.assert_allclose(made.scales, [[0.2]], rtol=1e-6)
    assert made.zeros == [[5]]
    np.testing.assert_allclose(made.floats(), values, atol=1e-6)


def test_blocks_of_zeros_and_of_tiny_numbers_are_zero():
    for symmetric in (True, False):
        made = Grid(4, 16, symmetric).round(np.float32([[0] * 16, [1e-40] * 16]))
        np.testing.assert_array_equal(made.floats(), np.zeros((2, 16)))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "block", "width"), [(4, 16, 33), (8, 32, 33), (4, 128, 40), (8, 16, 64)])
def test_every_weight_is_within_half_a_step(bits, block, width, symmetric):
    weights = normal(24, width)
    made = Grid(bits, block, symmetric).round(weights)
    assert made.packed.shape == (24, -(-width // block), block * bits // 8)
    steps = np.repeat(np.abs(made.scales), block, axis=1)[:, :width]
    reach = 1.001 if symmetric or bits == 4 else 0.501  # the greatest of the lesser side, and a rounded zero
    assert (np.abs(made.floats() - weights) <= reach * steps).all()
    assert np.median(np.abs(made.floats() - weights) / steps) < 0.3


@pytest.mark.parametrize("symmetric", [True, False])
def test_hqq_is_never_worse_in_its_norm_and_better_where_blocks_have_outliers(symmetric):
    weights = normal(32, 128)
    weights[:, 5] = 6
    grid = Grid(4, 64, symmetric)
    plain = np.abs(grid.round(weights).floats() - weights) ** 0.7
    made = np.abs(grid.round(weights, lambda part: fit_hqq(grid, part)).floats() - weights) ** 0.7
    sums = [each.reshape(-1, 64).sum(axis=1) for each in (made, plain)]
    assert (sums[0] <= sums[1] * (1 + 1e-5)).all()
    assert made.sum() < 0.97 * plain.sum()
