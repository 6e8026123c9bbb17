"""The search for what just reaches a target, counted and timed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from optkit.errors import PassError
from optkit.model.manifest import Ratio
from optkit.passes._prune.target import TIMINGS, TOLERANCE, Goal, at_least, by_time, fewest
from tests.timing import ratio


def test_a_target_is_one_share_of_one_thing():
    target = Goal(latency=0.6)
    assert (target.what, target.counted, target.share) == ("latency", "macs", 0.6)
    assert (Goal(parameters=0.5).what, Goal(parameters=0.5).counted) == ("parameters", "parameters")
    for wrong in ({}, {"macs": 0.5, "latency": 0.5}):
        with pytest.raises(ValidationError, match="exactly one of macs, latency and parameters"):
            Goal(**wrong)
    with pytest.raises(ValidationError, match="less than 1"):
        Goal(macs=1.0)


@pytest.mark.parametrize(("target", "found"), [(0.999, 1), (0.5, 50), (0.505, 50), (0.3, 70), (0.0, 100)])
def test_the_fewest_that_reach_a_share_are_found_with_few_looks(target, found):
    looks = []
    assert fewest(100, lambda gone: looks.append(gone) or (100 - gone) / 100, target) == found
    assert len(looks) <= 7


def test_where_all_do_not_suffice_all_are_meant():
    assert fewest(10, lambda gone: 1 - gone / 20, 0.2) == 10


def macs(gone: int) -> float:
    """Of a model that keeps a twentieth where all 200 chunks are gone."""
    return 1 - gone * 0.95 / 200


def clock(latency: Callable[[float], float], asked: list[int]) -> Callable[[int], Ratio]:
    def measured(gone: int) -> Ratio:
        asked.append(gone)
        return ratio(1 / latency(macs(gone)))

    return measured


@pytest.mark.parametrize("target", [0.35, 0.5, 0.7, 0.9])
@pytest.mark.parametrize(
    "latency", [lambda m: m, lambda m: 0.3 + 0.7 * m, lambda m: m**0.5, lambda m: 0.2 + 0.8 * m**2], ids="abcd"
)
def test_latency_is_reached_with_few_timings(target, latency):
    asked: list[int] = []
    gone, decisions = by_time(200, macs, clock(latency, asked), target)
    reached = latency(macs(gone))
    assert target * (1 - 2 * TOLERANCE) <= reached <= target
    assert len(asked) == len(decisions) <= TIMINGS and len(set(asked)) == len(asked)
    (kept,) = [each for each in decisions if each.kept]
    assert kept.speedup == pytest.approx(1 / reached)
    assert kept.reason.endswith(" of the latency: the largest that reaches it")
    assert kept.low is not None and kept.high is not None


def test_proportional_latency_needs_one_timing():
    asked: list[int] = []
    gone, _ = by_time(200, macs, clock(lambda m: m, asked), 0.5)
    assert asked == [gone] == [106]


def test_an_unreachable_latency_names_the_best_reached():
    asked: list[int] = []
    with pytest.raises(
        PassError, match=r"target of 0\.4 of the latency cannot be reached: the least is 0\.6\."
    ) as error:
        by_time(200, macs, clock(lambda m: 0.6 + 0.4 * (m - 0.05) / 0.95, asked), 0.4)
    assert asked[-1] == 200 and "min_share" in error.value.fix


def test_the_last_timing_is_of_all_that_can_go():
    asked: list[int] = []
    gone, decisions = by_time(200, macs, clock(lambda m: 0.45 + 0.55 * m**8, asked), 0.45001)
    assert (asked[-1], gone, len(asked)) == (200, 200, TIMINGS)
    assert [each.kept for each in decisions] == [False] * (TIMINGS - 1) + [True]


def test_a_coarse_row_takes_what_reaches_it():
    asked: list[int] = []
    shares = [1.0, 0.7, 0.2]
    gone, decisions = by_time(2, shares.__getitem__, lambda at: asked.append(at) or ratio(1 / shares[at]), 0.5)
    assert (gone, sorted(asked)) == (2, [1, 2])
    assert [each.reason.split(": ")[1] for each in decisions if not each.kept] == ["more than the target"]


@pytest.mark.parametrize(("value", "told"), [(0.12301, "0.124"), (0.5, "0.5"), (0.0149001, "0.015"), (1.2341, "1.24")])
def test_the_best_reached_can_be_asked_for(value, told):
    assert at_least(value) == told
    assert float(told) >= value
