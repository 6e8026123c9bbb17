"""Arrays in chunks: one .npz file, a folder of them, or what a function gave."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from optkit.data._reader import Lazy, Reader, Rows, listed, sha256_of
from optkit.data.dataset import Array, Arrays
from optkit.errors import DataError

_BROKEN = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
Header = tuple[tuple[int, ...], np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class ArrayReader(Lazy):
    """Chunks of samples, each a set of named arrays in the model's own layout. Files load when they are needed."""

    where: str
    files: tuple[Path, ...] = ()
    chunks: tuple[Arrays, ...] = ()
    """In memory, where there are no files."""
    axes: Mapping[str, int | None] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    single: bool = False
    """A chunk may be one sample without its sample axis."""
    parsed: bool = False

    @cached_property
    def _headers(self) -> tuple[dict[str, Header], ...]:
        if self.files:
            return tuple(read_headers(file) for file in self.files)
        return tuple({name: (a.shape, a.dtype) for name, a in chunk.items()} for chunk in self.chunks)

    @property
    def columns(self) -> tuple[str, ...]:
        """Arrays of the first chunk."""
        return tuple(self._headers[0]) if self._headers else ()

    @property
    def count(self) -> int:
        """Samples of all chunks."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @cached_property
    def _ends(self) -> Array:
        return np.cumsum([self._chunk_count(i) for i in range(len(self._headers))], dtype=np.int64)

    def _chunk_count(self, chunk: int) -> int:
        counts = {
            name: self._length(self._header(chunk, name)[0], axis, self.ranks.get(name), name)
            for name, axis in self.axes.items()
            if axis is not None
        }
        if len(set(counts.values())) > 1:
            raise DataError(
                f"The arrays of {self._chunk_name(chunk)} hold different numbers of samples: "
                + listed(f"{name} {count}" for name, count in counts.items())
                + ".",
                expected="the same number along the sample axis of every input, of labels and of groups",
                fix="save all of them from the same samples",
            )
        return next(iter(counts.values()), 0)

    def _length(self, shape: tuple[int, ...], axis: int, rank: int | None, name: str) -> int:
        if self._lacks_axis(len(shape), rank):
            return 1
        if len(shape) <= axis:
            raise DataError(
                f"The array '{name}' of {self.where} has shape {list(shape)}, without a sample axis {axis}.",
                expected=f"at least {axis + 1} axes, samples along axis {axis}",
                fix="save it with one entry per sample",
            )
        return shape[axis]

    def _lacks_axis(self, ndim: int, rank: int | None) -> bool:
        return self.single and (ndim == 0 or (rank is not None and ndim == rank - 1))

    def _header(self, chunk: int, name: str) -> Header:
        header = self._headers[chunk].get(name)
        if header is None:
            raise DataError(
                f"{self._chunk_name(chunk)} has no array '{name}'.",
                expected=f"the same arrays in every part; this one has {listed(self._headers[chunk])}",
                fix="save every part with the same names",
            )
        return header

    def ndim(self, column: str) -> int:
        """Rank of the array in the first chunk."""
        return len(self._header(0, column)[0])

    def _chunk_name(self, chunk: int) -> str:
        if self.files:
            return str(self.files[chunk])
        return f"{self.where} (item {chunk})" if len(self.chunks) > 1 else self.where

    def bound(self, axes: Mapping[str, int | None], ranks: Mapping[str, int]) -> Reader:
        """The reader for these columns only.

        Raises:
            DataError: a column has no such axis, or columns differ in their number of samples.
        """
        made = replace(self, axes=dict(axes), ranks=dict(ranks))
        _ = made.count
        return made

    def read(self, columns: Sequence[str], indices: Array) -> dict[str, Rows]:
        """Rows with the sample axis moved to the front."""
        found = np.searchsorted(self._ends, indices, side="right")
        parts: dict[str, list[Array]] = {name: [] for name in columns}
        for chunk, group in groupby(range(len(indices)), key=lambda i: int(found[i])):
            start = int(self._ends[chunk - 1]) if chunk else 0
            rows = np.asarray([int(indices[i]) - start for i in group], dtype=np.int64)
            arrays = self._load(chunk)
            for name in columns:
                parts[name].append(np.moveaxis(arrays[name], self.axes[name] or 0, 0)[rows])
        return {name: _joined(pieces) for name, pieces in parts.items()}

    @cached_property
    def _last(self) -> dict[int, Arrays]:
        return {}

    def _load(self, chunk: int) -> Arrays:
        if chunk not in self._last:
            raw = load_npz(self.files[chunk], list(self.axes)) if self.files else self.chunks[chunk]
            self._last.clear()
            self._last[chunk] = {name: self._spread(raw[name], name) for name in self.axes}
        return self._last[chunk]

    def _spread(self, array: Array, name: str) -> Array:
        axis = self.axes[name]
        lacks = axis is not None and self._lacks_axis(array.ndim, self.ranks.get(name))
        return np.expand_dims(array, axis or 0) if lacks else array

    def first(self, column: str) -> Any:
        """An empty array of the column's dtype."""
        return np.empty(0, dtype=self._header(0, column)[1])

    def constant(self, column: str) -> Any:
        """The array itself, which has to be the same in every chunk."""
        values = [self._load(chunk)[column] for chunk in range(len(self._headers))]
        for chunk, value in enumerate(values):
            if not np.array_equal(value, values[0]):
                raise DataError(
                    f"The input '{column}' has no sample axis, but {self._chunk_name(chunk)} has another value for it.",
                    expected=f"one value for all samples, such as {values[0].tolist()}",
                    fix="keep it the same, or export the model with a batch axis on this input",
                )
        return values[0]

    def place(self, index: int) -> str:
        """The row, and its file where there are several."""
        chunk = int(np.searchsorted(self._ends, index, side="right"))
        if len(self._headers) == 1:
            return f"row {index}"
        row = index - (int(self._ends[chunk - 1]) if chunk else 0)
        return f"row {row} of {self.files[chunk].name if self.files else f'item {chunk}'}"

    @cached_property
    def digest(self) -> str:
        """sha256 over the files, or over the arrays."""
        if self.files:
            return sha256_of(self.files)
        total = hashlib.sha256()
        for chunk in self.chunks:
            for name, array in sorted(chunk.items()):
                total.update(f"{name} {array.dtype} {array.shape}".encode())
                total.update(np.ascontiguousarray(array).tobytes())
        return total.hexdigest()


