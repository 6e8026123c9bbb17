"""What calibration finds out about activations, batch by batch in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from optkit.passes._quant.calibrators import Bounds, Calibration, Floats, Range
from optkit.passes._quant.stream import stream

if TYPE_CHECKING:
    from optkit.data.dataset import Dataset
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


def ranges_by(
    calibration: Calibration, percentile: float, model: Model, tensors: Mapping[str, int | None], ctx: Context
) -> Activations:
    """As ``recall``, on split calibration, by a calibrator that passes name."""
    from optkit.passes._quant.calibrators import calibrator

    facts = {"calibration": calibration, "percentile": percentile}
    data = ctx.batches("calibration")
    return recall(model, tensors, ctx, data, lambda: calibrator(calibration, percentile), facts)


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
    groups[0] += [name for name in tensors if name in inputs]
    for run, group in enumerate(groups):
        for arrays in stream(model, group, ctx, data, run=run, runs=len(groups)):
            for name, values in arrays.items():
                watches.setdefault(name, _Watch(make(), tensors[name])).update(values)
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
