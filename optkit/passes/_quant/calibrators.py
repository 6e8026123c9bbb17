"""From the values of an activation to the range that is to be represented, in constant memory."""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

BINS = 4096
"""Bins of a histogram. At least half of them always span the values seen, so one bin is at most 1/1024 of the peak."""
SAMPLE = 1 << 16
"""Values of a batch that are put into a histogram, evenly spaced; extremes are taken of all."""
SHRINKS = 32
"""How many smaller bounds ``Mse`` tries for either side."""

Bounds = tuple[float, float]
Floats = NDArray[np.float32]
Calibration = Literal["minmax", "percentile", "mse"]


class Range(Protocol):
    """What is known of one tensor's values so far."""

    def update(self, values: Floats) -> None:
        """Take note of more values (any shape, at least one)."""

    def bounds(self) -> Bounds:
        """Lowest and highest value to represent."""

    def seen(self) -> Bounds:
        """Least and greatest value."""


class MinMax:
    """Every value seen is to be represented."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf

    def update(self, values: Floats) -> None:
        """Widen to the least and the greatest of ``values``."""
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def bounds(self) -> Bounds:
        """Least and greatest value seen."""
        return self.low, self.high

    def seen(self) -> Bounds:
        """The same."""
        return self.low, self.high


class Histogram(MinMax):
    """How often values were seen.

    It spans ``[-limit, limit]``. When a greater value comes, the limit doubles and bins are merged in pairs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.limit = 0.0
        self.counts = np.zeros(BINS, np.int64)

    def update(self, values: Floats) -> None:
        """Count ``values``, or a part of them, in their bins."""
        super().update(values)
        peak = max(-self.low, self.high, float(np.finfo(np.float32).tiny))
        self.limit = self.limit or peak
        while self.limit < peak:
            self._double()
        flat = values.reshape(-1)
        # An odd step visits every channel, whichever axis they are on.
        step = 1 if flat.size <= SAMPLE else (flat.size // SAMPLE + 1) | 1
        places = (flat[::step] * np.float32(1 / self.limit) + 1) * (BINS / 2)
        self.counts += np.bincount(places.astype(np.int32).clip(0, BINS - 1), minlength=BINS)

    @property
    def width(self) -> float:
        """Of a bin."""
        return 2 * self.limit / BINS

    def _double(self) -> None:
        merged = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.pad(merged, BINS // 4)
        self.limit *= 2


class Percentile(Histogram):
    """All but the outermost values are to be represented: ``percentile`` % of them, half of the rest cut off each side.

    Source: Wu et al. 2020, "Integer Quantization for Deep Learning Inference: Principles and Empirical Evaluation".
    """

    def __init__(self, percentile: float) -> None:
        super().__init__()
        self._tail = (1 - percentile / 100) / 2

    def bounds(self) -> Bounds:
        """The outer edges of the bins that hold the two quantiles, within what was seen."""
        share = np.cumsum(self.counts) / self.counts.sum()
        first, last = np.searchsorted(share, self._tail, side="right"), np.searchsorted(share, 1 - self._tail)
        low, high = first * self.width - self.limit, (last + 1) * self.width - self.limit
        return max(float(low), self.low), min(float(high), self.high)


class Mse(Histogram):
    """The bounds between which rounding to 256 levels, and cutting off the rest, has the least mean squared error.

    Source: Nagel et al. 2021, "A White Paper on Neural Network Quantization", section 3.1, range setting by MSE.
    """

    def bounds(self) -> Bounds:
        """Of bounds that are smaller by steps, first both sides alike, then each: the best."""
        values = (np.arange(BINS) + 0.5) * self.width - self.limit
        filled = self.counts > 0
        values, counts = values[filled], self.counts[filled]
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        sides = [(low * part, high * part) for part in np.arange(SHRINKS, 0, -1) / SHRINKS]
        low, high = min(sides, key=lambda bounds: _error(values, counts, *bounds))
        for _ in range(2):
            low = min(_around(low, self.low), key=lambda side: _error(values, counts, side, high))
            high = min(_around(high, self.high), key=lambda side: _error(values, counts, low, side))
        return low, high


def _around(bound: float, limit: float) -> list[float]:
    """Bounds from 0.6 to 1.4 times one, that one first, none beyond ``limit``."""
    parts = [1.0, *np.linspace(0.6, 1.4, SHRINKS)]
    return [float(bound * part) for part in parts if abs(bound * part) <= max(abs(limit), abs(bound))]


def _error(values: NDArray[Any], counts: NDArray[np.int64], low: float, high: float) -> float:
    """Sum of squared errors; what lies between is rounded by up to half a step either way."""
    outside = values - values.clip(low, high)
    inside = outside == 0
    return float((outside**2 * counts).sum() + counts[inside].sum() * ((high - low) / 255) ** 2 / 12)


def calibrator(kind: Calibration, percentile: float) -> Range:
    """A fresh one."""
    return {"minmax": MinMax, "percentile": lambda: Percentile(percentile), "mse": Mse}[kind]()
