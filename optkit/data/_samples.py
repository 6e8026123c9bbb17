"""The one Dataset: some samples of a source, in order, fed to a model's inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import cast

import numpy as np

from optkit.data._feed import Feed
from optkit.data._reader import Lazy, Reader, sha256_of
from optkit.data.dataset import Array, Arrays, Batch, Dataset


@dataclass(frozen=True, eq=False)
class Samples(Lazy):
    """Batches over a reader. Pickling carries paths and indices, not what was read from files."""

    split: str
    source: str
    """For people: the path, or ``synthetic``."""
    batch: int
    """Samples per batch; the model's own size where ``fixed``."""
    reader: Reader
    feeds: tuple[Feed, ...]
    order: tuple[str, ...]
    """Input names as the signature orders them."""
    indices: Array
    """int64[count], into the reader."""
    constants: Arrays = field(default_factory=dict)
    """Inputs without a sample axis, repeated with each batch."""
    labels: Array | None = None
    groups: Array | None = None
    fixed: bool = False
    """The model takes exactly ``batch`` rows: the last batch is padded by repeating its last row."""
    synthetic: bool = False

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.indices)

    def batches(self) -> Iterator[Batch]:
        """All samples in order, streamed.

        Raises:
            DataError: a sample does not fit the model, cannot be read, or is not finite.
        """
        for start in range(0, self.count, self.batch):
            part = slice(start, min(start + self.batch, self.count))
            yield Batch(
                inputs=self._inputs(self.indices[part]),
                size=part.stop - part.start,
                labels=None if self.labels is None else self.labels[part],
                groups=None if self.groups is None else self.groups[part],
            )

    def _inputs(self, indices: Array) -> Arrays:
        if self.fixed and len(indices) < self.batch:
            indices = np.concatenate([indices, np.repeat(indices[-1:], self.batch - len(indices))])
        columns = tuple(dict.fromkeys(name for feed in self.feeds for name in feed.columns))
        values = self.reader.read(columns, indices)
        made = dict(self.constants)
        for feed in self.feeds:
            made.update(feed.make(values, lambda position: self.reader.place(int(indices[position]))))
        return {name: made[name] for name in self.order}

    def subset(self, indices: Array, split: str) -> Samples:
        """The samples at ``indices`` (int64[n]) under the name of another split."""
        return replace(
            self,
            split=split,
            indices=self.indices[indices],
            labels=None if self.labels is None else self.labels[indices],
            groups=None if self.groups is None else self.groups[indices],
        )

    @cached_property
    def digest(self) -> str:
        """sha256 over the samples, their order, the batch size, the preprocessing, labels and groups."""
        total = hashlib.sha256(self.reader.digest.encode())
        total.update(f"{self.batch} {self.fixed} {self.order}".encode())
        for feed in self.feeds:
            total.update(feed.fingerprint.encode())
        total.update(sha256_of(self._named_files()).encode())
        for name, array in self._arrays().items():
            total.update(f"{name} {array.dtype} {array.shape}".encode())
            total.update(np.ascontiguousarray(array).tobytes())
        return total.hexdigest()

    def _named_files(self) -> Iterator[Path]:
        """Image files that the rows of a table name: their content is part of the samples."""
        for feed in self.feeds:
            if self.reader.parsed:
                yield from feed.files(partial(self.reader.read, feed.columns, self.indices))

    def _arrays(self) -> Arrays:
        known = {"labels of samples": self.labels, "groups of samples": self.groups, "indices of samples": self.indices}
        return {**self.constants, **{name: array for name, array in known.items() if array is not None}}


def as_dataset(samples: Samples) -> Dataset:
    """The same object. The protocol's plain attributes read as settable to mypy, which frozen ones never are."""
    return cast("Dataset", samples)
