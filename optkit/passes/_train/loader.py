"""The training split as shuffled batches of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optkit.data.dataset import Array, Arrays, Batch, Dataset, take
from optkit.errors import PassError
from optkit.model.signature import Signature
from optkit.model.torch_call import to_tensor

if TYPE_CHECKING:
    from torch import Tensor

MEMORY_BYTES = 2**29
"""Decoded samples up to this size together are kept in memory; more are read anew in each epoch."""

Teacher = Callable[["dict[str, Tensor]"], "dict[str, Tensor]"]
"""Inputs by name -> what the teacher gives for them, outputs by name."""


@dataclass(frozen=True)
class TrainBatch:
    """What one step of training sees, on the device that trains."""

    inputs: dict[str, Tensor]
    """Input name -> tensor with the model's dtype; call the model as ``model(**batch.inputs)``."""
    labels: Tensor | None
    """int64[size] (of a column [size, 1] too) or float32[size, ...]; None where the data have none."""
    size: int
    """Samples in it."""
    targets: dict[str, Tensor] | None = None
    """Output name -> what the teacher gives for the same inputs; None without a teacher."""


class Loader:
    """Batches of a dataset, in a new order each epoch, which seed and epoch alone decide.

    Args:
        dataset: the split train.
        signature: of the model; says dtypes and sample axes.
        size: samples in a batch; a model with a fixed batch size takes that instead.
        seed: of the order.
        device: where the tensors go.
        teacher: gives the ``targets`` of each batch.

    Raises:
        PassError: there are no samples, or labels are neither whole numbers nor finite floats.
    """

    def __init__(
        self,
        dataset: Dataset,
        signature: Signature,
        size: int,
        seed: int,
        device: str = "cpu",
        teacher: Teacher | None = None,
    ) -> None:
        self._dataset, self._seed, self._device, self._teacher = dataset, seed, device, teacher
        self._axes = signature.batch_axes()
        self._dtypes = {spec.name: spec.dtype for spec in signature.inputs}
        if not dataset.count:
            raise PassError(
                "The split train has no samples.", expected="samples to train on", fix="give some with --data"
            )
        own = 1 if signature.one_sample else signature.fixed_batch()
        self.size = min(own or size, dataset.count)
        self.labels = _plain_labels(dataset.labels)
        self._epoch = 0
        self._rows = self._kept()
        self._known: Arrays | None = None

    def know_targets(self) -> None:
        """Ask the teacher about every sample once, in order, and keep what it says.

        Nothing where samples are not in memory, or where the teacher's outputs are large or not one for each sample.
        """
        if self._rows is None or self._teacher is None:
            return
        pieces: list[Arrays] = []
        for start in range(0, self._dataset.count, self.size):
            batch = self._batch(np.arange(start, min(start + self.size, self._dataset.count)))
            found = {name: value.cpu().numpy() for name, value in (batch.targets or {}).items()}
            size = sum(array.nbytes for array in found.values()) / batch.size * self._dataset.count
            if size > MEMORY_BYTES or any(len(array) != batch.size for array in map(np.atleast_1d, found.values())):
                return
            pieces.append(found)
        self._known = join(pieces, dict.fromkeys(pieces[0], 0))

    def __len__(self) -> int:
        """Batches in an epoch. The last one, where it is not full, is left out."""
        return self._dataset.count // self.size

    def __iter__(self) -> Iterator[TrainBatch]:
        """The next epoch."""
        epoch, self._epoch = self._epoch, self._epoch + 1
        yield from self.epoch(epoch)

    def epoch(self, number: int, start: int = 0) -> Iterator[TrainBatch]:
        """The batches of one epoch, from the one at ``start``."""
        order = np.random.default_rng([self._seed, number]).permutation(self._dataset.count)
        for index in range(start, len(self)):
            yield self._batch(order[index * self.size : (index + 1) * self.size])

    def steps(self, start: int = 0) -> Iterator[TrainBatch]:
        """Batches without end, epoch after epoch, from step ``start``."""
        number, skip = divmod(start, len(self))
        while True:
            yield from self.epoch(number, skip)
            number, skip = number + 1, 0

    def _batch(self, indices: NDArray[np.int64]) -> TrainBatch:
        import torch

        arrays = self._read(indices) if self._rows is None else self._taken(self._rows, indices)
        inputs = {name: to_tensor(name, arrays[name], dtype).to(self._device) for name, dtype in self._dtypes.items()}
        labels = None
        if self.labels is not None:
            labels = torch.from_numpy(np.ascontiguousarray(self.labels[indices])).to(self._device)
        return TrainBatch(inputs, labels, len(indices), self._targets(inputs, indices))

    def _targets(self, inputs: dict[str, Tensor], indices: NDArray[np.int64]) -> dict[str, Tensor] | None:
        import torch

        if self._known is not None:
            return {name: torch.from_numpy(array[indices]).to(self._device) for name, array in self._known.items()}
        return None if self._teacher is None else self._teacher(inputs)

    def _taken(self, rows: Arrays, indices: NDArray[np.int64]) -> Arrays:
        axes = self._axes
        return {
            name: array if (axis := axes.get(name)) is None else np.take(array, indices, axis=axis)
            for name, array in rows.items()
        }

    def _read(self, indices: Array) -> Arrays:
        pieces = [trimmed(batch, self._axes) for batch in self._dataset.subset(indices, "train").batches()]
        return join(pieces, self._axes)

    def _kept(self) -> Arrays | None:
        """All samples, where they are small, alike in shape, and have a sample axis; else None."""
        if all(axis is None for axis in self._axes.values()):
            return None
        pieces: list[Arrays] = []
        for batch in self._dataset.batches():
            pieces.append(trimmed(batch, self._axes))
            size = sum(array.nbytes for array in pieces[-1].values()) / batch.size * self._dataset.count
            if size > MEMORY_BYTES or not _alike(pieces[0], pieces[-1], self._axes):
                return None
        return join(pieces, self._axes)


