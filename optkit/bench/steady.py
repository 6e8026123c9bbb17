"""The steady state of one candidate, from the calls of its blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optkit.bench.facts import Steady
from optkit.bench.open_loop import percentiles
from optkit.data.dataset import Arrays


def steady_of(blocks: Sequence[Sequence[float]], *, launches: int, rows: int) -> Steady:
    """Facts of the blocks.

    Args:
        blocks: seconds of each call, block by block.
        launches: processes they come from.
        rows: samples in one call.
    """
    seconds = np.concatenate([np.asarray(block) for block in blocks])
    medians = np.array([np.median(block) for block in blocks])
    low, middle, high = np.percentile(medians, [25, 50, 75])
    return Steady(
        median_ms=float(np.median(seconds)) * 1e3,
        mean_ms=float(seconds.mean()) * 1e3,
        percentiles=percentiles(seconds),
        throughput=rows / float(seconds.mean()),
        calls=len(seconds),
        blocks=len(blocks),
        launches=launches,
        spread=float((high - low) / middle),
    )


def rows_of(inputs: Arrays) -> int:
    """Samples in one batch: the size of axis 0 where all inputs that have one agree; else 1."""
    sizes = {len(array) for array in inputs.values() if array.ndim}
    return sizes.pop() if len(sizes) == 1 else 1
