"""What a product is worth: its outputs over a subject's evaluation batches, scored against the original's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import numpy as np

from benchmarks.scores import Arrays
from benchmarks.subjects import Product, Subject, open_product
from optkit import Model
from optkit.model.target import Target
from optkit.runner.open import open_runner

_kept: dict[str, list[Arrays]] = {}
"""Outputs of the original of the last subject."""


def scores(subject: Subject, product: Product) -> dict[str, float]:
    """The subject's scores of one product, which runs on all threads in a process of its own.

    Raises:
        OptkitError: it does not load, or does not run.
        RuntimeError: its process ended early, or its outputs have NaN or Inf where the original's have none.
    """
    target = Target(engine=product.engine)
    found = outputs(open_product(subject, product), target, product.session, subject.evaluation)
    wanted = original(subject)
    require_finite(wanted, found)
    return subject.score(wanted, found)


def rows(subject: Subject) -> int:
    """Samples that the scores are computed on, by the first input of each batch that has axes."""
    return sum(next(len(array) for array in batch.values() if array.ndim) for batch in subject.evaluation)


def original(subject: Subject) -> list[Arrays]:
    """Outputs of the model as it was given, in its own engine: torch eager, or onnxruntime for an ONNX file."""
    if subject.name not in _kept:
        _kept.clear()
        _kept[subject.name] = outputs(subject.opened(), Target(), {}, subject.evaluation)
    return _kept[subject.name]


def outputs(model: Model, target: Target, session: Mapping[str, str], batches: Sequence[Arrays]) -> list[Arrays]:
    """Outputs by name of every batch, computed in a process of its own, which may crash.

    Raises:
        OptkitError: the model does not load or run.
        RuntimeError: the process ended early.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(_outputs, model, target, dict(session), tuple(batches)).result()
        except BrokenProcessPool as error:
            raise RuntimeError("its process ended early while its outputs were computed") from error


def _outputs(model: Model, target: Target, session: dict[str, str], batches: tuple[Arrays, ...]) -> list[Arrays]:
    with open_runner(model, target, session=session) as runner:
        return [runner.run(batch) for batch in batches]


def require_finite(wanted: Sequence[Arrays], found: Sequence[Arrays]) -> None:
    """NaN and Inf are only allowed in outputs where the original has some too.

    Raises:
        RuntimeError: the output, and in how many batches.
    """
    for name in found[0]:
        both = [(left.get(name), right[name]) for left, right in zip(wanted, found, strict=True)]
        broken = sum(not _finite(right) and (left is None or _finite(left)) for left, right in both)
        if broken:
            raise RuntimeError(f"NaN or Inf in output {name}, {broken} of {len(both)} batches")


def _finite(array: np.ndarray) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())
