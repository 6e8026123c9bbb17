import numpy as np
import pytest

from optkit.evaluate.statistics import as_table, by_group, paired_difference


def accuracy(right):
    return as_table(np.asarray(right, float))


def disagreeing(count, worse, better):
    """Accuracy tables where the result loses ``worse`` samples and wins ``better``."""
    original, result = np.ones(count), np.ones(count)
    result[:worse] = 0
    original[worse : worse + better] = 0
    return accuracy(original), accuracy(result)


@pytest.mark.parametrize(("count", "rate", "half_width"), [(1000, 0.02, 0.0088), (500, 0.014, 0.0104)])
def test_half_width_known_from_measurements(count, rate, half_width):
    each = round(count * rate / 2)
    original, result = disagreeing(count, each, round(count * rate) - each)
    found = paired_difference(original, result, higher_is_better=True)
    assert (found.high - found.low) / 2 == pytest.approx(half_width, rel=0.06)


def test_the_sign_of_the_drop_is_positive_when_worse():
    original, result = disagreeing(100, 8, 3)
    higher = paired_difference(original, result, higher_is_better=True)
    assert (higher.original, higher.result) == (0.97, 0.92)
    assert higher.drop == pytest.approx(0.05)
    assert higher.low < higher.drop < higher.bound < higher.high
    assert paired_difference(original, result, higher_is_better=False).drop == pytest.approx(-0.05)
    assert higher.smallest_provable == pytest.approx(higher.bound - higher.drop)


def test_the_interval_agrees_with_scipy():
    from scipy.stats import bootstrap

    rng = np.random.default_rng(3)
    a = np.column_stack([rng.poisson(3, 200), rng.integers(5, 20, 200)]).astype(float)
    b = a + np.column_stack([rng.integers(-1, 3, 200), np.zeros(200)])
    found = paired_difference(a, b, higher_is_better=False)
    columns = (a[:, 0], a[:, 1], b[:, 0], b[:, 1])
    reference = bootstrap(
        columns,
        lambda na, da, nb, db, axis=-1: nb.sum(axis) / db.sum(axis) - na.sum(axis) / da.sum(axis),
        paired=True,
        n_resamples=4000,
        method="percentile",
        rng=1,
    ).confidence_interval
    width = reference.high - reference.low
    assert found.low == pytest.approx(reference.low, abs=0.06 * width)
    assert found.high == pytest.approx(reference.high, abs=0.06 * width)


def test_coverage_of_a_known_difference():
    """True drop .02: the 95 % interval and the 95 % bound cover it in about 95 % of 60 simulations."""
    rng = np.random.default_rng(4)
    inside = below = 0
    for seed in range(60):
        kind = rng.choice(4, size=300, p=[0.80, 0.05, 0.03, 0.12])
        original, result = accuracy(kind < 2), accuracy((kind == 0) | (kind == 2))
        found = paired_difference(original, result, higher_is_better=True, seed=seed)
        inside += found.low <= 0.02 <= found.high
        below += found.bound >= 0.02
    assert 0.88 <= inside / 60 <= 1
    assert 0.88 <= below / 60 <= 0.99


def test_without_any_disagreement_the_rule_of_three_limits_what_is_provable():
    right = accuracy(np.ones(1000))
    found = paired_difference(right, right.copy(), higher_is_better=True)
    assert found.drop == 0
    assert found.bound == found.smallest_provable == pytest.approx(3 / 1000, rel=0.01)
    assert found.low == pytest.approx(-3 / 1000, rel=0.01)
    few = accuracy(np.ones(10))
    assert paired_difference(few, few, higher_is_better=True).bound == pytest.approx(0.2589, rel=1e-3)


def test_errors_that_are_all_zero_still_leave_room_for_a_wrong_answer():
    clean = np.column_stack([np.zeros(20), np.full(20, 5.0)])
    assert paired_difference(clean, clean, higher_is_better=False).smallest_provable == pytest.approx(0.1391, rel=1e-3)


def test_groups_are_drawn_whole():
    groups = np.repeat(np.arange(25), 40)
    rng = np.random.default_rng(5)
    lost = rng.random(25) < 0.2
    original = accuracy(np.ones(1000))
    result = accuracy(1.0 - lost[groups])
    single = paired_difference(original, result, higher_is_better=True)
    grouped = paired_difference(by_group(original, groups), by_group(result, groups), higher_is_better=True)
    assert grouped.drop == pytest.approx(single.drop)
    assert grouped.units == 25
    assert grouped.high - grouped.low > 4 * (single.high - single.low)


def test_group_sums():
    table = as_table(np.array([1.0, 2.0, 4.0]))
    assert by_group(table, np.array(["b", "a", "b"])).tolist() == [[2.0, 1.0], [5.0, 2.0]]


def test_the_same_seed_gives_the_same_interval():
    original, result = disagreeing(50, 6, 2)
    first = paired_difference(original, result, higher_is_better=True, seed=7)
    assert first == paired_difference(original, result, higher_is_better=True, seed=7)
