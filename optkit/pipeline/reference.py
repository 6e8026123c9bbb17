"""The original's outputs: computed once in its own engine, kept in the cache, read back batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from optkit.data.dataset import Array, Arrays, Dataset
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.pipeline.cache import Cache
from optkit.pipeline.isolate import isolated, needs_child
from optkit.pipeline.job import Job, outputs_key
from optkit.runner.open import open_runner, run_dataset


def original_outputs(job: Job, dataset: Dataset) -> Iterator[Arrays]:
    """Outputs of the original by name, one dict a batch of ``dataset``."""
    folder = ensure_reference(job, dataset)
    for file in sorted(folder.glob("*.npz")):
        with np.load(file, allow_pickle=False) as arrays:
            yield {name: arrays[name] for name in arrays.files}


def ensure_reference(job: Job, dataset: Dataset) -> Path:
    """The cached folder with the original's outputs on ``dataset``, made now if it is not there yet."""
    key = outputs_key(job, job.original, dataset)
    with job.cache.lock(key):
        return job.cache.get(key) or isolated(
            needs_child(job.original), _compute, job.cache, key, job.original, job.target, dataset
        )


def has_reference(job: Job, dataset: Dataset) -> bool:
    """Whether the outputs are in the cache already."""
    return job.cache.get(outputs_key(job, job.original, dataset)) is not None


def _compute(cache: Cache, key: str, model: Model, target: Target, dataset: Dataset) -> Path:
    with cache.workdir() as workdir:
        made = workdir / "outputs"
        made.mkdir()
        with open_runner(model, original_target(model, target)) as runner:
            for index, outputs in enumerate(run_dataset(runner, dataset)):
                np.savez(made / f"{index:06}.npz", **{k: storable(v) for k, v in outputs.items()})  # type: ignore[arg-type]
        return cache.put(key, made, f"outputs of {model.path.name}")


def original_target(model: Model, target: Target) -> Target:
    """The original runs in its own engine: torch models on the CPU, ONNX models on the target's provider."""
    return target if model.form != "torch" else Target("cpu", target.threads, target.shapes)


def storable(array: Array) -> Array:
    """Strings come from onnxruntime as objects, which only pickle could store."""
    return array.astype(str) if array.dtype == object else array
