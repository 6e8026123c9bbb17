"""Is a converted model still the same function? One batch at another shape, on both, output by output."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from optkit.data.dataset import Array, Arrays, Batch, Dataset
from optkit.errors import DataError, ModelError, PassError
from optkit.model.model import Model
from optkit.model.signature import Signature

if TYPE_CHECKING:
    from optkit.passes._base import Context

TOLERANCE = 1e-3
"""Largest difference that counts as float noise, over the output's standard deviation."""


@dataclass(frozen=True)
class Agreement:
    """Where and how well a converted model agrees with its original."""

    shape: str
    worst: float
    sizes: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]

    def __str__(self) -> str:
        return f"agrees with torch at {self.shape}: error / output std at most {self.worst:.1e}"


def agreement(original: Model, made: Model, inputs: Arrays, like: Dataset, ctx: Context) -> Agreement:
    """Hold ``made`` to the outputs of ``original`` at the first other shape that ``original`` takes.

    Raises:
        PassError: they disagree, ``made`` does not run there, or ``original`` runs nowhere.
    """
    signature = original.signature
    for sizes in other_sizes(dynamic_sizes(inputs, signature), signature):
        batch = one_batch(resized(inputs, signature, sizes), like)
        try:
            wanted = next(iter(ctx.run(original, batch)))
        except (ModelError, DataError):
            continue  # the module itself does not take this shape
        shape = ", ".join(f"{dim}={size}" for dim, size in sizes.items()) or "its fixed shape"
        try:
            found = next(iter(ctx.run(made, batch)))
        except (ModelError, DataError) as error:
            raise PassError(f"its result does not run at {shape}: {error.message}") from error
        worst = compare(wanted, found, shape)
        return Agreement(shape, worst, sizes, {name: array.shape for name, array in found.items()})
    raise PassError("torch itself does not run on the sample batch")


def dynamic_sizes(inputs: Arrays, signature: Signature) -> dict[str, int]:
    """The sizes that the dynamic dimensions have in these inputs."""
    found: dict[str, int] = {}
    for spec in signature.inputs:
        for axis, dim in enumerate(spec.shape or ()):
            if isinstance(dim, str):
                found.setdefault(dim, inputs[spec.name].shape[axis])
    return found


def resized(inputs: Arrays, signature: Signature, sizes: Mapping[str, int]) -> Arrays:
    """The inputs with their dynamic dimensions cut, or filled up by repeating, to these sizes."""
    made: Arrays = {}
    for spec in signature.inputs:
        array = inputs[spec.name]
        for axis, dim in enumerate(spec.shape or ()):
            if isinstance(dim, str) and dim in sizes:
                array = np.take(array, np.arange(sizes[dim]) % array.shape[axis], axis=axis)
        made[spec.name] = array
    return made


def other_sizes(sizes: Mapping[str, int], signature: Signature) -> list[dict[str, int]]:
    """Shapes to check at, best first: all dynamic dimensions changed, only the batch changed, nothing changed.

    The batch grows by one; others are halved, which stays within a model's largest length and often keeps a picture
    divisible. First they are all made different, so that mixed-up dimensions show; then equal ones stay equal.
    """
    axes = [(spec.shape, spec.batch_axis) for spec in signature.inputs]
    batches = {str(shape[axis]) for shape, axis in axes if shape is not None and axis is not None}
    grown = {dim: max(2, size) + 1 if dim in batches else size for dim, size in sizes.items()}
    halved = {dim: size if dim in batches else (size // 2 if size >= 4 else size + 1) for dim, size in grown.items()}
    distinct: dict[str, int] = {}
    for dim, size in halved.items():
        distinct[dim] = next(each for each in range(size, size + len(halved) + 1) if each not in distinct.values())
    wanted = [distinct, halved, grown, dict(sizes)]
    return [each for index, each in enumerate(wanted) if each not in wanted[:index]]


def compare(wanted: Arrays, found: Arrays, shape: str) -> float:
    """The worst error over standard deviation of all outputs; integers and bools must be equal.

    Raises:
        PassError: beyond ``TOLERANCE``, or another shape or dtype, or NaN and infinity elsewhere; names the output.
    """
    if wanted.keys() != found.keys():
        raise PassError(f"its result has the outputs {', '.join(found)} instead of {', '.join(wanted)}")
    errors = {name: _error(name, wanted[name], found[name], shape) for name in wanted}
    name = max(errors, key=errors.__getitem__)
    if errors[name] > TOLERANCE:
        raise PassError(
            f"output '{name}' differs from torch at {shape}: "
            f"error / output std {errors[name]:.2g}, allowed {TOLERANCE:g}"
        )
    return errors[name]


def _error(name: str, wanted: Array, found: Array, shape: str) -> float:
    if wanted.shape != found.shape:
        raise PassError(f"output '{name}' has shape {found.shape} at {shape}, and {wanted.shape} in torch")
    if wanted.dtype != found.dtype:
        raise PassError(f"output '{name}' is {found.dtype} at {shape}, and {wanted.dtype} in torch")
    if wanted.dtype.kind not in "fc":
        return _differing(name, wanted, found, shape)
    wide = np.complex128 if wanted.dtype.kind == "c" else np.float64
    left, right = wanted.astype(wide), found.astype(wide)
    finite = np.isfinite(left)
    if not np.array_equal(finite, np.isfinite(right)):
        raise PassError(f"output '{name}' has NaN or infinity at {shape} where torch has none, or the reverse")
    if not finite.any():
        return 0.0
    if not finite.all():
        left, right = left[finite], right[finite]
    spread = float(left.std()) or float(np.abs(left).max()) or 1.0
    return float(np.abs(left - right).max()) / spread


def _differing(name: str, wanted: Array, found: Array, shape: str) -> float:
    """0 for equal integers, bools or strings; there is no noise among those."""
    if different := int(np.count_nonzero(wanted != found)):
        share = f"{different} of {wanted.size} {wanted.dtype} values"
        raise PassError(f"output '{name}' differs from torch at {shape}: {share}, allowed 0")
    return 0.0


def one_batch(inputs: Arrays, like: Dataset) -> Dataset:
    """A Dataset of exactly this batch, whatever its shape; the rest as in ``like``."""
    return cast("Dataset", _OneBatch(inputs, like.source, like.synthetic))


@dataclass(frozen=True)
class _OneBatch:
    """A Dataset of one batch that is not trimmed; see ``optkit.data.dataset.Dataset``."""

    inputs: Arrays
    source: str
    synthetic: bool
    split: str = "sample"
    labels: Array | None = None
    groups: Array | None = None

    @property
    def count(self) -> int:
        """Rows of the longest input, so that none is taken for padding."""
        return max((array.shape[0] for array in self.inputs.values() if array.ndim), default=1)

    @property
    def batch(self) -> int:
        """The same: there is one batch."""
        return self.count

    @property
    def digest(self) -> str:
        """sha256 over names, dtypes, shapes and values."""
        digest = hashlib.sha256()
        for name, array in sorted(self.inputs.items()):
            digest.update(f"{name}:{array.dtype}:{array.shape}".encode() + array.tobytes())
        return digest.hexdigest()

    def batches(self) -> Iterator[Batch]:
        """The one batch."""
        yield Batch(self.inputs, self.count)

    def subset(self, indices: Array, split: str) -> Dataset:
        """The same batch: it is not divided."""
        del indices
        return cast("Dataset", replace(self, split=split))
