"""Samples are simulated: what the interval and the verdict should be is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from optkit.bench.ratio import SPREAD, Times, describe, interval, median_error, ratio_of
from optkit.model.manifest import Ratio

BIAS = 0.005
"""Standard deviation of what a process is faster or slower for as long as it lives: a ratio has sqrt(2) times that."""


def found(baseline: list[float], candidate: list[float], spread: float = 0.0) -> Ratio:
    """One launch."""
    return ratio_of([np.array(baseline)], [np.array(candidate)], spread=spread, inputs="real")


def simulated(random: np.random.Generator, slower: float, launches: int, noise: float, bias: float = BIAS) -> Ratio:
    """Launches of 32 rounds, of a candidate that takes ``slower`` times as long."""

    def process(seconds: float) -> Times:
        own = seconds * np.exp(random.normal(0, bias))
        return np.asarray(own * np.exp(random.normal(0, noise, 32)))

    pairs = [(process(1e-3), process(1e-3 * slower)) for _ in range(launches)]
    return ratio_of([one for one, _ in pairs], [other for _, other in pairs])


def share(
    true: Callable[[Ratio], bool], slower: float, launches: int, noise: float, times: int = 100, bias: float = BIAS
) -> float:
    random = np.random.default_rng(7)
    return float(np.mean([true(simulated(random, slower, launches, noise, bias)) for _ in range(times)]))


def test_constant_times_give_the_plain_ratio() -> None:
    ratio = found([0.002] * 10, [0.001] * 10)
    assert (ratio.speedup, ratio.low, ratio.high) == pytest.approx((2, 2, 2), rel=1e-12)
    assert (ratio.baseline_ms, ratio.candidate_ms, ratio.blocks, ratio.inputs) == (2.0, 1.0, 10, "real")
    assert (ratio.confidence, ratio.margin, ratio.word) == (0.99, 0.02, "faster")


def test_a_model_against_itself_in_the_same_process_is_exactly_1() -> None:
    ratio = found([0.003, 0.001, 0.002], [0.003, 0.001, 0.002])
    assert (ratio.speedup, ratio.low, ratio.high) == (1.0, 1.0, 1.0)


def test_blocks_are_compared_within_their_round() -> None:
    """The machine slows down tenfold half way: medians over all blocks would say 1 or 10, pairs say 1.25."""
    baseline = [1.0] * 6 + [10.0] * 5
    candidate = [0.8] * 5 + [8.0] * 6
    candidate[5] = 0.8
    assert found(baseline, candidate).speedup == pytest.approx(1.25, rel=1e-12)


def test_a_disturbed_block_does_not_move_the_estimate() -> None:
    ratio = found([1.0] * 20, [0.5] * 19 + [50.0])
    assert (ratio.speedup, ratio.low) == pytest.approx((2, 2), rel=1e-12)


def test_the_estimate_is_the_mean_over_launches() -> None:
    ratio = ratio_of([np.full(9, 1.0), np.full(3, 1.0)], [np.full(9, 1.0), np.full(3, 0.25)], spread=0.0)
    assert ratio.speedup == pytest.approx(2, rel=1e-12)  # the geometric mean of 1 and 4, whatever their rounds
    assert ratio.blocks == 12


def half_width(values: list[Times], spread: float = SPREAD) -> float:
    low, high = interval(values, confidence=0.99, spread=spread)
    return (high - low) / 2


def test_one_launch_knows_only_what_is_known_beforehand() -> None:
    """99.5 % points of Student's t: 4.604 with 4 degrees of freedom."""
    values = [np.zeros(20)]
    assert half_width(values) == pytest.approx(4.604 * SPREAD, rel=0.15)
    assert half_width(values, spread=0.0) == 0.0


def test_launches_that_differ_by_more_are_believed() -> None:
    centres = np.random.default_rng(3).normal(0, 0.05, 200)
    launches = [np.full(8, each) for each in centres]
    assert half_width(launches) == pytest.approx(2.6 * centres.std() / np.sqrt(200), rel=0.08)


