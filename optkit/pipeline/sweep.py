"""What all candidates of a bench are fed: their common inputs, the points of a sweep, and the batches at each point."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from optkit.data.dataset import Arrays, Dataset
from optkit.data.open import open_dataset
from optkit.data.synthetic import synthetic
from optkit.errors import ModelError, UsageError
from optkit.model.machine import machine
from optkit.model.model import Model
from optkit.model.signature import Signature, TensorSpec
from optkit.pipeline.gather import Source
from optkit.pipeline.infer import BATCH

ROTATION = 4
"""Batches that are fed in turn, so that no cache wins."""


@dataclass(frozen=True)
class Fed:
    """The batches of one point."""

    batches: list[Arrays]
    synthetic: bool
    source: str
    """Path of real inputs; empty for made-up ones."""
    dims: dict[str, int]
    """Sizes of the dynamic dimensions; those that differ from batch to batch are left out."""
    note: str = ""

    @property
    def digest(self) -> str:
        """sha256 over names, dtypes, shapes and values of all batches."""
        total = hashlib.sha256()
        for name, array in (item for batch in self.batches for item in batch.items()):
            total.update(f"{name} {array.dtype} {array.shape}".encode())
            total.update(np.ascontiguousarray(array).tobytes())
        return total.hexdigest()


@dataclass(frozen=True)
class Supply:
    """Where batches come from, for any sizes."""

    signature: Signature
    """The inputs that all candidates take."""
    source: Source | None = None
    """Real data; None = made-up inputs."""
    preprocess: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    assets_dir: Path | None = None
    shapes: Mapping[str, int] = field(default_factory=dict)
    """Sizes for made-up inputs where a point does not say, as a bundle's target states them."""
    seed: int = 0

    def at(self, dims: Mapping[str, int]) -> Fed:
        """A few batches of these sizes; real ones as long as only the batch size is asked for.

        Raises:
            DataError: the data are missing or do not fit the inputs.
        """
        _refuse_huge(self.signature, {**self.shapes, **dims})
        rows = sample_dim(self.signature)
        others = [name for name in dims if name != rows]
        real = self.source is not None and not others
        dataset = self._real(self.source, dims.get(rows or "")) if real and self.source else self._made_up(dims)
        batches, note = _full_batches(dataset)
        if others and self.source is not None:
            note = f"real inputs come in their own sizes: where {', '.join(others)} is set, they are made up"
        return Fed(batches, not real, self._place() if real else "", _sizes(self.signature, batches), note)

    def _place(self) -> str:
        """The data's path, as it was given or below the folder of the file that states it."""
        if self.source is None:
            return ""
        path = self.source.base / self.source.spec.source
        return str(path) if path.exists() and self.source.base != Path.cwd() else self.source.spec.source

    def _real(self, source: Source, batch: int | None) -> Dataset:
        spec = source.spec if batch is None else source.spec.model_copy(update={"batch": batch})
        return open_dataset(
            "evaluation",
            spec,
            signature=self.signature,
            base=source.base,
            preprocess=self.preprocess,
            assets_dir=self.assets_dir,
            allow_code=source.code,
        )

    def _made_up(self, dims: Mapping[str, int]) -> Dataset:
        shapes = {**self.shapes, **dims}
        batch = shapes.get(sample_dim(self.signature) or "", BATCH)
        return synthetic(
            self.signature, split="bench", shapes=shapes, count=ROTATION * batch, batch=batch, seed=self.seed
        )


def common_inputs(models: Mapping[str, Model]) -> tuple[TensorSpec, ...]:
    """The inputs that all candidates take: the first one's, with the sizes that another has fixed.

    Args:
        models: label -> model with its inputs known, the baseline first.

    Raises:
        ModelError: names, ranks or fixed sizes differ.
    """
    base, *others = models
    merged = {spec.name: spec for spec in models[base].signature.inputs}
    for label in others:
        own = {spec.name: spec for spec in models[label].signature.inputs}
        if own.keys() != merged.keys():
            raise _differ(base, models[base], label, models[label])
        merged = {name: _narrowed(spec, own[name]) for name, spec in merged.items()}
        if any(spec is None for spec in merged.values()):
            raise _differ(base, models[base], label, models[label])
    return tuple(merged.values())


def _narrowed(one: TensorSpec, other: TensorSpec) -> Any:
    """One input with the sizes that the other has fixed; None where the two do not fit."""
    if one.shape is None or other.shape is None:
        return replace(one, shape=one.shape or other.shape)
    pairs = list(zip(one.shape, other.shape, strict=False))
    clash = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)
    if clash or len(one.shape) != len(other.shape):
        return None
    return replace(one, shape=tuple(b if isinstance(b, int) else a for a, b in pairs))


