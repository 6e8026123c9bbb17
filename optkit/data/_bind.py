"""Which column of a source feeds which input of the model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optkit.data._feed import Feed, TensorFeed, numpy_dtype, sample_axes
from optkit.data._images import ImageReader
from optkit.data._npz import ArrayReader
from optkit.data._reader import LABEL_NAMES, Reader, did_you_mean, listed
from optkit.data.preprocess import ImageEntry, TextEntry
from optkit.data.preprocess_image import ImageFeed
from optkit.data.preprocess_text import TextFeed, text_roles
from optkit.data.spec import DataSource
from optkit.errors import DataError
from optkit.model.signature import Signature, TensorSpec

_USUAL_RAW = ("text", "sentence", "image", "file")
"""Column names that are taken for raw text or images when several are left."""
_NAMELESS = "arr_0"
_KINDS = ("mask", "type_id", "position_id", "pixel|image", "audio|wave|speech", "input_id|token")
"""Patterns of names that say what an array holds; the first that fits counts."""


@dataclass(frozen=True)
class Binding:
    """What feeds the inputs that have samples, and the columns of those that are constants."""

    feeds: tuple[Feed, ...]
    constants: Mapping[str, str]
    """Input -> column."""


def told(source: DataSource, reader: Reader, binding: Binding) -> str:
    """The source for people, with the array that was taken for an input although it is called otherwise.

    The name that ``numpy.savez`` gives to an array without one says nothing, and so is not told.
    """
    fed = [(feed.spec.name, feed.columns[0]) for feed in binding.feeds if isinstance(feed, TensorFeed)]
    guessed = [(name, column) for name, column in fed if column not in (name, _NAMELESS) and name not in source.columns]
    if reader.parsed or not guessed:
        return source.source
    name, column = guessed[0]
    return f"{source.source}, whose array '{column}' is taken for the input '{name}'"


def named_column(reader: Reader, name: str, key: str) -> str:
    """``name``, if the source has it.

    Raises:
        DataError: it does not; ``key`` is the option that names it.
    """
    if name in reader.columns:
        return name
    raise DataError(
        f"{reader.where} has no column or array '{name}'{did_you_mean(name, reader.columns)}, which `{key}` names.",
        expected=f"one of {listed(reader.columns)}",
        fix=f"correct `{key}`",
    )


def label_column(reader: Reader, source: DataSource, signature: Signature) -> str | None:
    """The column of the labels: the named one, else one with a usual name that is no model input.

    Raises:
        DataError: the named one is not there.
    """
    if isinstance(reader, ImageReader):
        return "labels" if reader.labels is not None else None
    if source.labels is not None:
        return named_column(reader, source.labels, "labels")
    used = {spec.name for spec in signature.inputs if spec.name not in source.columns}
    used.update(name for text in source.columns.values() for name in _split(reader, text))
    return next((name for name in LABEL_NAMES if name in reader.columns and name not in used), None)


def group_column(reader: Reader, source: DataSource) -> str | None:
    """The column of the groups, if one is named.

    Raises:
        DataError: it is not there.
    """
    if source.groups is None:
        return None
    return "groups" if isinstance(reader, ImageReader) else named_column(reader, source.groups, "groups")


def bind(
    reader: Reader,
    source: DataSource,
    signature: Signature,
    entries: Mapping[str, ImageEntry | TextEntry],
    *,
    folder: Path,
    assets: Path,
) -> Binding:
    """Find the columns of every input.

    Args:
        reader: the opened source.
        source: its ``columns`` rename.
        signature: the model's inputs.
        entries: preprocessing; skipped for inputs whose data are ready tensors.
        folder: where image paths in a table count from.
        assets: where tokenizer paths count from.

    Raises:
        DataError: names do not match, with both lists and a suggestion.
    """
    labels, groups = label_column(reader, source, signature), group_column(reader, source)
    beside = tuple(name for name in (labels, groups) if name is not None)
    return _Binder(reader, source, signature, entries, beside, folder, assets).bind()


@dataclass(frozen=True)
class _Binder:
    reader: Reader
    source: DataSource
    signature: Signature
    entries: Mapping[str, ImageEntry | TextEntry]
    beside: tuple[str, ...]
    folder: Path
    assets: Path

    def bind(self) -> Binding:
        self._check_keys()
        raw = [feed for key, entry in self.entries.items() if (feed := self._raw_feed(key, entry)) is not None]
        done = {name for feed in raw for name in _made_by(feed)}
        axes = sample_axes(self.signature)
        feeds: list[Feed] = list(raw)
        constants: dict[str, str] = {}
        for spec in self.signature.inputs:
            if spec.name in done:
                continue
            columns = self._tensor_columns(spec)
            if self.signature.one_sample and not self._is_constant(spec, columns[0]):
                feeds.append(TensorFeed(spec, columns, 0, self.reader.parsed, led=True))
            elif axes[spec.name] is None:
                constants[spec.name] = columns[0]
            else:
                feeds.append(TensorFeed(spec, columns, axes[spec.name], self.reader.parsed))
        return Binding(tuple(feeds), constants)

    def _is_constant(self, spec: TensorSpec, column: str) -> bool:
        """A scalar beside vectors that comes as one number, for all samples."""
        alone = isinstance(self.reader, ArrayReader) and self.reader.ndim(column) == 0
        return alone and not spec.shape and any(other.shape for other in self.signature.inputs)

    @property
    def _names(self) -> list[str]:
        return [spec.name for spec in self.signature.inputs]

    @property
    def _free(self) -> list[str]:
        """Columns that are no labels and no groups."""
        return [name for name in self.reader.columns if name not in self.beside]

    def _check_keys(self) -> None:
        known = [*self._names, *self.entries]
        for key, text in self.source.columns.items():
            if key not in known:
                raise DataError(
                    f"`columns:` names '{key}', which is no input of the model{did_you_mean(key, known)}.",
                    expected=f"one of {listed(known)}",
                    fix="write `columns: {MODEL_INPUT: COLUMN}`",
                )
            for name in _split(self.reader, text):
                named_column(self.reader, name, f"columns.{key}")

    def _raw_feed(self, key: str, entry: ImageEntry | TextEntry) -> Feed | None:
        """The feed of a preprocess entry; None when the data are ready tensors."""
        return self._image_feed(key, entry) if isinstance(entry, ImageEntry) else self._text_feed(key, entry)

    def _image_feed(self, key: str, entry: ImageEntry) -> Feed | None:
        spec = next((spec for spec in self.signature.inputs if spec.name == key), None)
        if spec is None:
            raise self._no_such_input(key)
        column = self._raw_columns(key)[0]
        if _is_ready_image(self.reader.first(column), spec):
            return None
        return ImageFeed(spec, column, sample_axes(self.signature)[key] or 0, entry, self.folder)

    def _text_feed(self, key: str, entry: TextEntry) -> Feed | None:
        roles = text_roles(self.signature.inputs, key)
        if not roles:
            raise self._no_such_input(key)
        for name in roles:
            column = self.source.columns.get(name, name)
            if column in self.reader.columns and _is_numeric(self.reader.first(column)):
                return None
        specs = tuple(spec for spec in self.signature.inputs if spec.name in roles)
        axes = {name: sample_axes(self.signature)[name] or 0 for name in roles}
        return TextFeed(specs, roles, self._raw_columns(key), axes, entry, self.assets)

    def _no_such_input(self, key: str) -> DataError:
        return DataError(
            f"`preprocess:` names '{key}', which is no input of the model{did_you_mean(key, self._names)}.",
            expected=f"one of {listed(self._names)}",
            fix="name the entry after the input that it makes",
        )

    def _raw_columns(self, key: str) -> tuple[str, ...]:
        if key in self.source.columns:
            return _split(self.reader, self.source.columns[key])
        if key in self.reader.columns:
            return (key,)
        free = [name for name in self._free if name not in self._names] or self._free
        usual = [name for name in _USUAL_RAW if name in free]
        if len(free) == 1 or usual:
            return (free[0] if len(free) == 1 else usual[0],)
        raise self._mismatch(key)

    def _tensor_columns(self, spec: TensorSpec) -> tuple[str, ...]:
        self._refuse_raw(spec)
        if spec.name in self.source.columns:
            return _split(self.reader, self.source.columns[spec.name])
        if spec.name in self.reader.columns:
            return (spec.name,)
        several = len(self._free) > 1 and self.reader.parsed
        alone = len(self._free) == 1 and not self._is_another(self._free[0], spec.name)
        if len(self._names) == 1 and (alone or several):
            return tuple(self._free)
        raise self._mismatch(spec.name)

    def _is_another(self, column: str, name: str) -> bool:
        """Whether a column is called as an output of the model, or as an input of another kind than ``name``."""
        kinds = [next((kind for kind in _KINDS if re.search(kind, text.lower())), "") for text in (column, name)]
        return column in {spec.name for spec in self.signature.outputs} or ("" not in kinds and kinds[0] != kinds[1])

    def _refuse_raw(self, spec: TensorSpec) -> None:
        """Images need an entry that says how they become numbers."""
        column = self.source.columns.get(spec.name, spec.name)
        if not isinstance(self.reader, ImageReader) or spec.dtype == "string" or column in self.beside:
            return
        raise DataError(
            f"Nothing says how the images of {self.reader.where} become the input '{spec.name}'.",
            expected=f"an entry for {spec} under `preprocess:`",
            fix=f"add `preprocess: {{{spec.name}: {{kind: image, resize: 256, crop: 224, mean: ..., scale: ...}}}}`",
        )

    def _mismatch(self, name: str) -> DataError:
        found = did_you_mean(name, self._free)
        return DataError(
            f"{self.reader.where} has nothing named '{name}' for the model input '{name}'{found}.",
            expected=f"{listed(self._names)}; found {listed(self.reader.columns)}",
            fix=f"rename it in the data, or map it with `columns: {{{name}: NAME_IN_THE_DATA}}`",
        )


def _made_by(feed: Feed) -> tuple[str, ...]:
    if isinstance(feed, TextFeed):
        return tuple(spec.name for spec in feed.specs)
    return (feed.spec.name,) if isinstance(feed, ImageFeed | TensorFeed) else ()


def _split(reader: Reader, text: str) -> tuple[str, ...]:
    """A column, or several with commas between."""
    return (text,) if text in reader.columns else tuple(name.strip() for name in text.split(","))


def _is_numeric(value: Any) -> bool:
    """Whether a column's first value is numbers rather than text or a file."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in "UOS"
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return isinstance(json.loads(value), list)
        except ValueError:
            return False
    return not isinstance(value, str | Path)


def _is_ready_image(value: Any, spec: TensorSpec) -> bool:
    raw_pixels = isinstance(value, np.ndarray) and value.dtype == np.uint8 and numpy_dtype(spec) != np.uint8
    return _is_numeric(value) and not raw_pixels
