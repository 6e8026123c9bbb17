"""The original's outputs: computed once in its own engine, kept in the cache, read back batch by batch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from optkit.data.dataset import Array, Arrays, Dataset
from optkit.errors import DataError, GivenError
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.pipeline.isolate import isolated, needs_child
from optkit.pipeline.job import Job, outputs_key
from optkit.runner.base import Runner
from optkit.runner.open import open_runner, run_dataset

NAMES = "names.json"
"""Beside the arrays ``BATCH-PLACE.npy``: the names of the outputs, a list a batch."""

MAPPED_BYTES = 64 * 2**20
"""Arrays from this size on are not read into memory as a whole."""


def original_outputs(job: Job, dataset: Dataset) -> Iterator[Arrays]:
    """Outputs of the original by name, one dict a batch of ``dataset``."""
    (folder,) = ensure_references(job, [dataset])
    for batch, names in enumerate(json.loads((folder / NAMES).read_text())):
        yield {name: _load(folder / _file(batch, place)) for place, name in enumerate(names)}


def output_bytes(job: Job, dataset: Dataset) -> list[int]:
    """Size of the original's outputs, batch by batch of ``dataset``."""
    (folder,) = ensure_references(job, [dataset])
    batches = enumerate(json.loads((folder / NAMES).read_text()))
    return [sum((folder / _file(batch, at)).stat().st_size for at in range(len(names))) for batch, names in batches]


def _load(file: Path) -> Array:
    """The array; a large one is mapped, and what is written into it stays in memory."""
    array: Array = np.load(file, mmap_mode="c" if file.stat().st_size > MAPPED_BYTES else None)
    return array


def _file(batch: int, place: int) -> str:
    return f"{batch:06}-{place}.npy"


def ensure_references(job: Job, datasets: Sequence[Dataset]) -> list[Path]:
    """The cached folders with the original's outputs on each dataset; those not there yet are made in one session."""
    keys = [outputs_key(job, job.original, dataset) for dataset in datasets]
    with job.cache.lock(keys[0]):
        found = [job.cache.get(key) for key in keys]
        missing = {key: data for key, data, folder in zip(keys, datasets, found, strict=True) if folder is None}
        made = isolated(needs_child(job.original), _compute, job, missing) if missing else {}
    return [folder or made[key] for key, folder in zip(keys, found, strict=True)]


def _compute(job: Job, missing: Mapping[str, Dataset]) -> dict[str, Path]:
    model, made = job.original, {}
    with open_runner(model, original_target(model, job.target)) as runner:
        for key, dataset in missing.items():
            with job.cache.workdir() as workdir:
                with made_up_told(dataset):
                    _save_outputs(runner, dataset, workdir / "outputs")
                made[key] = job.cache.put(key, workdir / "outputs", f"outputs of {model.path.name}")
    return made


def _save_outputs(runner: Runner, dataset: Dataset, folder: Path) -> None:
    folder.mkdir()
    names = []
    for batch, outputs in enumerate(run_dataset(runner, dataset)):
        names.append(list(outputs))
        for place, array in enumerate(outputs.values()):
            np.save(folder / _file(batch, place), storable(array))
    (folder / NAMES).write_text(json.dumps(names))


@contextmanager
def made_up_told(dataset: Dataset) -> Iterator[None]:
    """Where the original does not run on inputs that were made up, they are the likelier cause.

    Raises:
        DataError: in place of the error that came, and with its message.
    """
    try:
        yield
    except GivenError as error:
        if not dataset.synthetic:
            raise
        inputs = next(iter(dataset.batches())).inputs
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
        raise DataError(
            f"The original does not run on inputs made up from its signature ({shapes}): {error.message}",
            expected="inputs such as the model was trained on",
            fix="give real ones with --data FILE, or sizes of dimensions: --set 'target.shapes={seq: 128}'",
        ) from error


def original_target(model: Model, target: Target) -> Target:
    """The original runs in its own engine: torch models on the CPU, ONNX models on the target's provider."""
    return target if model.form != "torch" else Target("cpu", target.threads, target.shapes)


def storable(array: Array) -> Array:
    """Strings come from onnxruntime as objects, which only pickle could store."""
    return array.astype(str) if array.dtype == object else array
