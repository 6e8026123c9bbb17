"""Second moments of the inputs of layers on calibration data, streamed, a group of inputs at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from optkit.passes._quant.stream import Floats, stream
from optkit.passes._quant.unpadded import shown

if TYPE_CHECKING:
    from optkit.data.dataset import Dataset
    from optkit.model.model import Model
    from optkit.passes._base import Context

GROUP_BYTES = 1 << 29
"""Bytes that the moments of one group may take together (a single input may take more). The calibration data run once
for each group."""


@dataclass
class Moments:
    """What is known of an input ``x`` of ``width`` channels, whose rows are all but its last axis."""

    square: Floats
    """float32[width, width]: sum of ``x x^T``."""
    size: Floats
    """float32[width]: sum of ``|x|``."""
    rows: int = 0

    @classmethod
    def of(cls, width: int) -> Moments:
        """Of nothing yet."""
        return cls(np.zeros((width, width), np.float32), np.zeros(width, np.float32))

    def add(self, values: Floats) -> None:
        """Take note of more rows: [..., width]."""
        rows = values.reshape(-1, values.shape[-1])
        self.square += rows.T @ rows
        self.size += np.abs(rows).sum(axis=0)
        self.rows += len(rows)


def grouped(widths: Mapping[str, int], limit: int = GROUP_BYTES) -> Iterator[list[str]]:
    """The names of ``widths`` in order, as many at a time as fit ``limit`` bytes of moments, and at least one."""
    group: list[str] = []
    room = limit
    for name, width in widths.items():
        size = 4 * width * width
        if group and size > room:
            yield group
            group, room = [], limit
        group.append(name)
        room -= size
    if group:
        yield group


def measure(model: Model, widths: Mapping[str, int], ctx: Context, data: Dataset) -> dict[str, Moments]:
    """Feed every batch once. Positions of padding do not count.

    Args:
        model: an ONNX model.
        widths: inputs or inner tensors of its main graph -> size of their last axis.
        ctx: runs the model.
        data: calibration samples.

    Raises:
        DataError, PassError: a tensor is infinite or NaN.
    """
    found = {name: Moments.of(width) for name, width in widths.items()}
    for batch, arrays in zip(data.batches(), stream(model, list(widths), ctx, data), strict=False):
        for name, values in arrays.items():
            found[name].add(shown(values, batch))
    return found


def few(moments: Sequence[Moments]) -> str:
    """A sentence where there are fewer rows than channels, so that the data leave directions out; else empty."""
    short = [each for each in moments if each.rows < len(each.size)]
    if not short:
        return ""
    worst = max(short, key=lambda each: len(each.size) / max(1, each.rows))
    return (
        f"only {worst.rows} rows of calibration data (samples x positions) for a layer of {len(worst.size)} inputs: "
        f"at least as many are needed, and 10 times as many are usual"
    )
