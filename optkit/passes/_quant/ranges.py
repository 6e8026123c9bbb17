"""What calibration finds out about activations, batch by batch in constant memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from optkit.errors import DataError, PassError
from optkit.passes._quant.calibrators import Bounds, Floats, Range

if TYPE_CHECKING:
    from optkit.data.dataset import Array, Arrays, Dataset
    from optkit.model.model import Model
    from optkit.passes._base import Context

MEMORY = 128_000_000
"""Bytes of activations of one batch that are fetched at a time; what is more waits for another run over the data."""


@dataclass(frozen=True)
class Activation:
    """What is known of a float32 tensor; plain numbers."""

    bounds: Bounds
    """Lowest and highest value to represent."""
    seen: Bounds
    """Least and greatest value."""
    elements: int
    """In the largest batch."""
    means: list[float] = field(default_factory=list)
    """Of each channel, where asked for."""


Activations = Mapping[str, Activation]


class _Watch:
    """Statistics of one tensor while batches pass."""

    def __init__(self, values: Range, axis: int | None) -> None:
        self._range, self._axis = values, axis
        self._elements, self._count = 0, 0
        self._sum: Any = 0.0

    def update(self, values: Floats) -> None:
        self._range.update(values)
        self._elements = max(self._elements, values.size)
        if self._axis is not None and -values.ndim <= self._axis < values.ndim:
            others = tuple(axis for axis in range(values.ndim) if axis != self._axis % values.ndim)
            self._sum = self._sum + values.sum(axis=others, dtype=np.float64)
            self._count += values.size // values.shape[self._axis]

    def found(self) -> Activation:
        means = (self._sum / self._count).tolist() if self._count else []
        return Activation(self._range.bounds(), self._range.seen(), self._elements, means)


def recall(
    model: Model,
    tensors: Mapping[str, int | None],
    ctx: Context,
    data: Dataset,
    make: Callable[[], Range],
    facts: Mapping[str, Any],
) -> Activations:
    """As ``measure``, or what it found in another run with the same model, tensors, data and ``facts`` of ``make``."""

    def measured() -> dict[str, Any]:
        return {name: asdict(found) for name, found in measure(model, tensors, ctx, data, make).items()}

    known = {"model": model.digest, "tensors": dict(tensors), "data": data.digest, **facts}
    return {
        name: Activation(**{**found, "bounds": tuple(found["bounds"]), "seen": tuple(found["seen"])})
        for name, found in ctx.remember(known, measured).items()
    }


def measure(
    model: Model, tensors: Mapping[str, int | None], ctx: Context, data: Dataset, make: Callable[[], Range]
) -> Activations:
    """Feed every batch once, and say what is known of those of ``tensors`` that are float32.

    Args:
        model: an ONNX model.
        tensors: inputs, outputs or inner tensors of it -> the axis of the channels whose means are wanted, if any.
        ctx: runs the model.
        data: calibration samples.
        make: a fresh range.

    Raises:
        DataError: an input is infinite or NaN.
        PassError: an inner tensor becomes that.
    """
    watches: dict[str, _Watch] = {}
    inputs = {spec.name for spec in model.signature.inputs}
    groups = _groups(model, [name for name in tensors if name not in inputs], ctx, data)
    total = len(groups) * math.ceil(data.count / data.batch)
    runs = (run for group in groups for run in _runs(model, group, ctx, data, inputs=group is groups[0]))
    for done, (arrays, first) in enumerate(runs, start=1):
        for name, values in arrays.items():
            if name in tensors and values.dtype == np.float32 and values.size:
                _check_finite(name, values, first, name in inputs)
                watch = watches.setdefault(name, _Watch(make(), tensors[name]))
                watch.update(values.astype(np.float32, copy=False))
        ctx.progress(done, max(done, total))
    return {name: watch.found() for name, watch in watches.items()}


def _groups(model: Model, inner: list[str], ctx: Context, data: Dataset) -> list[list[str]]:
    """Inner tensors to fetch in one go over the data, so that a batch of them needs about ``MEMORY`` bytes at most."""
    if not inner:
        return [[]]
    one = data.subset(np.zeros(1, np.int64), data.split)
    sizes = {
        name: array.nbytes * data.batch for found in ctx.run(model, one, outputs=inner) for name, array in found.items()
    }
    groups: list[list[str]] = [[]]
    room = MEMORY
    for name in inner:
        room -= sizes[name]
        if room < 0 and groups[-1]:
            groups.append([])
            room = MEMORY - sizes[name]
        groups[-1].append(name)
    return groups


def _runs(
    model: Model, inner: list[str], ctx: Context, data: Dataset, *, inputs: bool
) -> Iterator[tuple[Mapping[str, Array], int]]:
    """Batch by batch, without padding rows: inner tensors and, where asked for, inputs; number of the first sample."""
    axes = model.signature.batch_axes()
    results: Iterator[Arrays] = ctx.run(model, data, outputs=inner) if inner else iter(dict, None)
    first = 0
    for batch, found in zip(data.batches(), results, strict=False):
        given = batch.inputs if inputs else {}
        yield {name: _trim(array, axes.get(name), batch.size) for name, array in given.items()} | found, first
        first += batch.size


def _trim(array: Array, axis: int | None, size: int) -> Array:
    return array if axis is None else array[(slice(None),) * axis + (slice(size),)]


def _check_finite(name: str, values: Array, first: int, given: bool) -> None:
    finite = np.isfinite(values)
    if finite.all():
        return
    if given:
        row = int(np.argwhere(~finite)[0][0]) if values.ndim else 0
        raise DataError(
            f"The calibration data are infinite or NaN in input '{name}', first in sample {first + row}.",
            expected="finite numbers",
            fix="leave this sample out, or mend how it is made",
        )
    raise PassError(
        f"The tensor '{name}' becomes infinite or NaN on the calibration data, so it has no range to quantize"
        f" (in the batch that begins with sample {first}).",
        expected="finite activations",
        fix="check the calibration data, or leave the nodes around this tensor out with 'exclude'",
    )
