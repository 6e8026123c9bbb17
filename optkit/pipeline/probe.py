"""One run of the original: it completes the signature, and shows that the model works at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from optkit.data.dataset import Arrays, Dataset
from optkit.model.model import Model
from optkit.model.signature import Signature, TensorSpec
from optkit.model.target import Target
from optkit.pipeline.contract import check_split
from optkit.pipeline.isolate import isolated, needs_child
from optkit.pipeline.job import Job
from optkit.pipeline.reference import ensure_references, made_up_told, original_outputs, original_target
from optkit.runner.open import open_runner


def probe(job: Job, *, write: bool) -> Model:
    """The original with its signature completed by a run; with ``write`` that run is kept for the verdict."""
    original, evaluation = job.original, job.splits["evaluation"]
    if write:
        ensure_references(job, [evaluation, check_split(job)] if "search" in job.splits else [evaluation])
        if original.signature.complete:
            return original
        inputs, outputs = next(iter(evaluation.batches())).inputs, next(original_outputs(job, evaluation))
    else:
        inputs, outputs = isolated(needs_child(original), _run_once, original, job.target, _head(evaluation))
    sizes, batch = _sizes(original.signature, inputs), _batch(original.signature, inputs)
    made = tuple(TensorSpec(name, str(array.dtype), _named(array, sizes, batch)) for name, array in outputs.items())
    return original.with_signature(Signature(original.signature.inputs, made))


def _head(dataset: Dataset) -> Dataset:
    return dataset.subset(np.arange(min(dataset.batch, dataset.count)), dataset.split)


def _run_once(model: Model, target: Target, dataset: Dataset) -> tuple[Arrays, Arrays]:
    batch = next(iter(dataset.batches()))
    with open_runner(model, original_target(model, target)) as runner, made_up_told(dataset):
        return batch.inputs, runner.run(batch.inputs)


def _sizes(signature: Signature, inputs: Arrays) -> dict[int, str]:
    """Size -> name of the dynamic dimensions, where the size is that dimension's alone."""
    found: dict[int, set[str]] = {}
    for spec in signature.inputs:
        for axis, dim in enumerate(spec.shape or ()):
            found.setdefault(inputs[spec.name].shape[axis], set()).add(str(dim))
    return {size: names.pop() for size, names in found.items() if len(names) == 1}


def _batch(signature: Signature, inputs: Arrays) -> tuple[int, str] | None:
    """Size and name of the batch dimension, where it is dynamic."""
    axes = signature.batch_axes()
    for spec in signature.inputs:
        axis = axes[spec.name]
        if axis is not None and spec.shape is not None and isinstance(spec.shape[axis], str):
            return inputs[spec.name].shape[axis], str(spec.shape[axis])
    return None


def _named(array: Any, sizes: Mapping[int, str], batch: tuple[int, str] | None) -> tuple[int | str, ...]:
    """The shape with the names of dynamic dimensions; samples come first, whatever else has that size."""
    names = [sizes.get(size, "") for size in array.shape]
    if batch is not None and array.ndim and array.shape[0] == batch[0]:
        names[0] = batch[1]
    return tuple(name if name and not name.isdigit() else size for name, size in zip(names, array.shape, strict=True))
