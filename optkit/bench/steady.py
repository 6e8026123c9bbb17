"""The steady state of one candidate, from the calls of its blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optkit.bench.facts import Steady
from optkit.bench.open_loop import percentiles


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
