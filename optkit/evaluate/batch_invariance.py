"""How much a model's answer to a sample depends on what else is in its batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.data.dataset import Array, Arrays, Batch
from optkit.evaluate.rows import OutputOptions, find_mask, is_float, select
from optkit.model.signature import Signature

ROWS = 8
"""Samples in a batch that is put together where the data come one by one."""
SAMPLES = 16
"""Samples that are looked at: each costs a call with a whole batch."""


@dataclass
class Shift:
    """What became of one output of the samples in other company."""

    discrete: bool = False
    """Integer, bool and text: the share of elements that change is what counts."""
    samples: int = 0
    _largest: float = 0.0
    _changed: int = 0
    _count: int = 0
    _mean: float = 0.0
    _moment: float = 0.0

    def add(self, together: NDArray[Any], apart: NDArray[Any]) -> None:
        """One sample's numbers among others and among copies of itself, of equal shapes."""
        self.samples += 1
        same = (together == apart) | ((together != together) & (apart != apart))  # noqa: PLR0124  NaN is not itself
        self._changed += int(np.count_nonzero(~same))
        if self.discrete or not together.size:
            self._count += together.size
            return
        a, b = (np.where(same, 0.0, values) for values in (together, apart))
        shift = float(np.abs(a - b).max()) if np.isfinite(a).all() and np.isfinite(b).all() else inf
        self._largest = max(self._largest, shift)
        self._moments(together[np.isfinite(together)])

    def _moments(self, values: NDArray[Any]) -> None:
        """Chan, Golub & LeVeque 1979, as in ``fidelity``."""
        if not values.size:
            return
        mean, total = float(values.mean()), self._count + values.size
        step = mean - self._mean
        self._moment += float(((values - mean) ** 2).sum()) + step * step * self._count * values.size / total
        self._mean += step * values.size / total
        self._count = total

    @property
    def value(self) -> float | None:
        """Largest |shift| over the output's standard deviation, or the share of elements changed; None = no sample."""
        if not self.samples:
            return None
        if self.discrete:
            return self._changed / max(1, self._count)
        spread = sqrt(self._moment / max(1, self._count)) or abs(self._mean)
        return 0.0 if self._largest == 0 else self._largest / spread if spread else inf


def reason_not_to(signature: Signature) -> str:
    """Empty, or why a sample has no neighbours in this model."""
    if all(axis is None for axis in signature.batch_axes().values()):
        return "no input has a batch axis: a call is one sample"
    return "its batch size is fixed at 1: a sample has no neighbours" if signature.fixed_batch() == 1 else ""


def measure_shifts(
    run: Callable[[Arrays], Arrays],
    batches: Iterable[Batch],
    signature: Signature,
    options: Mapping[str, OutputOptions] | None = None,
) -> dict[str, Shift]:
    """Each sample's outputs in its batch against those in a batch of as many copies of it, at the same place.

    Copies instead of a batch of one, so that shapes, padding and with them the engine's kernels stay the same: a model
    whose samples are independent shifts by exactly 0.

    Args:
        run: the model, on one batch.
        batches: see ``neighbourhoods``.
        signature: the model's; says where the sample axis of each input and output is.
        options: output name -> masks and pooling, as for fidelity.
    """
    axes, shifts = signature.batch_axes(), dict[str, Shift]()
    for batch in batches:
        together = run(batch.inputs)
        rows = rows_of(batch, signature)
        for row in range(batch.size):
            apart = run(copies(batch.inputs, axes, row))
            for name, array in together.items():
                axis = output_axis(signature, name, array.shape, rows)
                shift = shifts.setdefault(name, Shift(discrete=not is_float(array)))
                if axis is not None and array.shape == apart[name].shape:
                    option = (options or {}).get(name, OutputOptions())
                    shift.add(*(_numbers(each, axis, row, name, option, batch) for each in (array, apart[name])))
    return shifts


def neighbourhoods(batches: Iterable[Batch], signature: Signature, samples: int = SAMPLES) -> Iterator[Batch]:
    """The first ``samples`` samples in batches of 2 and more; those that come one by one are put together.

    Rows that only pad a fixed batch size stay, and are neighbours too. Samples of a shape of their own have none.
    """
    axes, left = signature.batch_axes(), samples
    waiting: dict[tuple[object, ...], list[Arrays]] = {}
    for batch in batches:
        if left <= 0:
            break
        if rows_of(batch, signature) > 1:
            yield Batch(batch.inputs, min(batch.size, left))
            left -= batch.size
            continue
        alike = waiting.setdefault(tuple((name, array.shape) for name, array in batch.inputs.items()), [])
        alike.append(batch.inputs)
        if len(alike) == min(ROWS, left):
            yield _joined(alike, axes)
            left -= len(alike)
            alike.clear()
    yield from (_joined(alike[:left], axes) for alike in waiting.values() if len(alike) > 1 and left > 1)


def _joined(samples: list[Arrays], axes: Mapping[str, int | None]) -> Batch:
    first = samples[0]
    joined = {
        name: array if (axis := axes.get(name)) is None else np.concatenate([each[name] for each in samples], axis)
        for name, array in first.items()
    }
    return Batch(joined, len(samples))


def rows_of(batch: Batch, signature: Signature) -> int:
    """Rows of the batch, those that only pad it included."""
    axes = signature.batch_axes()
    sizes = (array.shape[axis] for name, array in batch.inputs.items() if (axis := axes.get(name)) is not None)
    return next(sizes, 1)


def copies(inputs: Arrays, axes: Mapping[str, int | None], row: int) -> Arrays:
    """The batch with the sample ``row`` in every place."""
    return {
        name: array if (axis := axes.get(name)) is None else np.repeat(array.take([row], axis), array.shape[axis], axis)
        for name, array in inputs.items()
    }


def output_axis(signature: Signature, name: str, shape: tuple[int, ...], rows: int) -> int | None:
    """The axis of samples of an output: as the signature names it, else the first, else the only one of that size."""
    stated = next((spec for spec in signature.outputs if spec.name == name), None)
    dims = stated.shape if stated is not None and stated.shape is not None else ()
    named = [axis for axis, dim in enumerate(dims) if dim in signature.batch_dims]
    if len(dims) == len(shape) and named:
        return named[0]
    fitting = [axis for axis, size in enumerate(shape) if size == rows]
    return fitting[0] if fitting and (fitting[0] == 0 or len(fitting) == 1) else None


def _numbers(array: Array, axis: int, row: int, name: str, options: OutputOptions, batch: Batch) -> Array:
    """What of one sample's output counts: floats as float64[n], masked or pooled as for fidelity."""
    moved = np.moveaxis(array, axis, 0)
    _, mask = find_mask(name, moved.shape, options, batch.inputs)
    kept = None if mask is None else mask[row : row + 1]
    if not is_float(array):
        return moved[row : row + 1][kept] if kept is not None else moved[row].reshape(-1)
    values, used = select(moved[row : row + 1], kept, options)
    return values[used] if used is not None else values.reshape(-1)
