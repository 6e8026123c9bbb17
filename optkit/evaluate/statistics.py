"""Scores as sum/sum, and how sure a difference between two of them is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import numpy as np

from optkit.data.dataset import Array
from optkit.evaluate.rows import Float64

RESAMPLES = 4000
"""Of the bootstrap: the 95 % ends are then good to a few percent of the interval's width."""
FEW = 4
"""With fewer units than this that differ, resampling cannot see how rare changes could be."""

Curve = Callable[[Float64], Float64]
"""From sum/sum to the score people know, e.g. ``exp`` for perplexity."""


@dataclass(frozen=True)
class Difference:
    """Two scores over the same samples, and the drop between them; positive = the result is worse."""

    original: float
    result: float
    drop: float
    low: float
    high: float
    bound: float
    units: int
    smallest_provable: float


def as_table(values: Float64) -> Float64:
    """Per-sample values [N] or [N, 2] as float64[N, 2]: numerator, denominator."""
    table = np.asarray(values, np.float64)
    return np.column_stack([table, np.ones(len(table))]) if table.ndim == 1 else table


def by_group(table: Float64, groups: Array | None) -> Float64:
    """Sum the rows of each group (sorted by group); without groups the table itself."""
    if groups is None:
        return table
    names, index = np.unique(groups, return_inverse=True)
    summed = np.zeros((len(names), table.shape[1]))
    np.add.at(summed, index, table)
    return summed


def score(sums: Float64, curve: Curve) -> Float64:
    """curve(numerator / denominator) along the last axis of float64[..., 2]; an empty denominator gives 0/1."""
    denominator = np.where(sums[..., 1] == 0, 1.0, sums[..., 1])
    return curve(np.asarray(sums[..., 0] / denominator))


def paired_difference(
    original: Float64, result: Float64, *, higher_is_better: bool, curve: Curve = np.asarray, seed: int = 0
) -> Difference:
    """The drop between two tables float64[N, 2] of the same N units, with its paired-bootstrap interval.

    Percentile bootstrap (Efron & Tibshirani 1993, chapter 13): units are drawn with replacement, original and result of
    a unit together; ``low`` and ``high`` hold 95 %, ``bound`` is the one-sided 95 % upper bound. (scipy.stats.bootstrap
    gives the same numbers, but takes a second or two to import and several times as long.)

    Where fewer than four units differ, resampling would claim to be surer than anyone can be: with no event in n trials
    the 95 % bound of its rate is 1 - 0.05^(1/n), about 3/n (Hanley & Lippman-Hand 1983). So the half-widths are then at
    least that rate, times the largest value a unit has (1 where all are 0: a right answer turned wrong).

    ``smallest_provable`` = bound - drop: the budget that ``by: bound`` would just grant, were the drop zero.
    """
    sign = 1.0 if higher_is_better else -1.0
    both = np.hstack([original, result])
    total = both.sum(axis=0)
    before, after = float(score(total[:2], curve)), float(score(total[2:], curve))
    drop = sign * (before - after)
    drawn = _resampled(both, seed)
    drops = sign * (score(drawn[:, :2], curve) - score(drawn[:, 2:], curve))
    low, high, bound = (float(np.quantile(drops, q)) for q in (0.025, 0.975, 0.95))
    floor = _floor(original, result, curve) if isfinite(drop) else 0.0
    bound = max(bound, drop + floor)
    low, high = min(low, drop - floor), max(high, bound)
    return Difference(before, after, drop, low, high, bound, len(both), bound - drop)


def _resampled(table: Float64, seed: int) -> Float64:
    """Column sums float64[RESAMPLES, columns] of ``table`` with its rows drawn with replacement; memory of one draw."""
    rng = np.random.default_rng(seed)
    count = len(table)
    draws = (np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(RESAMPLES))
    return np.stack([weights @ table for weights in draws])


def _floor(original: Float64, result: Float64, curve: Curve) -> float:
    """The least half-width where few units differ; 0 where enough do. See ``paired_difference``."""
    if int((original != result).any(axis=1).sum()) >= FEW:
        return 0.0
    asked = max(1, int((original[:, 1] != 0).sum()))
    rate = 1 - 0.05 ** (1 / asked)
    worst = float(np.abs(np.concatenate([_values(original), _values(result)])).max(initial=0.0)) or 1.0
    total = original.sum(axis=0)
    worse = total + np.array([rate * worst * total[1], 0.0])
    return abs(float(score(worse, curve)) - float(score(total, curve)))


def _values(table: Float64) -> Float64:
    return np.divide(table[:, 0], table[:, 1], out=np.zeros(len(table)), where=table[:, 1] != 0)
