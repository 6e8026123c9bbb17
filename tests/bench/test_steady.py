from __future__ import annotations

import pytest

from optkit.bench.steady import steady_of


def test_facts_of_known_blocks() -> None:
    steady = steady_of([[0.001, 0.002, 0.003], [0.004, 0.004, 0.010], [0.003]], launches=2, rows=8)
    assert (steady.calls, steady.blocks, steady.launches) == (7, 3, 2)
    assert steady.median_ms == pytest.approx(3.0, rel=1e-12)
    assert steady.mean_ms == pytest.approx(27 / 7, rel=1e-12)
    assert steady.throughput == pytest.approx(7 * 8 / 0.027, rel=1e-12)
    assert steady.spread == pytest.approx((3.5 - 2.5) / 3, rel=1e-12)  # of the medians 2, 3 and 4


def test_a_stall_lowers_the_throughput() -> None:
    steady = steady_of([[0.001] * 100, [0.001] * 99 + [0.601]], launches=1, rows=1)
    assert (steady.median_ms, steady.throughput) == pytest.approx((1.0, 250), rel=1e-12)


def test_a_percentile_needs_ten_samples_above_it() -> None:
    steady = steady_of([[0.001 * n for n in range(1, 201)]], launches=1, rows=1)
    assert [(each.percent, each.enough) for each in steady.percentiles] == [
        (50, True),
        (90, True),
        (95, True),
        (99, False),
    ]
    assert steady.percentiles[2].ms == pytest.approx(190.05, rel=1e-12)
