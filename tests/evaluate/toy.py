"""A dataset held in memory, and outputs cut into its batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from optkit.data.dataset import Array, Arrays, Batch


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
