"""Open the samples of one split, of whatever kind, for one model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from optkit.data._bind import Binding, bind, group_column, label_column, told
from optkit.data._feed import constant_input, sample_axes
from optkit.data._function import first_item, open_function
from optkit.data._images import ENDINGS, ImageReader, image_files, open_images
from optkit.data._npz import ArrayReader, open_npz, open_npz_dir, read_headers
from optkit.data._reader import LABEL_NAMES, Reader, as_labels
from optkit.data._samples import Samples, as_dataset
from optkit.data._table import TableReader, TextReader
from optkit.data.data_file import DataFile, find_data_file
from optkit.data.dataset import Array, Arrays, Dataset
from optkit.data.preprocess import parse_preprocess
from optkit.data.preprocess_text import TextFeed
from optkit.data.spec import DataSource
from optkit.errors import DataError
from optkit.model.signature import Signature, TensorSpec
from optkit.model.user_code import is_reference

__all__ = ["DataFile", "find_data_file", "infer_inputs", "open_dataset", "open_inputs"]

Format = Literal["npz", "npz-dir", "images", "text", "csv", "jsonl", "function"]
_ENDINGS: Mapping[str, Format] = {
    ".npz": "npz",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".text": "text",
    **dict.fromkeys(sorted(ENDINGS), "images"),
}
_FORMATS = "npz, npz-dir, images, text, csv, jsonl or function"


def open_dataset(
    split: str,
    source: DataSource,
    *,
    signature: Signature,
    base: Path,
    preprocess: Mapping[str, Mapping[str, object]],
    assets_dir: Path | None,
    allow_code: bool,
    rows: int | None = None,
) -> Dataset:
    """The samples of a source, fed to the inputs of a model. The first batch is read, so that misfits show here.

    Args:
        split: the name it gets.
        source: where the samples are.
        signature: the model's inputs; the sample axis of each is where this says ``batch``.
        base: the folder that a relative source counts from.
        preprocess: input name -> entry, as in a recipe.
        assets_dir: the folder that paths in ``preprocess`` count from; None = ``base``.
        allow_code: whether the source may be a function; only if a flag or a recipe named it.
        rows: samples in every batch, as if the model had that batch size fixed.

    Raises:
        DataError: missing, of an unknown format, empty, or it does not fit the model.
        PackageError: Pillow or tokenizers is needed and not installed.
    """
    if not signature.inputs:
        raise DataError(
            "The inputs of the model are not known, so no data can be fed to it.",
            expected="a signature with at least one input",
            fix="give one with --signature 'x=float32[batch,3,224,224]'",
        )
    kind = find_format(source, base)
    reader = _open_reader(kind, source, base, signature, allow_code=allow_code)
    if not reader.columns:
        raise _empty(reader)
    path = base if kind == "function" else (base / source.source).expanduser()
    binding = bind(
        reader,
        source,
        signature,
        parse_preprocess(preprocess),
        folder=path if path.is_dir() else path.parent,
        assets=assets_dir or base,
    )
    fixed = rows or signature.fixed_batch()
    dataset = _assemble(split, source, reader, signature, binding, first=kind == "function", fixed=fixed)
    _look_at(dataset, binding)
    return as_dataset(dataset)


def open_inputs(
    path: Path,
    *,
    signature: Signature,
    preprocess: Mapping[str, Mapping[str, object]],
    assets_dir: Path | None,
    batch: int = 8,
) -> Dataset:
    """What ``optkit run --input`` is given (image, folder, text, table or .npz) as a dataset called ``input``.

    Raises:
        DataError: see ``open_dataset``.
    """
    source = DataSource(source=str(path.absolute()), batch=batch)
    return open_dataset(
        "input",
        source,
        signature=signature,
        base=Path.cwd(),
        preprocess=preprocess,
        assets_dir=assets_dir,
        allow_code=False,
    )


def infer_inputs(source: DataSource, *, base: Path, allow_code: bool = False) -> tuple[TensorSpec, ...]:
    """Input specs from the names, dtypes and shapes of arrays: axis 0 is ``batch``, all others are fixed.

    Args:
        source: npz, npz-dir (its first file) or a function (its first item).
        base: the folder that a relative source counts from.
        allow_code: whether a function may be called.

    Raises:
        DataError: the source says no dtypes (images, text, tables), or cannot be opened.
    """
    kind = find_format(source, base)
    if kind == "function":
        _check_code(source, allow_code)
        arrays = first_item(source.source, base=base)
        found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    elif kind in ("npz", "npz-dir"):
        path = base / source.source
        found = read_headers(path if kind == "npz" else open_npz_dir(path).files[0])
    else:
        raise DataError(
            f"The inputs of the model are not known, and {source.source} ({kind}) has no dtypes and shapes for them.",
            expected="a signature, or data as .npz",
            fix="give one with --signature 'x=float32[batch,3,224,224]'",
        )
    beside = {source.groups, source.labels or next((name for name in LABEL_NAMES if name in found), None)}
    renamed = {column: name for name, column in source.columns.items()}
    return tuple(
        TensorSpec(
            renamed.get(name, name),
            "string" if dtype.kind == "U" else dtype.name,
            ("batch", *shape[1:]) if shape else (),
        )
        for name, (shape, dtype) in found.items()
        if name not in beside or len(found) == 1
    )


def find_format(source: DataSource, base: Path) -> Format:
    """The format of a source: as stated, else by what is at its path.

    Raises:
        DataError: nothing is there, or its format cannot be told.
    """
    path = (base / source.source).expanduser()
    if source.format == "function" or (source.format is None and not path.exists() and is_reference(source.source)):
        return "function"
    if not path.exists():
        raise DataError(
            f"The data {path} do not exist.",
            expected="a file or folder; a relative path counts from the file that states it, or from where you are",
            fix="check the path",
        )
    found = source.format or (_format_of_folder(path) if path.is_dir() else _ENDINGS.get(path.suffix.lower()))
    if found is None:
        raise DataError(
            f"The format of the data {path} cannot be told from its name and content.",
            expected=f"{_FORMATS}; endings " + ", ".join(_ENDINGS),
            fix="state it: `format: ...`",
        )
    _check_kind(path, found)
    return found


def _format_of_folder(path: Path) -> Format | None:
    if next(path.glob("*.npz"), None) is not None:
        return "npz-dir"
    return "images" if image_files(path) else None


def _check_kind(path: Path, kind: Format) -> None:
    """A folder where the format wants a file, or the other way round."""
    if kind != "images" and path.is_dir() != (kind == "npz-dir"):
        raise DataError(
            f"The data {path} are a {'folder' if path.is_dir() else 'file'}, which the format {kind} is not.",
            expected="a folder for npz-dir, a folder or file for images, else a file",
            fix="correct `format:` or the path",
        )


def _check_code(source: DataSource, allow_code: bool) -> None:
    if not allow_code:
        raise DataError(
            f"The source '{source.source}' is code, which is not run from here.",
            expected="a path to data",
            fix="name the function with --data SPLIT=pkg.module:fn or in a recipe",
        )


def _open_reader(kind: Format, source: DataSource, base: Path, signature: Signature, *, allow_code: bool) -> Reader:
    path = (base / source.source).expanduser()
    if kind == "function":
        _check_code(source, allow_code)

        def sizes(item: Arrays) -> int:
            return _item_size(item, source, signature)

        return open_function(source.source, base=base, samples=source.samples, sizes=sizes)
    if kind == "images":
        labels = None if source.labels is None else (base / source.labels).expanduser()
        return open_images(path, labels=labels, groups=source.groups)
    openers: dict[str, Callable[[Path], Reader]] = {
        "csv": lambda path: TableReader(path, "csv"),
        "jsonl": lambda path: TableReader(path, "jsonl"),
        "text": TextReader,
        "npz": open_npz,
        "npz-dir": open_npz_dir,
    }
    return openers[kind](path)


def _item_size(item: Arrays, source: DataSource, signature: Signature) -> int:
    """Samples in one item of a function."""
    if signature.one_sample:
        ranks = {source.columns.get(spec.name, spec.name): len(spec.shape or ()) for spec in signature.inputs}
        return next((len(item[name]) for name, rank in ranks.items() if name in item and item[name].ndim > rank), 1)
    for name, axis in sample_axes(signature).items():
        array = item.get(source.columns.get(name, name))
        if axis is not None and array is not None and array.ndim > axis:
            return int(array.shape[axis])
    return next((len(array) for array in item.values() if array.ndim), 1)


def _assemble(
    split: str,
    source: DataSource,
    reader: Reader,
    signature: Signature,
    binding: Binding,
    *,
    first: bool,
    fixed: int | None,
) -> Samples:
    """The dataset, once it is known what feeds what."""
    labels, groups = label_column(reader, source, signature), group_column(reader, source)
    if signature.one_sample and isinstance(reader, ArrayReader):
        reader = replace(reader, single=True)
    reader = _bound(reader, binding, [name for name in (labels, groups) if name is not None])
    indices = _draw(reader, source, first=first)
    kept, places = _narrowed(reader, indices)
    return Samples(
        split=split,
        source=told(source, reader, binding),
        batch=1 if signature.one_sample else fixed or source.batch,
        reader=kept,
        feeds=binding.feeds,
        order=tuple(spec.name for spec in signature.inputs),
        indices=places,
        constants=_constants(reader, binding, signature),
        labels=_column(reader, labels, indices),
        groups=_column(reader, groups, indices),
        fixed=fixed is not None,
    )


def _look_at(dataset: Samples, binding: Binding) -> None:
    """Make the first batch; all of them where a text could be too long, so that this is known before any work."""
    batches = dataset.batches()
    next(batches)
    if any(isinstance(feed, TextFeed) and feed.fixed_length for feed in binding.feeds):
        deque(batches, maxlen=0)


def _bound(reader: Reader, binding: Binding, beside: list[str]) -> Reader:
    axes: dict[str, int | None] = dict.fromkeys(beside, 0)
    ranks: dict[str, int] = {}
    for feed in binding.feeds:
        axes.update(feed.axes)
        ranks.update(feed.ranks)
    axes.update(dict.fromkeys(binding.constants.values()))
    bound = reader.bound(axes, ranks)
    if not bound.count:
        raise _empty(bound)
    return bound


def _empty(reader: Reader) -> DataError:
    return DataError(
        f"The data {reader.where} hold no samples.",
        expected="at least one sample",
        fix="name another file, or check how this one was written",
    )


def _draw(reader: Reader, source: DataSource, *, first: bool) -> Array:
    """Sorted indices; of functions the first ones, because they were only called for so many."""
    everything = np.arange(reader.count, dtype=np.int64)
    if source.samples is None or source.samples >= reader.count:
        return everything
    if first:
        return everything[: source.samples]
    drawn = np.random.default_rng(source.seed).choice(reader.count, source.samples, replace=False)
    return np.sort(drawn).astype(np.int64)


def _narrowed(reader: Reader, indices: Array) -> tuple[Reader, Array]:
    """Only the drawn images, so that nobody reads or digests the others."""
    if not isinstance(reader, ImageReader):
        return reader, indices
    files = tuple(reader.files[int(index)] for index in indices)
    return replace(reader, files=files, labels=None, groups=None), np.arange(len(files), dtype=np.int64)


def _column(reader: Reader, name: str | None, indices: Array) -> Array | None:
    return None if name is None else as_labels(reader.read((name,), indices)[name])


def _constants(reader: Reader, binding: Binding, signature: Signature) -> dict[str, Any]:
    return {
        name: constant_input(reader.constant(column), signature.input(name), parsed=reader.parsed)
        for name, column in binding.constants.items()
    }
