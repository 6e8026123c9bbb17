"""How long timing may take, on a clock that only moves when it is told to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from optkit.model.model import Model
from optkit.pipeline.allowance import Allowance, start_seconds, warming_seconds
from tests.pipeline import toy
from tests.timing import Clock


def test_it_is_15_seconds_or_a_third_of_the_run() -> None:
    clock = Clock(100.0)
    allowance = Allowance(clock)
    for elapsed, left in ((0.0, 15.0), (44.0, 15.0), (60.0, 20.0), (300.0, 100.0)):
        clock.now = 100.0 + elapsed
        assert allowance.remaining() == pytest.approx(left)


def test_what_was_spent_counts_also_where_it_failed() -> None:
    clock = Clock()
    allowance = Allowance(clock)
    with allowance.spending(4.0):
        clock.now += 4.0
    with pytest.raises(ValueError, match="stop"), allowance.spending(2.0):
        clock.now += 2.0
        raise ValueError("stop")
    assert allowance.spent == pytest.approx(6.0)
    assert allowance.remaining() == pytest.approx(9.0)
    clock.now = 90.0
    assert allowance.remaining() == pytest.approx(24.0)


def test_a_share_can_be_reserved_for_others() -> None:
    clock = Clock()
    allowance = Allowance(clock)
    with allowance.spending(3.0):
        clock.now += 3.0
    assert allowance.remaining(reserved=2 / 3) == pytest.approx(2.0)
    assert allowance.remaining() == pytest.approx(12.0)


def test_what_took_longer_than_planned_makes_the_next_plans_shorter() -> None:
    clock = Clock()
    allowance = Allowance(clock)
    with allowance.spending(2.0):
        clock.now += 1.0
    assert allowance.remaining() == pytest.approx(14.0), "a lucky one is no promise"
    with allowance.spending(2.0):
        clock.now += 7.0
    assert allowance.remaining() == pytest.approx((15.0 - 8.0) / 2)


def test_what_took_as_long_as_it_took_is_no_plan_that_failed() -> None:
    clock = Clock()
    allowance = Allowance(clock)
    with allowance.spending():
        clock.now += 5.0
    assert (allowance.spent, allowance.planned, allowance.remaining()) == (5.0, 5.0, pytest.approx(10.0))


def test_slow_calls_are_foreseen_where_they_are_known(tmp_path: Path) -> None:
    one, other = (Model.open(toy.write_model(tmp_path / f"{f}.onnx", factor=f)) for f in (1.0, 2.0))
    allowance = Allowance(Clock(), calls={one.digest: 0.5})
    assert allowance.start_seconds([one, other]) == pytest.approx(1.0 + 5 * 0.5 + 1.5, abs=1e-3)
    assert allowance.measuring_seconds([one, other], 1.0) == pytest.approx(1.5)
    assert allowance.measuring_seconds([one, other], 2.0) == pytest.approx(2.0)


@pytest.mark.parametrize(("call_s", "seconds"), [(0.01, 0.15), (0.1, 1.5), (0.2, 2.2), (0.5, 4.0), (2.0, 14.0)])
def test_a_warm_up_lasts_ten_calls_or_a_second_but_two_calls_at_least(call_s: float, seconds: float) -> None:
    assert warming_seconds(call_s) == pytest.approx(seconds)


def test_starting_processes_is_foreseen_by_form_and_size(tmp_path: Path) -> None:
    model = Model.open(toy.write_model(tmp_path / "m.onnx"))
    large, eager = replace(model), replace(model, form="torch")
    large.__dict__["size_bytes"] = 10**9
    assert start_seconds([model, model]) == pytest.approx(1.0, abs=1e-3)
    assert start_seconds([large]) == pytest.approx(4.5)
    assert start_seconds([eager, model]) == pytest.approx(4.5, abs=1e-3)
