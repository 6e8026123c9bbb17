"""A split's samples as batches: what every other room takes data as."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Arrays = dict[str, Array]
"""Input or output name -> array."""


@dataclass(frozen=True)
class Batch:
    """Some samples, ready to feed."""

    inputs: Arrays
    """Input name -> array with the model's dtype. Rows beyond ``size`` are padding for a fixed batch size."""
    size: int
    """Real samples in this batch."""
    labels: Array | None = None
    """[size], or None."""
    groups: Array | None = None
    """[size], or None."""


class Dataset(Protocol):
    """The samples of one split. Plain and picklable: it crosses process borders."""

    @property
    def split(self) -> str:
        """The split's name."""

    @property
    def source(self) -> str:
        """For people: the path, or ``synthetic``."""

    @property
    def batch(self) -> int:
        """Samples per batch."""

    @property
    def synthetic(self) -> bool:
        """Made up from the signature."""

    @property
    def count(self) -> int:
        """Number of samples."""

    @property
    def digest(self) -> str:
        """sha256 over the samples, their order, the batch size and the preprocessing."""

    @property
    def labels(self) -> Array | None:
        """[count], or None."""

    @property
    def groups(self) -> Array | None:
        """[count], or None."""

    def batches(self) -> Iterator[Batch]:
        """All samples in order, streamed."""

    def subset(self, indices: Array, split: str) -> Dataset:
        """The samples at ``indices`` (int64[n]), under the name of another split."""


def take(array: Array, axis: int | None, which: slice) -> Array:
    """A view of the samples ``which`` of an array that has them on ``axis``; all of it where it has no such axis."""
    return array if axis is None or array.ndim <= axis else array[(slice(None),) * axis + (which,)]


def spread(dataset: Dataset, count: int, split: str) -> Dataset:
    """At most ``count`` samples, evenly spread over all of them, under the name of another split."""
    some = np.linspace(0, dataset.count - 1, min(count, dataset.count))
    return dataset.subset(some.astype(np.int64), split)
