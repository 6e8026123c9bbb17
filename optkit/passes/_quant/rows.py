"""What calibration data tell of an activation channel by channel: its extremes, and a few of its rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optkit.passes._quant.stream import Floats, stream

if TYPE_CHECKING:
    from optkit.data.dataset import Dataset
    from optkit.model.model import Model
    from optkit.passes._base import Context

CALLS = 32
"""Batches whose ranges stand for those of single calls."""


@dataclass(frozen=True)
class Channels:
    """One activation of K channels on the calibration data."""

    rows: Floats
    """[rows, K], taken from some of the batches."""
    row_call: NDArray[np.int64]
    """[rows]: the sampled batch that each comes from."""
    call_lows: Floats
    """[calls, K]: least value of each channel in all of a sampled batch."""
    call_highs: Floats
    """[calls, K]: greatest."""
    low: Floats
    """[K]: least value of each channel in all batches."""
    high: Floats
    """[K]: greatest."""

    def peaks(self) -> Floats:
        """float32[K]: greatest magnitude of each channel."""
        return np.maximum(self.high, -self.low)


class RowSampler:
    """Keeps about ``rows`` rows, evenly from at most ``calls`` of ``batches`` batches."""

    def __init__(self, batches: int, *, rows: int, calls: int = CALLS) -> None:
        self._every = max(1, math.ceil(batches / calls))
        self._each = max(1, math.ceil(rows / math.ceil(batches / self._every)))
        self._seen = 0
        self._rows: list[Floats] = []
        self._lows: list[Floats] = []
        self._highs: list[Floats] = []
        self._low = self._high = np.zeros(0, np.float32)

    def update(self, values: Floats) -> None:
        """Take note of a batch: [..., K]."""
        flat = values.reshape(-1, values.shape[-1])
        low, high = flat.min(axis=0), flat.max(axis=0)
        self._low = np.minimum(self._low, low) if self._seen else low
        self._high = np.maximum(self._high, high) if self._seen else high
        if self._seen % self._every == 0:
            places = np.linspace(0, len(flat) - 1, min(self._each, len(flat))).astype(np.int64)
            self._rows.append(flat[places])
            self._lows.append(low)
            self._highs.append(high)
        self._seen += 1

    def channels(self) -> Channels:
        """What was seen; at least one batch was."""
        calls = np.repeat(np.arange(len(self._rows)), [len(rows) for rows in self._rows])
        lows, highs = np.stack(self._lows), np.stack(self._highs)
        return Channels(np.concatenate(self._rows), calls, lows, highs, self._low, self._high)


def measure(model: Model, tensors: Sequence[str], ctx: Context, data: Dataset, rows: int) -> dict[str, Channels]:
    """Feed every batch once.

    Args:
        model: an ONNX model.
        tensors: inputs or inner tensors of its main graph, [..., K].
        ctx: runs the model.
        data: calibration samples.
        rows: how many to keep of each tensor, about.

    Returns:
        What is known of those that are float32.

    Raises:
        DataError, PassError: a tensor is infinite or NaN.
    """
    batches = math.ceil(data.count / data.batch)
    samplers: dict[str, RowSampler] = {}
    for arrays in stream(model, tensors, ctx, data):
        for name, values in arrays.items():
            samplers.setdefault(name, RowSampler(batches, rows=rows)).update(values)
    return {name: sampler.channels() for name, sampler in samplers.items()}
