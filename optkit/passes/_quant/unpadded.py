"""Samples without padding, for algorithms that learn from activations: those of padding would count like real ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optkit.data.dataset import take
from optkit.model.signature import Signature

if TYPE_CHECKING:
    from torch import Tensor

    from optkit.data.dataset import Arrays, Batch, Dataset
    from optkit.passes._base import Context

MASK = "attention_mask"
ENOUGH = 10
"""Positions of text for each input of a layer: SmolLM2 on 1.3 was worse after GPTQ than after plain rounding."""
ENOUGH_SAMPLES = 32
"""Where positions cannot be told from the inputs."""


def unpadded_tensors(ctx: Context, samples: int) -> Iterator[dict[str, Tensor]]:
    """At most so many calibration samples as arguments of the original's module; see ``unpadded``."""
    from optkit.model.torch_call import to_tensor

    data, signature = ctx.batches("calibration"), ctx.original.signature
    done, total = 0, min(samples, data.count)
    for arrays, size in unpadded(data, signature, samples):
        yield {name: to_tensor(name, array, signature.input(name).dtype) for name, array in arrays.items()}
        done += size
        ctx.progress(done, total)


def few(ctx: Context, samples: int, width: int) -> list[str]:
    """A sentence where there are too few calibration data for a layer of ``width`` inputs."""
    data, signature = ctx.batches("calibration"), ctx.original.signature
    if all(spec.name != MASK for spec in signature.inputs):
        count = min(samples, data.count)
        return [f"only {count} calibration samples: 128 are usual"] if count < ENOUGH_SAMPLES else []
    rows = sum(arrays[MASK].size for arrays, _ in unpadded(data, signature, samples))
    told = f"only {rows} positions of calibration text for a layer of {width} inputs: {ENOUGH * width} are usual"
    return [told] if rows < ENOUGH * width else []


def shown(values: NDArray[np.float32], batch: Batch) -> NDArray[np.float32]:
    """The rows of a tensor that the batch's ``attention_mask`` shows; all where its rows are not the mask's positions.

    Args:
        values: [batch, seq, ..., width] or [batch x seq, width].
        batch: its ``attention_mask`` is [batch, seq].
    """
    mask = batch.inputs.get(MASK)
    if mask is None or mask.ndim != 2:
        return values
    kept: NDArray[np.bool_] = mask[: batch.size] != 0
    if values.shape[:2] == kept.shape and values.ndim > 2:
        return values[kept]
    return values[kept.ravel()] if values.ndim == 2 and len(values) == kept.size else values


def unpadded(data: Dataset, signature: Signature, limit: int) -> Iterator[tuple[Arrays, int]]:
    """(inputs by name, how many samples they are) of at most ``limit`` samples.

    Whole batches; where ``attention_mask`` has zeros, the batch's samples one by one, each cut to what its mask shows.
    A model whose batch is fixed takes no less than that: it gets whole batches in any case, the last one filled up.
    """
    axes = signature.batch_axes()
    fixed = (signature.fixed_batch() or 1) > 1
    for batch in data.batches():
        size = min(batch.size, limit)
        if size == 0:
            return
        limit -= size
        length = None if fixed else size
        rows = {name: take(array, axes.get(name), slice(length)) for name, array in batch.inputs.items()}
        if fixed or MASK not in rows or axes.get(MASK) != 0 or rows[MASK].all():
            yield rows, size
        else:
            yield from ((_sample(rows, signature, index), 1) for index in range(size) if rows[MASK][index].any())


def _sample(rows: Arrays, signature: Signature, index: int) -> Arrays:
    """One sample; every input with the mask's dimensions is cut along the second of them."""
    like = signature.input(MASK).shape
    shown = np.flatnonzero(rows[MASK][index])
    axes = signature.batch_axes()
    one = {name: take(array, axes.get(name), slice(index, index + 1)) for name, array in rows.items()}
    return {name: array[:, shown] if signature.input(name).shape == like else array for name, array in one.items()}
