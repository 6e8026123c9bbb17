"""What every source offers: named columns, a count, and the rows at some indices. Raw; nothing is cast here."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from optkit.data.dataset import Array

Rows = Array | list[Any]
"""Rows of one column, sample axis first: one array, or a list where the rows are ragged, strings or paths."""

LABEL_NAMES = ("labels", "label", "y")
"""Columns that are taken as labels when none is named and the model has no such input."""


class Reader(Protocol):
    """One opened source. Plain and picklable."""

    @property
    def where(self) -> str:
        """The source for error messages."""

    @property
    def parsed(self) -> bool:
        """True where numbers were written as text, so that their dtype is nobody's choice."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names it holds."""

    @property
    def count(self) -> int:
        """Number of samples."""

    def bound(self, axes: Mapping[str, int | None], ranks: Mapping[str, int]) -> Reader:
        """The same source once it is known which columns are wanted, with their sample axes and full ranks."""

    def read(self, columns: Sequence[str], indices: Array) -> dict[str, Rows]:
        """The rows at ``indices`` (int64[n]) of some columns."""

    def first(self, column: str) -> Any:
        """A value that shows what kind of thing the column holds."""

    def constant(self, column: str) -> Any:
        """The value of a column that has no sample axis."""

    def place(self, index: int) -> str:
        """Where the sample is, for error messages: ``row 7``, ``line 8``, a file name."""

    @property
    def digest(self) -> str:
        """sha256 over the content."""


class Lazy:
    """A frozen dataclass whose cached properties stay behind when it is pickled."""

    def __getstate__(self) -> dict[str, Any]:
        return {entry.name: self.__dict__[entry.name] for entry in fields(self)}  # type: ignore[arg-type]  # mixin


def sha256_of(files: Iterable[Path]) -> str:
    """sha256 (hex) over the contents of files, in order."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def version_of(distribution: str) -> str:
    """``name version`` of an installed distribution; the name alone where it is not installed."""
    from importlib import metadata

    try:
        return f"{distribution} {metadata.version(distribution)}"
    except metadata.PackageNotFoundError:
        return distribution


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def listed(names: Iterable[str]) -> str:
    """The names with commas; ``nothing`` when there are none."""
    return ", ".join(names) or "nothing"


def as_labels(values: Rows) -> Array:
    """Labels or groups as one array: integers if all are, else floats, else strings."""
    array = np.asarray(values)
    if array.dtype.kind not in "UO":
        return array
    for kind in (np.int64, np.float64, np.str_):
        try:
            return array.astype(kind)
        except (ValueError, TypeError, OverflowError):
            continue
    return array
