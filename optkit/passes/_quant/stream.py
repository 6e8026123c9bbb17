"""Tensors of a model on calibration data, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optkit.data.dataset import take
from optkit.errors import DataError, PassError

if TYPE_CHECKING:
    from optkit.data.dataset import Array, Dataset
    from optkit.model.model import Model
    from optkit.passes._base import Context

Floats = NDArray[np.float32]


def stream(
    model: Model, names: Sequence[str], ctx: Context, data: Dataset, *, run: int = 0, runs: int = 1
) -> Iterator[dict[str, Floats]]:
    """Those of ``names`` that are float32 and not empty, on every batch, without padding rows.

    Args:
        model: an ONNX model.
        names: inputs, outputs or inner tensors of its main graph.
        ctx: runs the model, and is told how far that is.
        data: calibration samples.
        run: the number of this run over the data, of ``runs`` that are made of them.

    Raises:
        DataError: an input is infinite or NaN.
        PassError: another tensor becomes that.
    """
    inputs = {spec.name for spec in model.signature.inputs}
    given, inner = ([name for name in names if (name in inputs) == known] for known in (True, False))
    axes, batches = model.signature.batch_axes(), math.ceil(data.count / data.batch)
    fed = data.batches() if given else repeat(None)
    results = ctx.run(model, data, outputs=inner) if inner else repeat({})
    for done, (batch, found) in enumerate(zip(fed, results, strict=False)):
        taken = {} if batch is None else {name: batch.inputs[name] for name in given if name in batch.inputs}
        rows = {name: take(array, axes.get(name), slice(batch.size)) for name, array in taken.items()} if batch else {}
        arrays = {name: array for name, array in {**rows, **found}.items() if array.dtype == np.float32 and array.size}
        for name, array in arrays.items():
            _check_finite(name, array, done * data.batch, axes.get(name, 0) if name in inputs else None)
        yield {name: array.astype(np.float32, copy=False) for name, array in arrays.items()}
        ctx.progress(run * batches + done + 1, max(runs * batches, run * batches + done + 1))


def _check_finite(name: str, values: Array, first: int, axis: int | None) -> None:
    """``first`` = number of the batch's first sample, ``axis`` = that of an input's samples."""
    with np.errstate(invalid="ignore"):
        if np.isfinite(values.min()) and np.isfinite(values.max()):
            return
    if axis is not None:
        row = int(np.argwhere(~np.isfinite(values))[:, axis].min()) if values.ndim else 0
        raise DataError(
            f"The calibration data are infinite or NaN in input '{name}', first in sample {first + row}.",
            expected="finite numbers",
            fix="leave this sample out, or mend how it is made",
        )
    raise PassError(
        f"The tensor '{name}' becomes infinite or NaN on the calibration data, so it has no range to quantize"
        f" (in the batch that begins with sample {first}).",
        expected="finite activations",
        fix="check the calibration data and the weights, or leave the nodes around this tensor out with 'exclude',"
        " where the pass has it",
    )
