"""A dataset held in memory, outputs cut into its batches, and one output compared batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from optkit.data.dataset import Array, Arrays, Batch
from optkit.evaluate.fidelity import Fidelity
from optkit.evaluate.rows import OutputOptions


@dataclass(frozen=True)
class ToyData:
    """Inputs by name, all with the samples on axis 0."""

    inputs: Arrays
    labels: Array | None = None
    groups: Array | None = None
    batch: int = 4
    split: str = "evaluation"
    source: str = "toy"
    synthetic: bool = False
    digest: str = field(default="toy")

    @property
    def count(self) -> int:
        return len(next(iter(self.inputs.values())))

    def batches(self) -> Iterator[Batch]:
        for start in range(0, self.count, self.batch):
            part = slice(start, min(start + self.batch, self.count))
            inputs = {name: array[part] for name, array in self.inputs.items()}
            labels = None if self.labels is None else self.labels[part]
            groups = None if self.groups is None else self.groups[part]
            yield Batch(inputs, part.stop - part.start, labels, groups)

    def subset(self, indices: Array, split: str) -> ToyData:
        return ToyData({name: array[indices] for name, array in self.inputs.items()}, split=split)


def toy(count: int, **more: object) -> ToyData:
    return ToyData({"x": np.zeros((count, 2), np.float32)}, **more)


def cut(outputs: Arrays, batch: int = 4) -> list[Arrays]:
    count = len(next(iter(outputs.values())))
    return [{name: array[i : i + batch] for name, array in outputs.items()} for i in range(0, count, batch)]


def compare(
    a: Array,
    b: Array,
    *,
    batch: int | None = None,
    options: OutputOptions | None = None,
    name: str = "y",
    inputs: Mapping[str, Array] | None = None,
    labels: Array | None = None,
    may_change: frozenset[str] = frozenset(),
) -> Fidelity:
    """Feed [N, ...] arrays in batches of ``batch``."""
    fidelity = Fidelity(name, options, may_change)
    step = batch or len(a)
    for start in range(0, len(a), step):
        part = slice(start, start + step)
        size = len(a[part])
        held = {key: value[part] for key, value in (inputs or {}).items()}
        fidelity.update(a[part], b[part], Batch(held, size, None if labels is None else labels[part]))
    return fidelity
