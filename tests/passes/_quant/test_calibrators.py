from __future__ import annotations

import numpy as np
import pytest

from optkit.passes._quant.calibrators import BINS, SAMPLE, Calibration, Histogram, MinMax, Mse, Percentile, calibrator
from tests.helpers import normal


def test_minmax_over_batches() -> None:
    found = MinMax()
    for values in ([1.0, 2.0], [-3.0, 0.5]):
        found.update(np.float32(values))
    assert found.bounds() == found.seen() == (-3.0, 2.0)


@pytest.mark.parametrize("order", [1, -1])
def test_percentile_is_within_a_bin_of_numpy_in_any_order(order: int) -> None:
    values = np.sort(normal(100_000))[::order] * np.float32(10)
    found = Percentile(99)
    for part in np.array_split(values, 50):
        found.update(part)
    low, high = np.quantile(values, [0.005, 0.995])
    width = 4 * float(np.abs(values).max()) / BINS
    assert found.bounds() == pytest.approx((low, high), abs=2 * width)


def test_percentile_of_rectified_values_starts_at_zero() -> None:
    found = Percentile(99.9)
    found.update(np.maximum(normal(10_000), 0))
    assert found.bounds()[0] == 0.0


def test_a_part_of_many_values_stands_for_all_and_extremes_are_exact() -> None:
    values = normal(40, 64, 100, seed=3)
    values[7, 3, 11] = 9.0
    found = Percentile(99)
    found.update(values)
    assert found.counts.sum() <= SAMPLE + 1
    assert found.seen() == (float(values.min()), 9.0)
    assert found.bounds() == pytest.approx(np.quantile(values, [0.005, 0.995]), abs=0.05)


def test_mse_of_a_normal_distribution_cuts_where_the_literature_does() -> None:
    # Banner et al. 2019, "Post Training 4-bit Quantization", table of ACIQ: 3.92 standard deviations at 8 bits.
    found = Mse()
    for seed in range(8):
        found.update(normal(200_000, seed=seed))
    assert found.bounds() == pytest.approx((-3.92, 3.92), abs=0.3)


def test_mse_keeps_all_of_a_uniform_distribution_and_cuts_an_outlier_as_far_as_it_pays() -> None:
    values = np.linspace(0, 6, 60_000, dtype=np.float32)
    found = Mse()
    found.update(values)
    assert found.bounds() == pytest.approx((0, 6), abs=0.01)
    found.update(np.float32([20]))
    # (20 - c)^2 + 60001 (c / 255)^2 / 12 is least at c = 18.57.
    assert found.bounds() == pytest.approx((0, 18.57), abs=0.6)
    assert found.seen() == (0, 20)


@pytest.mark.parametrize("kind", ["minmax", "percentile", "mse"])
def test_mean_squared_error_is_least_with_mse(kind: Calibration) -> None:
    values = (np.random.default_rng(0).standard_t(3, 60_000) * 2).astype(np.float32)
    errors = {}
    for each in ("mse", kind):
        found = calibrator(each, 99.99)
        found.update(values)
        low, high = found.bounds()
        scale = (high - low) / 255
        rounded = np.clip(np.rint((values - low) / scale), 0, 255) * scale + low
        errors[each] = float(np.mean((values - rounded) ** 2))
    assert errors["mse"] <= errors[kind] * 1.001


def test_memory_does_not_grow_with_values_or_range() -> None:
    found = Histogram()
    for power in range(30):
        found.update(np.full(1000, 2.0**power, np.float32))
    assert found.counts.shape == (BINS,) and found.counts.sum() == 30_000


@pytest.mark.parametrize("kind", ["minmax", "percentile", "mse"])
def test_constants_have_a_range(kind: Calibration) -> None:
    found = calibrator(kind, 99.99)
    found.update(np.zeros(100, np.float32))
    assert found.bounds() == (0.0, 0.0)
