"""Which numbers of an output are compared: one row a sample, masked or pooled first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from optkit.data.dataset import Array, Arrays, Batch, take
from optkit.errors import DataError
from optkit.model.signature import Signature

Float64 = NDArray[np.float64]
Mask = NDArray[np.bool_]
Pool = Literal["mean", "cls", "last"]

BLOCK = 1 << 16
"""Numbers compared at once: bounds the memory of the float64 copies, and keeps them in the CPU's cache."""

AUTOMATIC_MASK = "attention_mask"
"""The input that masks outputs of rank 3 and more by itself, where it shares their first two axes."""


class OutputOptions(BaseModel):
    """How one output is compared."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    mask: str | bool | None = None
    """Input [batch, seq] whose zeros leave positions out; false = none; default: an ``attention_mask`` that fits."""
    pool: Pool | None = None
    """Reduce [batch, seq, ...] over seq first: mean, first (cls) or last position that is not masked."""
    classes: bool | None = None
    """Whether the last axis holds class scores; default: judged by the labels and the output's name."""


def dtype_name(array: Array) -> str:
    """The dtype as a signature names it: every kind of text is ``string``."""
    return "string" if array.dtype.kind in "OUST" else array.dtype.name


def is_float(array: Array) -> bool:
    """True for float16/32/64, and for bfloat16 and float8 as ml_dtypes brings them."""
    return array.dtype.name.startswith(("float", "bfloat"))


def sample_axis(signature: Signature, name: str, shape: tuple[int, ...]) -> bool | None:
    """Whether axis 0 of the output of this ``shape`` counts samples, where the signature tells; else None.

    It does where its dimension is the inputs' dynamic batch; it does not where its size is fixed and the batch is not.
    """
    batches = {
        spec.shape[axis]
        for spec in signature.inputs
        if spec.shape and (axis := signature.batch_axes()[spec.name]) is not None
    }
    stated = next((spec.shape[0] for spec in signature.outputs if spec.name == name and spec.shape), None)
    if stated is None or not shape or not all(isinstance(dim, str) for dim in batches) or not batches:
        return None
    if stated in batches:
        return True
    return False if stated == shape[0] else None


def trim(batch: Batch, signature: Signature) -> Batch:
    """The batch without the padding rows beyond its size, on the sample axis of each input."""
    axes = signature.batch_axes()
    inputs = {name: take(array, axes.get(name), slice(batch.size)) for name, array in batch.inputs.items()}
    return Batch(inputs, batch.size, batch.labels, batch.groups)


def find_mask(name: str, shape: tuple[int, ...], options: OutputOptions, inputs: Arrays) -> tuple[str, Mask | None]:
    """The name and values, bool[batch, seq], of the mask for an output of ``shape``; ("", None) = not masked.

    Raises:
        DataError: the options name an input that is not there or does not share the output's first two axes.
    """
    if options.mask is False:
        return "", None
    wanted = options.mask if isinstance(options.mask, str) else None
    mask = inputs.get(wanted or AUTOMATIC_MASK)
    fits = mask is not None and mask.ndim == 2 and mask.shape == shape[:2]
    if wanted and not fits:
        given = ", ".join(f"{key}{list(value.shape)}" for key, value in inputs.items())
        raise DataError(
            f"Output '{name}' {list(shape)} cannot be masked by '{wanted}'.",
            expected=f"an input with the axes {list(shape[:2])}; the inputs are {given}",
            fix=f"name another input in outputs: {{{name}: {{mask: ...}}}}, or mask: false",
        )
    if mask is None or not fits or (wanted is None and len(shape) < 3):
        return "", None
    return wanted or AUTOMATIC_MASK, mask.astype(bool)


def pool_rows(values: Float64, mask: Mask | None, how: Pool) -> Float64:
    """Reduce float64[n, seq, ...] to float64[n, ...] over the positions that ``mask`` (bool[n, seq]) keeps.

    ``cls`` is the first kept position (also under left padding), ``last`` the last one; the mean over none is 0.
    """
    kept = np.ones(values.shape[:2], bool) if mask is None else mask
    if how == "mean":
        shaped = kept.reshape(kept.shape + (1,) * (values.ndim - 2))
        total: Float64 = np.where(shaped, values, 0.0).sum(axis=1)
        mean: Float64 = total / np.maximum(shaped.sum(axis=1), 1)
        return mean
    at = kept.argmax(axis=1) if how == "cls" else kept.shape[1] - 1 - kept[:, ::-1].argmax(axis=1)
    picked: Float64 = values[np.arange(len(values)), at]
    return picked


class Piece(NamedTuple):
    """Some rows of both outputs, or a part of one row where a row is larger than a block."""

    row: int
    """The first row, or the one that this is a part of; the parts of a row follow each other."""
    a: Float64
    """The original, float64[n, numbers]."""
    b: Float64
    """The result, of the same shape."""
    used: Mask | None
    """bool[n, numbers]: what counts; None = all of it."""
    width: int
    """Numbers in a whole row, masked ones included."""


def pieces(original: Array, result: Array, mask: Mask | None, options: OutputOptions) -> Iterator[Piece]:
    """Two float outputs [n, ...] of one shape, piece by piece; ``mask`` is bool[n, seq].

    The last axis is never cut. A row that is pooled is never cut either, so that one is copied as a whole.
    """
    size = max(1, original[:1].size)
    if size > BLOCK and original.ndim > 2 and options.pool is None:
        for row in range(len(original)):
            parts = _parts(original[row], result[row], None if mask is None else mask[row])
            yield from (Piece(row, a, b, None, size) for a, b in parts)
        return
    step = max(1, BLOCK // size)
    for row in range(0, len(original), step):
        rows = slice(row, row + step)
        part = None if mask is None else mask[rows]
        a, used = select(original[rows], part, options)
        b, _ = select(result[rows], part, options)
        yield Piece(row, a, b, used, a.shape[1])


def _parts(a: Array, b: Array, kept: Mask | None) -> Iterator[tuple[Float64, Float64]]:
    """One row [seq, ...] of both as float64[1, numbers], without the positions that are masked; at least one part."""
    lines = [x.reshape(-1, x.shape[-1]) for x in (a, b)]
    index = np.arange(len(lines[0])) if kept is None else np.flatnonzero(np.repeat(kept, len(lines[0]) // len(kept)))
    step = max(1, BLOCK // a.shape[-1])
    for start in range(0, max(1, len(index)), step):
        some = index[start : start + step]
        one, other = (line[some].astype(np.float64).reshape(1, -1) for line in lines)
        yield one, other


def select(array: Array, mask: Mask | None, options: OutputOptions) -> tuple[Float64, Mask | None]:
    """A float output [n, ...] as float64[n, width], and bool[n, width] of what counts (None = all of it)."""
    values = array.astype(np.float64)
    if options.pool is not None:
        values, mask = pool_rows(values, mask, options.pool), None
    return values.reshape(len(values), -1), flat_mask(mask, values.shape)


def flat_mask(mask: Mask | None, shape: tuple[int, ...]) -> Mask | None:
    """bool[n, seq] spread over an output of ``shape`` [n, seq, ...] and flattened to bool[n, width]."""
    if mask is None:
        return None
    spread = mask.reshape(mask.shape + (1,) * (len(shape) - 2))
    return np.broadcast_to(spread, shape).reshape(shape[0], -1)
