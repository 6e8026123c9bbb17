"""Which weights become zero: the smallest of a layer or of all layers, or some of every block of consecutive inputs."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Rule = Callable[[Array], Array]
"""Weights -> the same with more zeros, as a new array."""

SAMPLED = 1 << 18
"""Bytes of each layer that are compressed to tell how well the whole of it would be."""
CHUNK = 1 << 16
"""Bytes compressed at a time: twice as far as zlib looks back."""


@dataclass(frozen=True)
class Weight:
    """The weights of a layer, wherever they are stored."""

    label: str
    axis: int
    """The axis that the layer sums over: that of its inputs."""
    read: Callable[[], Array]
    """Floats of two axes and more; not to be written to."""
    prune: Callable[[Rule], None]
    """Puts what a rule makes of them in their place."""


def smallest(weights: Array, count: int) -> Array:
    """A copy with the ``count`` elements of the least magnitude set to zero; of equal ones the first.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015.
    """
    pruned = weights.copy()
    if count <= 0:
        return pruned
    size = np.abs(weights.astype(np.float32, copy=False)).reshape(-1)
    limit = np.partition(size, count - 1)[count - 1]
    below = size < limit
    below[np.flatnonzero(size == limit)[: count - int(below.sum())]] = True
    pruned[below.reshape(weights.shape)] = 0
    return pruned


def n_of_m(weights: Array, keep: int, block: int, axis: int) -> Array:
    """A copy in which of every ``block`` consecutive elements along ``axis`` only the ``keep`` largest are left.

    The axis must be a multiple of ``block``.

    Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021.
    """
    turned = np.moveaxis(weights, axis, -1)
    blocks = turned.reshape(-1, block).copy()
    order = np.argsort(np.abs(blocks.astype(np.float32, copy=False)), axis=1, kind="stable")
    np.put_along_axis(blocks, order[:, : block - keep], 0, axis=1)
    return np.ascontiguousarray(np.moveaxis(blocks.reshape(turned.shape), -1, axis))


def spread(weights: Sequence[Weight], count: int) -> list[int]:
    """How many of the ``count`` elements of least magnitude of all layers together each layer has.

    Counts magnitudes by the upper half of their bits, then those of one such bin by the lower half, so that one layer
    at a time is in memory: as numbers that are not negative, floats are ordered like their bits.
    """
    if count <= 0:
        return [0 for _ in weights]
    upper = sum(np.bincount(_bits(each) >> 16, minlength=1 << 15) for each in weights)
    place, behind = _reach(upper, count)
    lower = sum(np.bincount(bits[bits >> 16 == place] & 0xFFFF, minlength=1 << 16) for bits in map(_bits, weights))
    limit = (place << 16) + _reach(lower, count - behind)[0]
    below = [int((_bits(each) < limit).sum()) for each in weights]
    left = count - sum(below)
    counts: list[int] = []
    for each, sure in zip(weights, below, strict=True):
        ties = min(left, int((_bits(each) == limit).sum())) if left else 0
        counts.append(sure + ties)
        left -= ties
    return counts


def _bits(weight: Weight) -> NDArray[np.uint32]:
    """uint32[elements] of the magnitudes."""
    return np.abs(weight.read().astype(np.float32, copy=False)).reshape(-1).view(np.uint32)


def _reach(counts: Any, wanted: int) -> tuple[int, int]:
    """The first bin at whose end ``wanted`` elements are counted, and how many are in front of it."""
    ends = np.cumsum(counts)
    place = int(np.searchsorted(ends, wanted))
    return place, int(ends[place - 1]) if place else 0


def zeros(weights: Array) -> int:
    """How many elements are zero."""
    return int(weights.size - np.count_nonzero(weights))


def packed(weights: Array) -> float:
    """Bytes that zlib makes of the weights, judged by some of them."""
    data = weights.tobytes()
    chunks = max(1, min(SAMPLED, len(data)) // CHUNK)
    starts = np.linspace(0, max(0, len(data) - CHUNK), chunks).astype(int)
    taken = [data[start : start + CHUNK] for start in starts]
    return sum(len(zlib.compress(each)) for each in taken) / max(1, sum(len(each) for each in taken)) * len(data)
