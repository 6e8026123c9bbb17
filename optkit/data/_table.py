"""Samples written as text: .csv, .jsonl, and plain text with one sample a line."""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from optkit.data._reader import Lazy, Reader, Rows, did_you_mean, listed, sha256_of
from optkit.data.dataset import Array
from optkit.errors import DataError

TEXT_COLUMN = "text"
"""The one column of a text file."""
_COLUMN_ADVICE = "name an existing column under `columns:`, `labels:` or `groups:`"


@dataclass(frozen=True, eq=False)
class TableReader(Lazy):
    """A .csv or .jsonl file, kept in memory; numbers in it have no dtype of their own."""

    path: Path
    kind: Literal["csv", "jsonl"]
    parsed: bool = True

    @property
    def where(self) -> str:
        """The path."""
        return str(self.path)

    @cached_property
    def _table(self) -> tuple[tuple[str, ...], list[tuple[int, Any]]]:
        """Column names, and (line number, row) of every row: a list of cells (.csv) or a mapping (.jsonl)."""
        if self.kind == "csv":
            return _csv_rows(self.path)
        rows = list(_json_rows(self.path))
        return tuple(rows[0][1]) if rows else (), rows

    @cached_property
    def _position(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.columns)}

    @property
    def columns(self) -> tuple[str, ...]:
        """The header of a .csv, the keys of the first line of a .jsonl."""
        return self._table[0]

    @property
    def count(self) -> int:
        """Rows, without the header and without empty lines."""
        return len(self._table[1])

    def bound(self, axes: Mapping[str, int | None], ranks: Mapping[str, int]) -> Reader:
        """Itself: a table is read by rows whatever the axes."""
        del axes, ranks
        return self

    def read(self, columns: Sequence[str], indices: Array) -> dict[str, Rows]:
        """Cells as they are written (.csv: strings; .jsonl: numbers, strings, lists)."""
        return {name: [self._cell(name, int(index)) for index in indices] for name in columns}

    def _cell(self, column: str, index: int) -> Any:
        line, row = self._table[1][index]
        if self.kind == "csv":
            return row[self._position[column]]
        if column not in row:
            raise DataError(
                f"The line has no '{column}'{did_you_mean(column, row)}.",
                expected=f"every line to have it; this one has {listed(row)}",
                fix=_COLUMN_ADVICE,
                file=self.path,
                line=line,
            )
        return row[column]

    def first(self, column: str) -> Any:
        """The first row's cell."""
        return self._cell(column, 0) if self.count else ""

    def constant(self, column: str) -> Any:
        """The cell, which has to be the same in every row."""
        cells = [self._cell(column, index) for index in range(self.count)]
        for index, cell in enumerate(cells):
            if cell != cells[0]:
                raise DataError(
                    f"The input '{column}' has no sample axis, but its value changes in {self.place(index)} of "
                    f"{self.path}.",
                    expected=f"{cells[0]} in every row",
                    fix="keep it the same, or export the model with a batch axis on this input",
                )
        return cells[0]

    def place(self, index: int) -> str:
        """The line in the file."""
        return f"line {self._table[1][index][0]}"

    @cached_property
    def digest(self) -> str:
        """sha256 over the file."""
        return sha256_of([self.path])


def _csv_rows(path: Path) -> tuple[tuple[str, ...], list[tuple[int, list[str]]]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, delimiter=delimiter, skipinitialspace=True)
            header = tuple(name.strip() for name in next(reader, []))
            rows = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise _not_text(path, error) from error
    twice = [name for name in header if header.count(name) > 1] if len(set(header)) < len(header) else []
    if twice:
        raise DataError(
            f"The header names the column '{twice[0]}' more than once.",
            expected="each column name once",
            fix="rename one of them",
            file=path,
            line=1,
        )
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(
                f"The row has {len(row)} fields, the header has {len(header)}.",
                expected=f"{len(header)} fields in every row: {listed(header)}",
                fix="quote fields that hold the delimiter",
                file=path,
                line=line,
            )
    return header, rows


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise _not_text(path, error) from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, _json_object(line, path, number)


def _json_object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"The line is not JSON: {error.msg}.",
            expected='one JSON object a line, such as {"x": [1, 2], "label": 0}',
            fix="mend or delete the line",
            file=path,
            line=number,
            column=error.colno,
        ) from error
    if not isinstance(value, dict):
        raise DataError(
            f"The line is a JSON {type(value).__name__}, not an object.",
            expected='one JSON object a line, such as {"x": [1, 2], "label": 0}',
            fix="give every value a name",
            file=path,
            line=number,
        )
    return value


def _not_text(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be read as UTF-8 text: {error}.",
        expected="a UTF-8 text file",
        fix="convert it, for example with `iconv -f latin1 -t utf-8`",
    )


@dataclass(frozen=True, eq=False)
class TextReader(Lazy):
    """A text file: one sample a line, empty lines left out. Lines are read when they are needed."""

    path: Path
    parsed: bool = True

    @property
    def where(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def columns(self) -> tuple[str, ...]:
        """Only ``text``."""
        return (TEXT_COLUMN,)

    @cached_property
    def _lines(self) -> tuple[array[int], array[int]]:
        """Byte offset and line number of every line that is not empty."""
        offsets, numbers, at = array("q"), array("q"), 0
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    offsets.append(at)
                    numbers.append(number)
                at += len(line)
        return offsets, numbers

    @property
    def count(self) -> int:
        """Lines that are not empty."""
        return len(self._lines[0])

    def bound(self, axes: Mapping[str, int | None], ranks: Mapping[str, int]) -> Reader:
        """Itself: there is one column."""
        del axes, ranks
        return self

    def read(self, columns: Sequence[str], indices: Array) -> dict[str, Rows]:
        """The lines, without their line ends."""
        with self.path.open("rb") as stream:
            lines: Rows = [self._line(stream, int(index)) for index in indices]
        return dict.fromkeys(columns, lines)

    def _line(self, stream: Any, index: int) -> str:
        stream.seek(self._lines[0][index])
        try:
            text: str = stream.readline().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise _not_text(self.path, error) from error
        return text.rstrip("\r\n")

    def first(self, column: str) -> Any:
        """Some text."""
        del column
        return ""

    def constant(self, column: str) -> Any:
        """Never asked for: a text file has one column and it has samples.

        Raises:
            DataError: always.
        """
        raise DataError(
            f"The text file {self.path} cannot give the input '{column}', which has no sample axis.",
            expected="a source with one value for it",
            fix="use .jsonl or .npz for this model",
        )

    def place(self, index: int) -> str:
        """The line in the file."""
        return f"line {self._lines[1][index]}"

    @cached_property
    def digest(self) -> str:
        """sha256 over the file."""
        return sha256_of([self.path])


def read_column(path: Path, column: str) -> Rows:
    """A whole column of a .csv file.

    Raises:
        DataError: the column is missing, or the file cannot be read.
    """
    table = TableReader(path, "csv")
    if column not in table.columns:
        raise DataError(
            f"{path} has no column '{column}'{did_you_mean(column, table.columns)}.",
            expected=f"a column '{column}'; found {listed(table.columns)}",
            fix="name the column like that in the first line of the file",
        )
    return table.read((column,), np.arange(table.count))[column]
