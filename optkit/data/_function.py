"""Samples from a user's function: ``pkg.module:fn`` or ``FILE.py:fn``. Runs code, so the user has to have named it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optkit.data._npz import ArrayReader
from optkit.data.dataset import Array, Arrays
from optkit.errors import DataError, OptkitError
from optkit.model.user_code import named


def open_function(source: str, *, base: Path, samples: int | None, sizes: Callable[[Arrays], int]) -> ArrayReader:
    """Call the function and keep up to ``samples`` samples.

    Args:
        source: the reference.
        base: the folder that ``FILE.py`` counts from.
        samples: stop after so many; None = until the function ends.
        sizes: number of samples in one item.

    Raises:
        DataError: it cannot be imported, raises, or does not yield dicts of arrays.
    """
    chunks: list[Arrays] = []
    have = 0
    for item in _items(source, base):
        chunks.append(_checked(item, source, len(chunks)))
        have += sizes(chunks[-1])
        if samples is not None and have >= samples:
            break
    return ArrayReader(where=source, chunks=tuple(chunks))


def first_item(source: str, *, base: Path) -> Arrays:
    """The first item the function yields, or an empty dict."""
    for item in _items(source, base):
        return _checked(item, source, 0)
    return {}


def _items(source: str, base: Path) -> Iterator[Any]:
    function = named(source, base=base, what="function", blame=DataError)
    try:
        made: Iterable[Any] = function()
        yield from made
    except OptkitError:
        raise
    except (Exception, SystemExit) as error:  # a user's own code may raise anything; it is no bug in optkit
        raise DataError(
            f"The data function {source} failed: {type(error).__name__}: {error}.",
            expected="a function without arguments that returns an iterable of {input name: array}",
            fix="call it on its own in Python and mend it",
        ) from error


def _checked(item: Any, source: str, number: int) -> Arrays:
    if not isinstance(item, Mapping) or not item:
        raise DataError(
            f"Item {number} of the data function {source} is a {type(item).__name__}, not a dict of arrays.",
            expected="dicts {input name: array}, each a batch with its sample axis",
            fix="yield {'input name': array} for every model input",
        )
    return {str(name): _array(value, f"'{name}' in item {number} of {source}") for name, value in item.items()}


def _array(value: Any, where: str) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(
            f"The value of {where} is no rectangular array: {error}.",
            expected="numpy arrays",
            fix="yield ragged samples as items of their own; each batch is padded",
        ) from error
    return array
