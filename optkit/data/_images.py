"""Image files: a file, or a folder read recursively, with labels from subfolders or a .csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from optkit.data._reader import Lazy, Reader, Rows, as_labels, did_you_mean, sha256_of
from optkit.data._table import read_column
from optkit.data.dataset import Array
from optkit.errors import DataError

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
"""File endings (lower case) that are taken as images."""
IMAGE_COLUMN = "image"
"""The column of an image folder that holds the file paths."""


@dataclass(frozen=True, eq=False)
class ImageReader(Lazy):
    """Paths of image files, sorted; decoding is left to the preprocessing."""

    path: Path
    files: tuple[Path, ...]
    labels: Array | None = None
    """[count], from subfolders or a .csv."""
    groups: Array | None = None
    """[count], from a column of that .csv."""
    parsed: bool = False

    @property
    def where(self) -> str:
        """The folder."""
        return str(self.path)

    @property
    def columns(self) -> tuple[str, ...]:
        """``image``, and ``labels`` and ``groups`` where they are known."""
        extra = {"labels": self.labels, "groups": self.groups}
        return (IMAGE_COLUMN, *(name for name, values in extra.items() if values is not None))

    @property
    def count(self) -> int:
        """Number of files."""
        return len(self.files)

    def bound(self, axes: Mapping[str, int | None], ranks: Mapping[str, int]) -> Reader:
        """Itself: one file is one sample."""
        del axes, ranks
        return self

    def read(self, columns: Sequence[str], indices: Array) -> dict[str, Rows]:
        """Paths, labels and groups at the indices."""
        held = {"labels": self.labels, "groups": self.groups}
        files: Rows = [self.files[int(index)] for index in indices]
        made: dict[str, Rows] = {}
        for name in columns:
            values = held.get(name)
            made[name] = files if values is None else values[indices]
        return made

    def first(self, column: str) -> Any:
        """A path."""
        del column
        return self.path

    def constant(self, column: str) -> Any:
        """Never asked for: images have samples.

        Raises:
            DataError: always.
        """
        raise DataError(
            f"The images of {self.path} cannot give the input '{column}', which has no sample axis.",
            expected="a source with one value for it",
            fix="use .npz for this model",
        )

    def place(self, index: int) -> str:
        """The file below the folder."""
        return _relative(self.files[index], self.path)

    @cached_property
    def digest(self) -> str:
        """sha256 over the files, in order."""
        return sha256_of(self.files)


def image_files(path: Path) -> tuple[Path, ...]:
    """The image itself, or all images below a folder, sorted by path; hidden files and folders are left out."""
    if path.is_file():
        return (path,)
    found = (
        file
        for file in path.rglob("*")
        if file.suffix.lower() in ENDINGS and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    return tuple(sorted(found))


def open_images(path: Path, *, labels: Path | None, groups: str | None) -> ImageReader:
    """An image file or folder.

    Args:
        path: the file or folder.
        labels: a .csv with the columns ``file`` (relative to ``path``) and ``label``; None = subfolder names.
        groups: a column of that .csv.

    Raises:
        DataError: no images, or the .csv does not cover them.
    """
    files = image_files(path)
    if not files:
        raise DataError(
            f"The folder {path} holds no images.",
            expected="files ending in " + ", ".join(sorted(ENDINGS)),
            fix="name a folder with images, or another format",
        )
    if labels is None:
        if groups is not None:
            raise DataError(
                f"The groups column '{groups}' needs a .csv, but {path} is given without one.",
                expected="`labels:` with a .csv that has the columns file, label and the groups",
                fix="add `labels: FILE.csv`, or remove `groups:`",
            )
        return ImageReader(path, files, labels=_subfolder_labels(path, files))
    return ImageReader(
        path,
        files,
        labels=_class_numbers(_from_csv(path, files, labels, "label")),
        groups=None if groups is None else _from_csv(path, files, labels, groups),
    )


def _relative(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix() if folder.is_dir() else file.name


def _subfolder_labels(path: Path, files: Sequence[Path]) -> Array | None:
    """The first folder below ``path`` of every file; None unless all have one, and there are at least two."""
    if path.is_file():
        return None
    parts = [file.relative_to(path).parts for file in files]
    names = {part[0] for part in parts if len(part) > 1}
    if len(names) < 2 or any(len(part) == 1 for part in parts):
        return None
    return _class_numbers(as_labels([part[0] for part in parts]))


def _class_numbers(labels: Array) -> Array:
    """Numbers stand for themselves; names are numbered in sorted order."""
    if labels.dtype.kind != "U":
        return labels
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _from_csv(path: Path, files: Sequence[Path], table: Path, column: str) -> Array:
    if not table.is_file():
        raise DataError(
            f"The label file {table} does not exist.",
            expected="a .csv with the columns file and label",
            fix="check the path under `labels:`",
        )
    names = [Path(name).as_posix() for name in read_column(table, "file")]
    values = dict(zip(names, read_column(table, column), strict=True))
    missing = [name for name in (_relative(file, path) for file in files) if name not in values]
    if missing:
        raise DataError(
            f"{table} has no row for {len(missing)} of {len(files)} images, such as "
            f"'{missing[0]}'{did_you_mean(missing[0], values)}.",
            expected=f"one row per image, `file` relative to {path}",
            fix="add the rows, or remove the images",
        )
    return as_labels([values[_relative(file, path)] for file in files])
