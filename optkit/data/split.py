"""Divide a split: whatever is chosen by looking must not look at what the verdict is given on."""

from __future__ import annotations

import numpy as np

from optkit.data.dataset import Array, Dataset

SEARCH_SHARE = 0.3
"""Part of evaluation that becomes search where there is none."""
_TOO_FEW = 4


def carve_search(evaluation: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Take a seeded, label-stratified 30 % of evaluation as search; groups stay whole.

    Returns:
        (search, rest). With fewer than four samples, or a single group, both are all of evaluation: then
        ``search.count == evaluation.count``.
    """
    everything = np.arange(evaluation.count, dtype=np.int64)
    units = _units(evaluation)
    if evaluation.count < _TOO_FEW or int(units.max()) == 0:
        return evaluation.subset(everything, "search"), evaluation
    chosen = _chosen(units, _strata(evaluation), seed)
    inside = np.isin(units, chosen)
    return evaluation.subset(everything[inside], "search"), evaluation.subset(everything[~inside], evaluation.split)


def _units(evaluation: Dataset) -> Array:
    """int64[count]: the group of each sample; each its own where there are no groups."""
    if evaluation.groups is None:
        return np.arange(evaluation.count, dtype=np.int64)
    return np.unique(evaluation.groups, return_inverse=True)[1].astype(np.int64)


def _strata(evaluation: Dataset) -> Array:
    """int64[count]: the class of each sample; one class where labels are missing or are measurements."""
    labels = evaluation.labels
    single = np.zeros(evaluation.count, dtype=np.int64)
    if labels is None or labels.ndim != 1 or labels.dtype.kind == "f":
        return single
    numbers = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    return numbers if int(numbers.max()) < evaluation.count // 2 else single


def _chosen(units: Array, strata: Array, seed: int) -> Array:
    """Units that make up 30 % of the samples, in proportion over the strata, never all of them."""
    _, first, sizes = np.unique(units, return_index=True, return_counts=True)
    order = np.argsort(_keys(strata[first], np.random.default_rng(seed)), kind="stable")
    wanted = max(1, round(SEARCH_SHARE * len(units)))
    taken = np.cumsum(sizes[order]) <= wanted
    taken[0] = True
    taken[-1] = False
    chosen: Array = order[taken]
    return chosen


def _keys(strata: Array, rng: np.random.Generator) -> Array:
    """Position of each unit within its shuffled stratum, from 0 to 1: the smallest keys are a stratified draw."""
    keys = np.empty(len(strata), dtype=np.float64)
    for stratum in np.unique(strata):
        members = rng.permutation(np.flatnonzero(strata == stratum))
        keys[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return keys
