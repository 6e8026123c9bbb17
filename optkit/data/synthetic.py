"""Batches made up from the signature: a last resort, and marked as such wherever a number comes from them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np

from optkit.data._feed import TensorFeed, led_spec, numpy_dtype, sample_axes
from optkit.data._npz import ArrayReader
from optkit.data._samples import Samples, as_dataset
from optkit.data.dataset import Array, Dataset
from optkit.errors import DataError
from optkit.model.signature import Signature, TensorSpec

_SEQUENCE = 16
_IMAGE = 32
_OTHER = 8
_SEQUENCE_DIM = re.compile(r"seq|len|time|token|frame|step|^[stl]$", re.IGNORECASE)
_IMAGE_DIM = re.compile(r"height|width|^[hw]$", re.IGNORECASE)
_IDS_BELOW = 100
"""Small enough for any vocabulary or embedding table in use."""

Maker = Callable[[tuple[int, ...], np.random.Generator], Array]


def synthetic(
    signature: Signature,
    *,
    split: str,
    shapes: Mapping[str, int],
    count: int = 16,
    batch: int = 8,
    seed: int = 0,
    rows: int | None = None,
) -> Dataset:
    """Made-up samples: floats standard normal, ids in [0, 100), uint8 in [0, 256), masks all ones, positions counting.

    Args:
        signature: the model's inputs.
        split: the name it gets.
        shapes: sizes of dynamic dimensions; others are 16 (sequence-like), 32 (height, width) or 8. The size of
            the batch dimension replaces ``batch``.
        count: samples; at least one batch is made.
        batch: samples per batch; a model's fixed batch size overrides it, and 1 where one call is one sample.
        seed: of the random numbers.
        rows: samples in every batch, as if the model had that batch size fixed.

    Raises:
        DataError: an input's rank or dtype is not known.
    """
    led = signature.one_sample
    axes = dict.fromkeys((spec.name for spec in signature.inputs), 0) if led else sample_axes(signature)
    fixed = rows or signature.fixed_batch()
    batch = 1 if led else fixed or _stated_batch(signature, axes, shapes) or batch
    count = max(count, batch)
    rng = np.random.default_rng(seed)
    arrays = {
        spec.name: _made(spec, _sizes(led_spec(spec) if led else spec, axes[spec.name], count, shapes), rng, shapes)
        for spec in signature.inputs
    }
    feeds = [
        TensorFeed(spec, (spec.name,), axes[spec.name], parsed=False, led=led)
        for spec in signature.inputs
        if axes[spec.name] is not None
    ]
    samples = Samples(
        split=split,
        source="synthetic",
        batch=batch,
        reader=ArrayReader("synthetic", chunks=(arrays,), axes={feed.spec.name: feed.axis for feed in feeds}),
        feeds=tuple(feeds),
        order=tuple(arrays),
        indices=np.arange(count, dtype=np.int64),
        constants={name: array for name, array in arrays.items() if axes[name] is None},
        fixed=fixed is not None,
        synthetic=True,
    )
    return as_dataset(samples)


def _stated_batch(signature: Signature, axes: Mapping[str, int | None], shapes: Mapping[str, int]) -> int | None:
    for spec in signature.inputs:
        axis = axes[spec.name]
        dim = spec.shape[axis] if axis is not None and spec.shape else None
        if isinstance(dim, str) and dim in shapes:
            return shapes[dim]
    return None


def _sizes(spec: TensorSpec, axis: int | None, count: int, shapes: Mapping[str, int]) -> tuple[int, ...]:
    if spec.shape is None:
        raise DataError(
            f"The rank of the model input '{spec.name}' is not known, so no synthetic data can be made for it.",
            expected="a shape in the signature, or real data",
            fix=f"give --signature '{spec.name}={spec.dtype}[batch,...]', or data with --data",
        )
    return tuple(count if i == axis else _size(dim, shapes) for i, dim in enumerate(spec.shape))


def _size(dim: int | str, shapes: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    if dim in shapes:
        return shapes[dim]
    if "+" in dim:
        return sum(int(part) if part.isdigit() else _size(part, shapes) for part in re.split(r"\s*\+\s*", dim.strip()))
    if _SEQUENCE_DIM.search(dim):
        return _SEQUENCE
    return _IMAGE if _IMAGE_DIM.search(dim) else _OTHER


def _made(spec: TensorSpec, sizes: tuple[int, ...], rng: np.random.Generator, shapes: Mapping[str, int]) -> Array:
    dtype = numpy_dtype(spec)
    for pattern, make in _BY_NAME:
        if dtype.kind in "iub" and pattern.search(spec.name):
            return make(sizes, rng).astype(dtype)
    if dtype.kind in "iu" and re.search(r"length|lens$|_len$", spec.name, re.IGNORECASE):
        return np.full(sizes, shapes.get("seq", _SEQUENCE), dtype=dtype)
    return _by_kind(dtype, sizes, rng)


def _by_kind(dtype: np.dtype[np.generic], sizes: tuple[int, ...], rng: np.random.Generator) -> Array:
    if dtype.kind == "b":
        return rng.integers(0, 2, sizes).astype(dtype)
    if dtype.kind in "iu":
        return rng.integers(0, 256 if dtype == np.uint8 else _IDS_BELOW, sizes).astype(dtype)
    if dtype.kind == "U":
        return np.full(sizes, "text")
    return rng.standard_normal(sizes).astype(np.float32).astype(dtype)


def _ones(sizes: tuple[int, ...], _: np.random.Generator) -> Array:
    return np.ones(sizes)


def _zeros(sizes: tuple[int, ...], _: np.random.Generator) -> Array:
    return np.zeros(sizes)


def _positions(sizes: tuple[int, ...], _: np.random.Generator) -> Array:
    return np.broadcast_to(np.arange(sizes[-1] if sizes else 1), sizes) if sizes else np.zeros(sizes)


def _sample_rate(sizes: tuple[int, ...], _: np.random.Generator) -> Array:
    return np.full(sizes, 16_000)


_BY_NAME: tuple[tuple[re.Pattern[str], Maker], ...] = (
    (re.compile("mask", re.IGNORECASE), _ones),
    (re.compile("token_type|segment", re.IGNORECASE), _zeros),
    (re.compile("position", re.IGNORECASE), _positions),
    (re.compile(r"^sr$|sample_?rate|sampling_?rate", re.IGNORECASE), _sample_rate),
)
"""Integer and bool inputs whose name says what they mean."""