def _differ(base: str, first: Model, label: str, model: Model) -> ModelError:
    def listed(each: Model) -> str:
        return "; ".join(map(str, each.signature.inputs))

    return ModelError(
        f"{label} does not take the inputs of the baseline {base}.",
        expected=f"the same names and sizes in both: {base} has {listed(first)}, {label} has {listed(model)}",
        fix="compare models of the same task, exported with the same input names",
    )


def points_of(
    supply: Supply, dims: Mapping[str, Sequence[int]], threads: Sequence[int], models: Mapping[str, Model]
) -> list[tuple[dict[str, int], int]]:
    """Every combination of sizes and threads.

    Args:
        supply: its signature says which dimensions there are.
        dims: dimension -> sizes; ``batch`` stands for the sample axis, whatever its name.
        threads: numbers of intra-op threads.
        models: the candidates, to say who has fixed a dimension.

    Raises:
        UsageError: a dimension that is not there or fixed, or a size below 1.
    """
    rows = sample_dim(supply.signature)
    known = list(dict.fromkeys(part for dim in supply.signature.dynamic for part in _parts(dim)))
    named = {rows if name == "batch" and rows else name: tuple(sizes) for name, sizes in dims.items()}
    for name, sizes in named.items():
        if name not in known:
            raise _unknown(name, known, models)
        _check_counts(f"the dimension {name}", sizes)
    _check_counts("threads", threads)
    combined = [dict(zip(named, sizes, strict=True)) for sizes in itertools.product(*named.values())]
    return [(sizes, count) for sizes in combined for count in threads]


def sample_dim(signature: Signature) -> str | None:
    """Name of the dynamic dimension that counts samples, or None where their number is fixed."""
    return next(iter(signature.batch_dims), None)


def rows_of(signature: Signature, batch: Arrays) -> int:
    """Samples in one batch; 1 where one call is one sample."""
    axes = signature.batch_axes()
    return next((batch[name].shape[axis] for name, axis in axes.items() if axis is not None and batch[name].ndim), 1)


def _unknown(name: str, known: Sequence[str], models: Mapping[str, Model]) -> UsageError:
    fixing = [label for label, model in models.items() if name not in model.signature.dynamic]
    somewhere = any(name in model.signature.dynamic for model in models.values())
    batch = name == "batch" and any(model.signature.fixed_batch() for model in models.values())
    what = f"is fixed in {', '.join(fixing)}" if somewhere or batch else "does not exist"
    return UsageError(
        f"The dimension '{name}' {what}.",
        expected=f"one of the dynamic dimensions: {', '.join(known)}" if known else "none: all sizes are fixed",
        fix=f"write --dims {known[0]}=1,8" if known else "leave --dims out, or export the model with dynamic sizes",
    )


def _check_counts(what: str, values: Sequence[int]) -> None:
    for value in values:
        if value < 1:
            raise UsageError(
                f"{value} is no number for {what}.", expected="whole numbers from 1", fix="leave it out, or write 1"
            )


def _parts(dim: str) -> list[str]:
    """``past + seq`` -> both names."""
    return [part for part in re.split(r"\s*\+\s*", dim.strip()) if not part.isdigit()]


def _full_batches(dataset: Dataset) -> tuple[list[Arrays], str]:
    """``ROTATION`` batches, all full; samples take part in several where there are too few."""
    count, size = dataset.count, dataset.batch
    starts = [min(size, count / ROTATION) * index for index in range(ROTATION)]
    wanted = np.concatenate([(int(start) + np.arange(size, dtype=np.int64)) % count for start in starts])
    note = "" if count >= ROTATION * size else f"{count} samples, used repeatedly to fill {ROTATION} batches of {size}"
    return [batch.inputs for batch in dataset.subset(wanted, dataset.split).batches()], note


def _refuse_huge(signature: Signature, sizes: Mapping[str, int]) -> None:
    """Inputs that would not leave room for a model.

    Raises:
        UsageError: they take more than a quarter of the memory; names the largest dimension.
    """
    counts = (
        math.prod(sizes.get(str(d), 1) if isinstance(d, str) else d for d in s.shape or ()) for s in signature.inputs
    )
    needed = ROTATION * sum(4 * count for count in counts)
    if sizes and needed > machine().memory_bytes / 4:
        name = max(sizes, key=sizes.__getitem__)
        raise UsageError(
            f"{ROTATION} batches of these sizes take about {needed / 1e9:.0f} GB.",
            expected=f"at most a quarter of the {machine().memory_bytes / 1e9:.0f} GB of memory",
            fix=f"ask for less than --dims {name}={sizes[name]}",
        )


def _sizes(signature: Signature, batches: Sequence[Arrays]) -> dict[str, int]:
    """Dimension -> size, for those of the same size in all batches."""
    found: dict[str, set[int]] = {}
    for spec in signature.inputs:
        for axis, dim in enumerate(spec.shape or ()):
            if isinstance(dim, str):
                found.setdefault(dim, set()).update(batch[spec.name].shape[axis] for batch in batches)
    return {name: sizes.pop() for name, sizes in found.items() if len(sizes) == 1}