def _joined(pieces: list[Array]) -> Rows:
    if len(pieces) == 1:
        return pieces[0]
    if len({(piece.shape[1:], piece.dtype) for piece in pieces}) == 1:
        return np.concatenate(pieces)
    return [row for piece in pieces for row in piece]


def read_headers(file: Path) -> dict[str, Header]:
    """Array name -> (shape, dtype), without loading the arrays.

    Raises:
        DataError: not an .npz file, or an array holds Python objects.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            headers = {name.removesuffix(".npy"): _header(archive, name) for name in names}
    except _BROKEN as error:
        raise _unreadable(file, error) from error
    for name, (_, dtype) in headers.items():
        if dtype.hasobject:
            raise DataError(
                f"The array '{name}' of {file} holds Python objects, which are never loaded because that runs code.",
                expected="arrays of numbers, or of fixed-width strings",
                fix="save ragged rows padded, one file per sample in a folder (npz-dir), or as .jsonl",
            )
    return headers


def _header(archive: zipfile.ZipFile, name: str) -> Header:
    with archive.open(name) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    return tuple(shape), dtype


def load_npz(file: Path, names: Sequence[str]) -> Arrays:
    """Some arrays of an .npz file; pickles are never loaded.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except _BROKEN as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(
        f"{file} cannot be read as .npz: {error}.",
        expected="a file written by numpy.savez or numpy.savez_compressed",
        fix="write the file again",
    )


def open_npz(path: Path) -> ArrayReader:
    """One .npz file."""
    return ArrayReader(where=str(path), files=(path,))


def open_npz_dir(path: Path) -> ArrayReader:
    """All .npz files of a folder, by name; each holds samples along the sample axis, or one sample without it.

    Raises:
        DataError: there are none.
    """
    files = tuple(sorted(path.glob("*.npz")))
    if not files:
        raise DataError(
            f"The folder {path} holds no .npz files.",
            expected="one or more .npz files",
            fix="save the samples there, or name another folder or format",
        )
    return ArrayReader(where=str(path), files=files, single=True)
