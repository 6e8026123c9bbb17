"""Outputs of a run, batch by batch: figures for people, and an .npz file that appears all at once."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from optkit.data.dataset import Array, Arrays
from optkit.errors import OutputError
from optkit.evaluate.agreement import SCORE_NAMES
from optkit.model.bundle import write_error
from optkit.pipeline.names import member_name
from optkit.pipeline.reference import storable
from optkit.report.run import OutputFacts, TopClass

SHOWN = 5
"""Samples whose top class is shown."""


class Collector:
    """Takes the outputs of every batch; ``keep`` says whether they are wanted for a file."""

    def __init__(self, *, keep: bool) -> None:
        self._keep = keep
        self._found: dict[str, _Output] = {}

    def add(self, outputs: Arrays, size: int) -> None:
        """The outputs of one batch of ``size`` samples."""
        for name, array in outputs.items():
            self._found.setdefault(name, _Output(name)).add(_plain(array), size, keep=self._keep)

    def facts(self) -> tuple[OutputFacts, ...]:
        """Figures of every output."""
        return tuple(output.facts() for output in self._found.values())

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """Every output over all samples; each is let go when the next is asked for."""
        for name, output in self._found.items():
            yield name, output.joined()


class _Output:
    def __init__(self, name: str) -> None:
        self._name = name
        self._dtype = ""
        self._parts: list[Array] = []
        self._shapes: list[tuple[int, ...]] = []
        self._rows = True
        self._count = self._nonfinite = 0
        self._sum, self._low, self._high = 0.0, np.inf, -np.inf
        self._scores: list[TopClass] = []

    def add(self, array: Array, size: int, *, keep: bool) -> None:
        self._look_at_classes(array, sum(shape[0] for shape in self._shapes if shape), size)
        self._dtype = str(array.dtype) if array.dtype.kind != "U" else "string"
        self._shapes.append(array.shape)
        self._rows &= array.ndim > 0 and array.shape[0] == size
        if keep:
            self._parts.append(array.copy())
        if array.dtype.kind in "fiub" and array.size:
            self._measure(array)

    def _measure(self, array: Array) -> None:
        low, high = float(array.min()), float(array.max())
        if not np.isfinite((low, high)).all():
            finite = array[np.isfinite(array)]
            self._nonfinite += array.size - finite.size
            if finite.size:
                self._measure(finite)
            return
        self._count += array.size
        self._sum += float(array.sum(dtype=np.float64))
        self._low, self._high = min(self._low, low), max(self._high, high)

    def _look_at_classes(self, array: Array, first: int, size: int) -> None:
        if not SCORE_NAMES.search(self._name) or array.dtype.kind != "f" or array.ndim != 2 or array.shape[1] < 2:
            return
        for row in range(min(size, SHOWN - len(self._scores))):
            scores = array[row].astype(np.float64)
            if not np.isnan(scores).any():
                best = int(scores.argmax())
                self._scores.append(TopClass(sample=first + row, index=best, score=float(scores[best])))

    @property
    def _ragged(self) -> bool:
        return len({shape[1:] if self._rows else shape for shape in self._shapes}) > 1

    @property
    def _shape(self) -> tuple[int, ...]:
        """Of the whole run."""
        if len(self._shapes) == 1:
            return self._shapes[0]
        rest = [shape[1:] if self._rows else shape for shape in self._shapes]
        widest = tuple(max(sizes) for sizes in zip(*rest, strict=True))
        rows = sum(shape[0] for shape in self._shapes) if self._rows else len(self._shapes)
        return (rows, *widest)

    def facts(self) -> OutputFacts:
        notes = []
        if len(self._shapes) > 1:
            notes += ["batches differ in shape; zeros fill them up"] if self._ragged else []
            notes += ["one entry a batch, not a sample"] if not self._rows else []
        return OutputFacts(
            name=self._name,
            dtype=self._dtype,
            shape=self._shape,
            minimum=self._low if self._count else None,
            mean=self._sum / self._count if self._count else None,
            maximum=self._high if self._count else None,
            nonfinite=self._nonfinite,
            top1=tuple(self._scores),
            note="; ".join(notes),
        )

    def joined(self) -> Array:
        parts, self._parts = self._parts, []
        if len(parts) == 1:
            return parts[0]
        rows = [part if self._rows else part[None] for part in parts]
        if not self._ragged:
            return np.concatenate(rows)
        widest = self._shape[1:]
        return np.concatenate([_padded(part, widest) for part in rows])


def _padded(part: Array, widest: tuple[int, ...]) -> Array:
    missing = [(0, 0), *((0, wide - size) for wide, size in zip(widest, part.shape[1:], strict=True))]
    return np.pad(part, missing)


def _plain(array: Array) -> Array:
    """As .npz can hold it: bfloat16 becomes float32, objects become strings."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else storable(array)


def check_npz(out: Path, *, force: bool) -> None:
    """Refuse a place for outputs before any work is done.

    Raises:
        OutputError: it exists (without ``force``), is no file, does not end in .npz, or may not be written.
    """
    if out.suffix != ".npz":
        raise OutputError(
            f"The output {out} does not end in .npz.", expected="a path like y.npz", fix="choose another path with -o"
        )
    if out.is_dir():
        raise OutputError(f"The output {out} is a folder.", expected="a file", fix="choose another path with -o")
    if out.exists() and not force:
        raise OutputError(
            f"The output {out} exists already.",
            expected="a path where nothing is yet",
            fix="choose another one with -o, or replace it with --force",
        )
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"The folder {parent} is not writable.", expected="a folder you may write to", fix="choose another -o"
        )


def write_npz(out: Path, arrays: Iterator[tuple[str, Array]] | Mapping[str, Array]) -> None:
    """Write arrays by name, one in memory at a time, and put the file in place by one rename.

    A name that would lead out of the folder where somebody unpacks the file becomes a plain one.

    Raises:
        OutputError: the disk is full, or the place is not writable.
    """
    pairs = arrays.items() if isinstance(arrays, Mapping) else arrays
    hidden = out.absolute().with_name(f".{out.name}.{os.getpid()}")
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with hidden.open("wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                taken: set[str] = set()
                for name, array in pairs:
                    taken.add(plain := member_name(name, taken))
                    with archive.open(f"{plain}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(out)
    except OSError as error:
        raise write_error(error, out) from error
    finally:
        with contextlib.suppress(OSError):
            hidden.unlink(missing_ok=True)
