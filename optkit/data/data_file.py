"""``data.yaml`` beside a model: names its data, its preprocessing and its metric; never code."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from optkit.data._reader import did_you_mean
from optkit.data.preprocess import parse_preprocess
from optkit.data.spec import DataSource, Split
from optkit.data.yaml_file import Document, KeyPath, read_yaml
from optkit.errors import DataError
from optkit.model.user_code import is_reference

Metric = str | dict[str, Any]
_OWN_KEYS = ("data", "preprocess", "metric", "models")


@dataclass(frozen=True)
class DataFile:
    """What a ``data.yaml`` says about one model."""

    path: Path
    data: Mapping[str, DataSource] = field(default_factory=dict)
    """Split -> source; relative paths count from ``base``."""
    preprocess: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Input -> entry, plain data as in a recipe."""
    metric: Metric | None = None
    """A shipped metric's name, or {name, args}."""

    @property
    def base(self) -> Path:
        """The folder it stands in."""
        return self.path.parent


def as_source(value: Any) -> Any:
    """A bare path -> ``{source: path}``, as everywhere a source may be stated."""
    return {"source": value} if isinstance(value, str) else value


class _Part(BaseModel):
    """The keys that may stand at the top, or under one model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: dict[Split, DataSource] = Field(default_factory=dict)
    preprocess: dict[str, dict[str, Any]] = Field(default_factory=dict)
    metric: Metric | None = None

    @field_validator("data", mode="before")
    @classmethod
    def _bare_paths(cls, value: Any) -> Any:
        return {split: as_source(source) for split, source in value.items()} if isinstance(value, dict) else value


class _Whole(_Part):
    models: dict[str, _Part] = Field(default_factory=dict)
    """File name pattern -> what is said about those models; it overrides the top, key by key."""


def find_data_file(model_path: Path) -> DataFile | None:
    """``STEM.data.yaml`` beside the model, else ``data.yaml``; None when there is none, or it does not mean this model.

    A ``data.yaml`` without any of optkit's keys belongs to another tool and is left alone.

    Raises:
        DataError: it is no valid YAML, has unknown keys or wrong values, or names code (file, line).
    """
    folder = model_path.absolute().parent
    for name in (f"{model_path.stem}.data.yaml", "data.yaml"):
        path = folder / name
        if path.is_file():
            return _read(path, model_path.name)
    return None


def _read(path: Path, model_name: str) -> DataFile | None:
    document = read_yaml(path, DataError)
    values = {} if document.data is None else document.data
    if path.name == "data.yaml" and _is_foreign(values):
        return None
    try:
        whole = _Whole.model_validate(values)
    except ValidationError as error:
        raise _invalid(error, path, document) from error
    _refuse_code(whole, (), path, document)
    for pattern, part in whole.models.items():
        _refuse_code(part, ("models", pattern), path, document)
    return _for_model(whole, path, model_name)


def _is_foreign(values: Any) -> bool:
    """No key of ours, nor one that looks like a slip of ours."""
    keys = [str(key) for key in values] if isinstance(values, dict) else []
    return bool(keys) and not any(difflib.get_close_matches(key, _OWN_KEYS, cutoff=0.75) for key in keys)


def _for_model(whole: _Whole, path: Path, model_name: str) -> DataFile | None:
    matching = [pattern for pattern in whole.models if fnmatchcase(model_name, pattern)]
    best = max(matching, key=lambda pattern: len(pattern.replace("*", "").replace("?", "")), default=None)
    parts = [whole] if best is None else [whole, whole.models[best]]
    stated = {name: getattr(part, name) for part in parts for name in part.model_fields_set if name != "models"}
    return DataFile(path, **stated) if stated else None


def _refuse_code(part: _Part, at: KeyPath, path: Path, document: Document) -> None:
    for split, source in part.data.items():
        is_file = (path.parent / source.source).exists()
        if source.format == "function" or (is_reference(source.source) and not is_file):
            raise _code(source.source, (*at, "data", split), path, document)
    name = part.metric.get("name", "") if isinstance(part.metric, dict) else part.metric
    if name and ":" in str(name):
        raise _code(str(name), (*at, "metric"), path, document)
    try:
        parse_preprocess(part.preprocess, file=path)
    except DataError as error:
        error.line = document.place((*at, "preprocess"))[0]
        raise


def _code(what: str, at: KeyPath, path: Path, document: Document) -> DataError:
    return DataError(
        f"{_dotted(at)} names code ('{what}'), and code is never run because a file lies beside a model.",
        expected="paths to data, and the names of shipped metrics",
        fix="name the code yourself, with --data SPLIT=pkg.module:fn or --metric pkg.module:Class, or in a recipe",
        file=path,
        line=document.place(at)[0],
    )


def _invalid(error: ValidationError, path: Path, document: Document) -> DataError:
    first = error.errors()[0]
    at: KeyPath = tuple(first["loc"])
    known = _OWN_KEYS if len(at) == 1 else tuple(DataSource.model_fields)
    hint = did_you_mean(str(at[-1]), known) if first["type"] == "extra_forbidden" else ""
    message = "this key is not known" if hint or first["type"] == "extra_forbidden" else first["msg"]
    return DataError(
        f"{_dotted(at) or 'The file'} is wrong: {message}{hint}.",
        expected="{data: {split: path or mapping}, preprocess, metric, models: {pattern: {...}}}; splits are "
        "calibration, search, evaluation, train and fit",
        fix="correct the key",
        file=path,
        line=document.place(at)[0],
    )


def _dotted(at: KeyPath) -> str:
    return ".".join(str(part) for part in at if part != "[key]")
