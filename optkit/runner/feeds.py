"""Arrays made to fit a model's inputs: names, dtypes and, where the engine does not look itself, shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.data.dataset import Array, Arrays
from optkit.errors import DataError


@dataclass(frozen=True)
class Port:
    """One input or output as an engine declares it."""

    name: str
    dtype: str
    """numpy's name, or ``bfloat16``, or ``string``; empty = the engine's own kind, arrays pass as they are."""
    shape: Sequence[object] | None
    """Whole numbers are fixed sizes, anything else (a name, None) is dynamic; None = not even the rank is known."""


def fit_feeds(inputs: Arrays, ports: Mapping[str, Port]) -> Arrays:
    """The inputs in the model's dtypes: floats may change width, whole numbers only if no value changes.

    Raises:
        DataError: an input is missing, unknown, or of a dtype that does not become the model's.
    """
    if inputs.keys() != ports.keys():
        missing = [f"input '{name}' is missing" for name in ports if name not in inputs]
        extra = [f"'{name}' is no input" for name in inputs if name not in ports]
        raise DataError(
            f"The data do not fit the model: {', '.join(missing + extra)}.",
            expected="arrays named " + ", ".join(ports),
            fix="name them so, or map them with columns: {input: column}",
        )
    return {name: _fit(inputs[name], port) for name, port in ports.items()}


def check_shapes(feeds: Arrays, ports: Mapping[str, Port]) -> None:
    """Refuse arrays of another rank, or of another size where the model's is fixed.

    Raises:
        DataError: names the first such input.
    """
    for name, port in ports.items():
        given = feeds[name].shape
        if not _fits(given, port.shape):
            raise DataError(
                f"The data do not fit the model: input '{name}' has shape {list(given)}.",
                expected=f"{name} of shape {port.shape}",
                fix="give arrays of that shape",
            )


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of that name, ``bfloat16`` included."""
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    found: np.dtype[Any] = np.dtype(name)
    return found


def from_bfloat16(raw: Array) -> Array:
    """The raw 16 bit values (any 2-byte dtype, any shape) as float32: numpy itself has no bfloat16."""
    return raw.view(numpy_dtype("bfloat16")).astype(np.float32)


def _fits(given: Sequence[int], wanted: Sequence[object] | None) -> bool:
    if wanted is None:
        return True
    pairs = zip(given, wanted, strict=False)
    return len(given) == len(wanted) and all(not isinstance(want, int) or want == have for have, want in pairs)


def _fit(array: Array, port: Port) -> Array:
    wanted, given = port.dtype, array.dtype.name
    if given == wanted or not wanted or (wanted == "string" and array.dtype.kind in "OUS"):
        return array
    cast = _cast(array, wanted)
    if cast is None:
        raise DataError(
            f"Input '{port.name}' takes {wanted}, but the data are {given}.",
            expected=f"{port.name} as {wanted} of shape {port.shape}",
            fix=f"convert it: array.astype('{wanted}')",
        )
    return cast


def _cast(array: Array, wanted: str) -> Array | None:
    kind = "f" if array.dtype.name == "bfloat16" else array.dtype.kind
    if kind == "f" and "float" in wanted:
        return array.astype(numpy_dtype(wanted))
    if kind in "iu" and wanted.lstrip("u").startswith("int"):
        range_ = np.iinfo(wanted)
        fits = not array.size or (int(array.min()) >= range_.min and int(array.max()) <= range_.max)
        return array.astype(wanted) if fits else None
    return None
