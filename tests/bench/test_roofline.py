"""What nodes achieved and could gain, by numbers worked out by hand."""

from __future__ import annotations

import pytest

from optkit.bench.roofline import analyse, bound_of
from optkit.bench.work import Tensor, Work, work_of
from tests.bench.toy_profile import PEAKS, H, W, X, node, profiled


def test_nodes_from_the_longest_to_the_shortest_with_shares_of_all_nodes():
    found = analyse(profiled(), PEAKS)
    assert [each.name for each in found.nodes] == ["wide", "narrow", "relu"]
    assert [each.share for each in found.nodes] == pytest.approx([5 / 9, 3 / 9, 1 / 9])
    assert (found.nodes_ms, found.scale) == pytest.approx((0.9, 1.0))
    assert found.nodes[0].inputs == ("float32[10,100]", "float32[100,1000]")
    assert found.nodes[0].provider == "cpu" and found.nodes[2].rate is None


def test_rates_against_the_limit_of_memory_or_arithmetic():
    rate = analyse(profiled(), PEAKS).nodes[0].rate
    assert rate is not None
    # weights 0.4 MB at 2 GB/s (all weights need 0.4 MB), 4 kB in and 40 kB out at 50 GB/s
    bound = 0.2 + 44e3 / 50e9 * 1e3
    assert (rate.operations, rate.bytes, rate.bound_by) == (2_000_000, 444_000, "memory")
    assert rate.gops == pytest.approx(2e6 / 0.5e-3 / 1e9) and rate.gb_s == pytest.approx(444e3 / 0.5e-3 / 1e9)
    assert rate.bound_ms == pytest.approx(bound) and rate.reached == pytest.approx(bound / 0.5)
    assert rate.gain_ms == pytest.approx(0.5 - bound)


def test_arithmetic_sets_the_limit_where_there_is_much_of_it():
    work = work_of("MatMul", [X, Tensor("float32", (100, 1000))], [H])
    assert work is not None and bound_of(work, PEAKS, 0)[1] == "memory"  # 0.4 MB at 2 GB/s
    square = Tensor("float32", (200, 200))
    work = work_of("MatMul", [square, square], [square])
    assert work is not None and bound_of(work, PEAKS, 0) == (pytest.approx(1.6e7 / 1e10), "arithmetic")
    half = Tensor("float16", (200, 200))
    work = work_of("MatMul", [half, half], [half])
    assert work is not None and bound_of(work, PEAKS, 0) == (None, "")


def test_no_limit_is_better_than_half_of_one():
    assert bound_of(Work(16_000_000, "fp32", bytes=None), PEAKS, 0) == (None, "")


def test_operators_are_sums_over_their_nodes():
    found = analyse(profiled(), PEAKS)
    assert [(each.operator, each.nodes) for each in found.operators] == [("MatMul", 2), ("Relu", 1)]
    products = found.operators[0]
    assert products.ms == pytest.approx(0.8) and products.gops == pytest.approx((2e6 + 2e4) / 0.8e-3 / 1e9)
    assert found.operators[1].gain_ms is None
    assert found.gain_ms == products.gain_ms == pytest.approx(sum(n.rate.gain_ms for n in found.nodes if n.rate))


def test_nodes_that_take_longer_than_the_call_are_scaled_down_to_it():
    found = analyse(profiled(plain_ms=0.45), PEAKS)
    assert (found.nodes_ms, found.scale) == pytest.approx((0.9, 0.5))
    assert sum(each.ms for each in found.nodes) == pytest.approx(0.45)


def test_without_limits_there_are_rates_but_no_gains():
    found = analyse(profiled(), None)
    rate = found.nodes[0].rate
    assert found.gain_ms is None and rate is not None
    assert rate.gops == pytest.approx(4.0) and rate.bound_ms is None and rate.reached is None and rate.bound_by == ""


def test_faster_than_the_limit_is_no_negative_gain():
    found = analyse(profiled(node("wide", "MatMul", 0.05, X, W, outputs=(H,))), PEAKS)
    rate = found.nodes[0].rate
    assert rate is not None and rate.reached is not None and rate.reached > 4 and rate.gain_ms == 0.0
