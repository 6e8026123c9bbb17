"""Symmetric int8 quantization of weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 18
"""Elements that are rounded at a time, so that they stay in the processor's cache."""

Float32s = NDArray[np.float32]


def quantize_weights(
    weights: NDArray[Any], *, axis: int | None, reduce_range: bool
) -> tuple[NDArray[np.int8], Float32s]:
    """Round ``weights`` to ``scale * int8``, zero point 0, as onnxruntime's quantizer does.

    Args:
        weights: float32[...].
        axis: the axis of output channels, 0 or -1, each with its own scale; None = one scale for all.
        reduce_range: use 7 bits (-64..64), for processors whose int8 instructions saturate at 16 bits.

    Returns:
        int8 of the same shape, C-contiguous, and float32[channels] (float32[] without an axis).
    """
    rows = weights.reshape(-1, weights.shape[-1]) if axis != 0 else weights.reshape(weights.shape[0], -1)
    scale = _scales(rows, axis, 64 if reduce_range else 127)
    divisor = scale[:, None] if axis == 0 else np.broadcast_to(scale, (1, rows.shape[1]))
    out = np.empty(rows.shape, np.int8)
    step = max(1, BLOCK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        part = rows[start : start + step] / (divisor[start : start + step] if axis == 0 else divisor)
        out[start : start + step] = np.rint(part, out=part)
    return out.reshape(weights.shape), scale


def unfit(weights: NDArray[Any]) -> str:
    """Why floats cannot be rounded: there are none, or some are infinite or NaN; empty where they can."""
    if weights.size == 0:
        return "its weights are empty"
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(weights.min()) and np.isfinite(weights.max())
    return "" if finite else "some of its weights are infinite or NaN"


def _scales(rows: NDArray[Any], axis: int | None, top: int) -> Float32s:
    reduce: Any = {None: None, 0: 1, -1: 0}[axis]
    if rows.size == 0:
        return np.ones(() if axis is None else rows.shape[axis], np.float32)
    peak = np.maximum(rows.max(axis=reduce), -rows.min(axis=reduce))
    scale = np.asarray(peak / np.float32(top), np.float32)
    # Below the smallest normal float a quotient overflows; such a channel is zero for all purposes.
    return np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