def trimmed(batch: Batch, axes: Mapping[str, int | None]) -> Arrays:
    """The inputs without padding rows."""
    return {name: take(array, axes.get(name), slice(batch.size)) for name, array in batch.inputs.items()}


def join(pieces: Sequence[Arrays], axes: Mapping[str, int | None]) -> Arrays:
    """Batches one after the other; those of shorter rows are filled up with zeros at the end."""
    first = pieces[0]
    if len(pieces) == 1:
        return first
    return {
        name: array if (axis := axes.get(name)) is None else _joined([piece[name] for piece in pieces], axis)
        for name, array in first.items()
    }


def _joined(arrays: Sequence[Array], axis: int) -> Array:
    shape = [max(sizes) for sizes in zip(*(array.shape for array in arrays), strict=True)]
    filled = [
        np.pad(array, [(0, 0 if place == axis else shape[place] - size) for place, size in enumerate(array.shape)])
        for array in arrays
    ]
    return np.concatenate(filled, axis=axis)


def _alike(one: Arrays, other: Arrays, axes: Mapping[str, int | None]) -> bool:
    return all(_row(one[name], axes.get(name)) == _row(other[name], axes.get(name)) for name in one)


def _row(array: Array, axis: int | None) -> tuple[int, ...]:
    return tuple(size for place, size in enumerate(array.shape) if place != axis)


def _plain_labels(labels: Array | None) -> NDArray[Any] | None:
    if labels is None:
        return None
    if labels.dtype.kind in "iub":
        column = labels.ndim == 2 and labels.shape[1] == 1
        return (labels[:, 0] if column else labels).astype(np.int64)
    if labels.dtype.kind == "f" and np.isfinite(labels).all():
        return labels.astype(np.float32)
    if labels.dtype.kind == "f":
        missing = int(np.count_nonzero(~np.isfinite(labels)))
        raise PassError(
            f"{missing} of {labels.size} labels of the split train are no finite numbers.",
            expected="a number for each sample",
            fix="leave these samples out of the data",
        )
    raise PassError(
        f"The labels of the split train are {labels.dtype}, which nothing can be trained on.",
        expected="class numbers from 0, or floats",
        fix="write class numbers into the data, in the order of the model's classes",
    )