def test_launches_that_agree_make_it_narrower() -> None:
    """Four of them: what was known, seen as often again, with 7 degrees of freedom: sqrt(4 / 7) * 3.499 / sqrt(4)."""
    assert half_width([np.zeros(8)] * 4) == pytest.approx(1.323 * SPREAD, rel=0.1)


def test_the_interval_lies_within_what_was_seen_but_for_the_spread() -> None:
    """Half of the rounds a hundred times as slow, as on a contended machine: no figure beyond that comes out."""
    low, high = interval([np.array([0.0, 0.0, 4.6, 4.6, 0.0, 4.6])], confidence=0.99, spread=0.0)
    assert (low, high) == (0.0, 4.6)


def test_the_error_of_a_median() -> None:
    """Of 400 normal values: 1.2533 sigma / sqrt(n)."""
    values = np.random.default_rng(2).normal(5, 2, 400)
    assert median_error(values) == pytest.approx(1.2533 * 2 / 20, rel=0.3)


@pytest.mark.parametrize("noise", [0.005, 0.03])
def test_a_against_a_is_same(noise: float) -> None:
    assert share(lambda ratio: ratio.word == "same", 1.0, 5, noise) >= 0.995
    assert share(lambda ratio: ratio.word == "same", 1.0, 1, noise) >= 0.995


def test_5_percent_slower_is_slower() -> None:
    assert share(lambda ratio: ratio.word == "slower", 1.05, 5, 0.01) >= 0.95
    assert share(lambda ratio: ratio.word == "faster", 1 / 1.05, 5, 0.01) >= 0.95


def test_one_launch_sees_only_what_is_larger_than_the_luck_of_a_process() -> None:
    assert share(lambda ratio: ratio.word == "slower", 1.035, 1, 0.01) <= 0.6
    assert share(lambda ratio: ratio.word == "slower", 1.07, 1, 0.01) >= 0.95


def test_a_difference_as_large_as_the_margin_is_hardly_ever_called_one() -> None:
    assert share(lambda ratio: ratio.word != "same", 1.02, 5, 0.01) <= 0.01


@pytest.mark.parametrize(("launches", "noise"), [(1, 0.005), (3, 0.005), (5, 0.005), (5, 0.05)])
def test_the_interval_holds_the_truth_as_often_as_it_says(launches: int, noise: float) -> None:
    """At least 98 of 100, where it says 99; it is longer than it must be where launches agree."""
    assert share(lambda ratio: ratio.low <= 1 / 1.05 <= ratio.high, 1.05, launches, noise) >= 0.98


@pytest.mark.parametrize("launches", [3, 5])
def test_so_it_does_where_launches_differ_by_twice_what_is_known(launches: int) -> None:
    bias = 2 * SPREAD / np.sqrt(2)
    assert share(lambda ratio: ratio.low <= 1 <= ratio.high, 1.0, launches, 0.005, bias=bias) >= 0.95


def test_a_machine_too_noisy_to_tell_says_same() -> None:
    assert share(lambda ratio: ratio.word == "same", 1.05, 5, 0.3, times=50) >= 0.9


@pytest.mark.parametrize(
    ("low", "high", "margin", "word"),
    [
        (0.9, 0.9799, 0.02, "slower"),
        (0.9, 0.9801, 0.02, "same"),
        (1.0201, 1.1, 0.02, "faster"),
        (1.0199, 1.1, 0.02, "same"),
        (1.0001, 1.1, 0.0, "faster"),
        (0.9, 0.96, 0.05, "same"),
    ],
)
def test_the_verdict_needs_the_whole_interval_outside_the_margin(
    low: float, high: float, margin: float, word: str
) -> None:
    ratio = found([1.0], [1.0]).model_copy(update={"low": low, "high": high, "margin": margin})
    assert ratio.word == word


def test_inputs_are_described_with_shapes() -> None:
    batch = {"x": np.zeros((8, 1, 8, 8), np.float32), "m": np.zeros((8, 3), np.int64)}
    assert describe([batch, batch], "real") == "real, x float32[8,1,8,8], m int64[8,3]"
    assert describe([batch, {"x": batch["x"][:1]}]) == "x float32[8,1,8,8], m int64[8,3], and 1 other shape"
