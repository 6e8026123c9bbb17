"""Ranks of layers under a budget: what each costs in output error, and which are the cheapest for what they save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optkit.errors import PassError
from optkit.passes._prune.target import at_least

Floats = NDArray[np.float64]

GAIN = 0.2
"""Share of a layer's weights that factors must save: two kernels in the place of one cost time themselves."""


@dataclass(frozen=True)
class Curve:
    """What each rank of a layer costs and saves."""

    ranks: tuple[int, ...]
    """Descending."""
    errors: tuple[float, ...]
    """Of each rank: share of the output's variance that is lost."""
    saved: tuple[float, ...]
    """Of each rank: fewer multiply-accumulates per sample, or parameters, than the layer has."""


def worthwhile(inputs: int, outputs: int, multiple: int) -> tuple[int, ...]:
    """Ranks with which two factors are smaller than one matrix [outputs, inputs] by ``GAIN`` or more, descending.

    Multiples of ``multiple``; all where none of those is low enough.
    """
    below = int((1 - GAIN) * inputs * outputs / (inputs + outputs))
    step = multiple if below >= multiple else 1
    return tuple(range(below - below % step, 0, -step))


def curve(lost: Floats, inputs: int, outputs: int, uses: float, multiple: int) -> Curve:
    """Of a layer.

    Args:
        lost: [rank + 1] share of the output's variance that is lost with so many directions, descending to 0.
        inputs: of one output, those of a convolution's kernel all counted.
        outputs: channels.
        uses: what one weight counts: multiply-accumulates per sample, or 1 for parameters.
        multiple: of the ranks.
    """
    ranks = worthwhile(inputs, outputs, multiple)
    errors = tuple(float(lost[min(rank, len(lost) - 1)]) for rank in ranks)
    return Curve(ranks, errors, tuple(uses * (inputs * outputs - rank * (inputs + outputs)) for rank in ranks))


def allocate(curves: Mapping[str, Curve], wanted: float) -> dict[str, int] | None:
    """Ranks that save ``wanted`` together with the least sum of errors; None where even the lowest do not.

    Greedy: of all steps to lower ranks the one with the least error for what it saves, steps skipped that a longer one
    beats (the lower convex hull, so that the choice is the best for what it saves). What is saved beyond that is given
    back, to the layer with the greatest error first.
    """
    steps = sorted((slope, index, name) for name, found in curves.items() for slope, index in _hull(found))
    chosen: dict[str, int] = {}
    saved = 0.0
    for _, index, name in steps:
        if saved < wanted:
            saved += curves[name].saved[index] - (curves[name].saved[chosen[name]] if name in chosen else 0.0)
            chosen[name] = index
    if saved < wanted:
        return None
    ranks: dict[str, int] = {}
    for name in sorted(chosen, key=lambda each: -curves[each].errors[chosen[each]]):
        found, spare = curves[name], max(0.0, saved - wanted)
        now = found.saved[chosen[name]]
        if now <= spare:
            saved -= now
            continue
        index = next(at for at, gain in enumerate(found.saved) if now - gain <= spare)
        saved -= now - found.saved[index]
        ranks[name] = found.ranks[index]
    return ranks


def _hull(found: Curve) -> list[tuple[float, int]]:
    """(error for each unit saved, index of the rank) of the corners, from the whole layer down."""
    errors, saved = np.array(found.errors), np.array(found.saved)
    corners: list[tuple[float, int]] = []
    error, gain, start = 0.0, 0.0, 0
    while start < len(errors):
        slopes = (errors[start:] - error) / (saved[start:] - gain)
        best = start + int(np.flatnonzero(slopes <= slopes.min())[-1])
        corners.append((float(slopes[best - start]), best))
        error, gain, start = errors[best], saved[best], best + 1
    return corners


def within(curves: Mapping[str, Curve], error: float) -> dict[str, int]:
    """For each layer that has one the lowest rank that loses at most ``error``, as a share of the output's spread."""
    fitting = {
        name: [rank for rank, lost in zip(found.ranks, found.errors, strict=True) if lost <= error**2]
        for name, found in curves.items()
    }
    return {name: min(ranks) for name, ranks in fitting.items() if ranks}


def by_error(curves: Mapping[str, Curve], error: float) -> dict[str, int]:
    """See ``within``.

    Raises:
        PassError: no layer has such a rank; names the least error.
    """
    if ranks := within(curves, error):
        return ranks
    name = min(curves, key=lambda each: curves[each].errors[0])
    least = at_least(curves[name].errors[0] ** 0.5)
    raise PassError(
        f"No layer can be factorized with an error of at most {error:g}: the least is {least}, of '{name}' with rank"
        f" {curves[name].ranks[0]}.",
        expected=f"an error of at least {least}",
        fix="allow a greater error, or leave this pass out: the layers need all their directions",
    )


def by_budget(curves: Mapping[str, Curve], total: float, share: float, what: str) -> dict[str, int]:
    """Ranks that leave ``share`` of the ``total``, see ``allocate``.

    Raises:
        PassError: the lowest ranks leave more; names how much.
    """
    ranks = allocate(curves, total * (1 - share))
    if ranks is not None:
        return ranks
    best = at_least(1 - sum(each.saved[-1] for each in curves.values()) / total)
    raise PassError(
        f"The target of {share:g} of the {what} cannot be reached: with the lowest ranks {best} is left.",
        expected=f"a share of at least {best}",
        fix="ask for less, lower multiple, or exclude fewer layers",
    )


def lost_shares(kept: Sequence[float] | Floats) -> Floats:
    """[n + 1]: share of the sum that is lost with the first 0, 1, ... n of these not negative parts."""
    parts = np.maximum(np.asarray(kept, np.float64), 0)
    total = parts.sum()
    if total <= 0:
        return np.zeros(len(parts) + 1)
    lost: Floats = np.maximum(1 - np.concatenate([[0.0], np.cumsum(parts)]) / total, 0)
    return lost
