"""Ranges of activations, measured batch by batch in constant memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from optkit.errors import PassError

if TYPE_CHECKING:
    from optkit.data.dataset import Array, Arrays, Dataset
    from optkit.model.model import Model
    from optkit.passes._base import Context

BINS = 4096
"""Bins of a histogram. At least half of them always span the values seen, so one bin is at most 1/1024 of the peak."""


class Range(Protocol):
    """What is known of one tensor's values so far."""

    def update(self, values: NDArray[np.float32]) -> None:
        """Take note of more values (any shape, at least one)."""

    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value to represent."""


class MinMax:
    """Every value seen is to be represented."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf

    def update(self, values: NDArray[np.float32]) -> None:
        """Widen to the least and the greatest of ``values``."""
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def bounds(self) -> tuple[float, float]:
        """Least and greatest value seen."""
        return self.low, self.high


class Percentile:
    """All but the outermost values are to be represented: ``percentile`` % of them, half of the rest cut off each side.

    The histogram spans ``[-limit, limit]``. When a greater value comes, the limit doubles and bins are merged in pairs.
    """

    def __init__(self, percentile: float) -> None:
        self._tail = (1 - percentile / 100) / 2
        self._seen = MinMax()
        self._limit = 0.0
        self._counts = np.zeros(BINS, np.int64)

    def update(self, values: NDArray[np.float32]) -> None:
        """Count ``values`` in their bins."""
        self._seen.update(values)
        peak = max(-self._seen.low, self._seen.high, float(np.finfo(np.float32).tiny))
        self._limit = self._limit or peak
        while self._limit < peak:
            self._double()
        places = (values.reshape(-1) / self._limit + 1) * (BINS / 2)
        self._counts += np.bincount(places.astype(np.int32).clip(0, BINS - 1), minlength=BINS)

    def bounds(self) -> tuple[float, float]:
        """The outer edges of the bins that hold the two quantiles, within what was seen."""
        share = np.cumsum(self._counts) / self._counts.sum()
        first, last = np.searchsorted(share, self._tail, side="right"), np.searchsorted(share, 1 - self._tail)
        width = 2 * self._limit / BINS
        low, high = first * width - self._limit, (last + 1) * width - self._limit
        return max(float(low), self._seen.low), min(float(high), self._seen.high)

    def _double(self) -> None:
        merged = self._counts.reshape(-1, 2).sum(axis=1)
        self._counts = np.pad(merged, BINS // 4)
        self._limit *= 2


def measure_ranges(
    model: Model, tensors: Sequence[str], ctx: Context, data: Dataset, make: Callable[[], Range]
) -> dict[str, Range]:
    """Feed every batch once, and keep what ``make`` makes for each of ``tensors`` that is float32.

    Args:
        model: an ONNX model.
        tensors: inputs, outputs or inner tensors of it.
        ctx: runs the model.
        data: calibration samples.
        make: a fresh range.

    Raises:
        PassError: a tensor becomes infinite or NaN.
    """
    ranges: dict[str, Range] = {}
    inputs = {spec.name for spec in model.signature.inputs}
    inner = [name for name in tensors if name not in inputs]
    for done, arrays in enumerate(_runs(model, inner, ctx, data), start=1):
        for name in tensors:
            if arrays[name].dtype == np.float32 and arrays[name].size:
                values = arrays[name].astype(np.float32, copy=False)
                _check_finite(name, values)
                ranges.setdefault(name, make()).update(values)
        ctx.progress(done, max(done, math.ceil(data.count / data.batch)))
    return ranges


def _runs(model: Model, inner: Sequence[str], ctx: Context, data: Dataset) -> Iterator[Mapping[str, Array]]:
    """Inputs and inner tensors by name, batch by batch, without padding rows."""
    axes = model.signature.batch_axes()
    results: Iterator[Arrays] = ctx.run(model, data, outputs=inner) if inner else iter(dict, None)
    for batch, found in zip(data.batches(), results, strict=False):
        yield {name: _trim(array, axes.get(name), batch.size) for name, array in batch.inputs.items()} | found


def _trim(array: Array, axis: int | None, size: int) -> Array:
    return array if axis is None else array[(slice(None),) * axis + (slice(size),)]


def _check_finite(name: str, values: NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        raise PassError(
            f"The tensor '{name}' becomes infinite or NaN on the calibration data, so it has no range to quantize.",
            expected="finite activations",
            fix="check the calibration data, or leave the nodes around this tensor out with 'exclude'",
        )
