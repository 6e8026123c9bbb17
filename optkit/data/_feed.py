"""From rows of a source to one input of a model: parse, check, pad, cast. Nothing is cast that could lose anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from optkit.data._reader import Rows
from optkit.data.dataset import Array, Arrays
from optkit.errors import DataError
from optkit.model.signature import Signature, TensorSpec

Place = Callable[[int], str]
"""Position in the batch -> where that sample stands in the source."""


class Feed(Protocol):
    """Makes one or more inputs of the model from columns of the source."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What it reads."""

    @property
    def axes(self) -> dict[str, int | None]:
        """Column -> its sample axis in the source."""

    @property
    def ranks(self) -> dict[str, int]:
        """Column -> its rank including the sample axis, where that is known."""

    @property
    def fingerprint(self) -> str:
        """Everything that decides what it makes, as text."""

    def files(self, read: Callable[[], Mapping[str, Rows]]) -> tuple[Path, ...]:
        """Further files that the rows name; ``read`` gives the rows."""

    def make(self, values: Mapping[str, Rows], place: Place) -> Arrays:
        """The inputs for some rows, with the model's dtype and layout."""


def sample_axes(signature: Signature) -> dict[str, int | None]:
    """``Signature.batch_axes()``, with axis 0 for inputs whose rank is not known."""
    axes = signature.batch_axes()
    return {spec.name: 0 if spec.shape is None else axes[spec.name] for spec in signature.inputs}


def numpy_dtype(spec: TensorSpec) -> np.dtype[Any]:
    """The numpy dtype of an input; bfloat16 and friends come from ml_dtypes, which onnx brings.

    Raises:
        DataError: numpy cannot make such arrays.
    """
    if spec.dtype == "string":
        return np.dtype(np.str_)
    try:
        return np.dtype(spec.dtype)
    except TypeError:
        import ml_dtypes

        made = getattr(ml_dtypes, spec.dtype, None)
    if made is None:
        raise DataError(
            f"The model input '{spec.name}' has the dtype {spec.dtype}, which numpy cannot hold.",
            expected="one of numpy's dtypes, or bfloat16",
            fix="export the model with another input dtype",
        )
    dtype: np.dtype[Any] = np.dtype(made)
    return dtype


@dataclass(frozen=True)
class TensorFeed:
    """One input, taken from one column as it is, or from several numeric columns side by side."""

    spec: TensorSpec
    columns: tuple[str, ...]
    axis: int | None
    parsed: bool
    led: bool = False
    """One call of the model is one sample: the source has an axis 0 of samples that the input has not."""

    @property
    def source_spec(self) -> TensorSpec:
        """The input as the source holds it."""
        return led_spec(self.spec) if self.led else self.spec

    @property
    def axes(self) -> dict[str, int | None]:
        """The sample axis in the source."""
        return dict.fromkeys(self.columns, self.axis)

    @property
    def ranks(self) -> dict[str, int]:
        """The rank in the source."""
        shape = self.source_spec.shape
        return {} if shape is None else dict.fromkeys(self.columns, len(shape))

    @property
    def fingerprint(self) -> str:
        """Input and columns."""
        return f"{self.source_spec} {self.axis} {self.columns}"

    def files(self, read: Callable[[], Mapping[str, Rows]]) -> tuple[Path, ...]:
        """None."""
        del read
        return ()

    def make(self, values: Mapping[str, Rows], place: Place) -> Arrays:
        """Rows -> one array, ragged rows padded with 0."""
        if len(self.columns) == 1:
            rows = values[self.columns[0]]
        else:
            rows = [list(cells) for cells in zip(*(values[name] for name in self.columns), strict=True)]
        spec = self.source_spec
        if self.parsed and spec.dtype != "string":
            rows = parse_rows(rows, spec, place)
        made = finish(rows, spec, self.axis, place, parsed=self.parsed)
        return {spec.name: made[0, ...] if self.led else made}


def led_spec(spec: TensorSpec) -> TensorSpec:
    """The same with an axis of samples before the others."""
    return replace(spec, shape=None if spec.shape is None else ("batch", *spec.shape))


def constant_input(value: Any, spec: TensorSpec, *, parsed: bool) -> Array:
    """The value of an input without a sample axis, checked and cast."""

    def place(_: int) -> str:
        return "its value"

    led = led_spec(spec)
    rows: Rows = [value]
    if parsed and spec.dtype != "string":
        rows = parse_rows(rows, led, place)
    made: Array = finish([np.asarray(rows[0])], led, 0, place, parsed=parsed)[0, ...]
    return made


def finish(rows: Rows, spec: TensorSpec, axis: int | None, place: Place, *, parsed: bool = False) -> Array:
    """Rows (sample axis first) -> the input: shape checked, padded, cast, finite, in the model's layout.

    Raises:
        DataError: a row has the wrong rank or size, the dtype does not fit, or a number is not finite.
    """
    axis = axis or 0
    if isinstance(rows, np.ndarray):
        _check_shape(rows.shape[1:], spec, axis, place, 0)
        array = rows
    else:
        pieces = [np.asarray(row) for row in rows]
        for index, piece in enumerate(pieces):
            _check_shape(piece.shape, spec, axis, place, index)
        array = _padded(pieces)
    array = _cast(array, spec, place, parsed=parsed)
    _check_finite(array, spec, place)
    return np.ascontiguousarray(np.moveaxis(array, 0, axis))


def _check_shape(found: tuple[int, ...], spec: TensorSpec, axis: int, place: Place, index: int) -> None:
    if spec.shape is None:
        return
    wanted = tuple(dim for i, dim in enumerate(spec.shape) if i != axis)
    numbers = [i for i in range(len(spec.shape)) if i != axis]
    if len(found) != len(wanted):
        raise DataError(
            f"The data for the input '{spec.name}' have {len(found) + 1} axes, the model wants {len(spec.shape)}.",
            expected=f"{spec}, samples along axis {axis}; found {_shape_text(found, axis)}",
            fix="save the array in that shape",
        )
    for number, have, want in zip(numbers, found, wanted, strict=True):
        if isinstance(want, int) and want != have:
            raise DataError(
                f"Axis {number} of the data for the input '{spec.name}' has size {have} in {place(index)}.",
                expected=f"size {want}, because the model input is {spec}; found {_shape_text(found, axis)}",
                fix="save the array in that shape, or export the model with this axis dynamic",
            )


def _shape_text(found: Sequence[int], axis: int) -> str:
    dims = [str(dim) for dim in found]
    return "[" + ",".join([*dims[:axis], "samples", *dims[axis:]]) + "]"


def _padded(pieces: list[Array]) -> Array:
    """Stack; where sizes differ, zeros follow the shorter rows."""
    if len({piece.shape for piece in pieces}) == 1:
        return np.stack(pieces)
    shape = tuple(max(sizes) for sizes in zip(*(piece.shape for piece in pieces), strict=True))
    made = np.zeros((len(pieces), *shape), dtype=np.result_type(*pieces))
    for row, piece in zip(made, pieces, strict=True):
        row[tuple(slice(size) for size in piece.shape)] = piece
    return made


def _cast(array: Array, spec: TensorSpec, place: Place, *, parsed: bool) -> Array:
    wanted = numpy_dtype(spec)
    if array.dtype == wanted or (wanted.kind == "U" and array.dtype.kind == "U"):
        return array
    if not _castable(array.dtype, wanted, parsed):
        raise DataError(
            f"The data for the input '{spec.name}' are {array.dtype}, the model wants {spec.dtype}.",
            expected=f"{spec.dtype}, or a dtype that becomes {spec.dtype} without loss",
            fix=_dtype_advice(array.dtype, wanted, spec),
        )
    with np.errstate(over="ignore", invalid="ignore"):
        made = array.astype(wanted)
    if parsed and wanted.kind in "iub":
        _check_exact(array, made, spec, place)
    return made


def _castable(found: np.dtype[Any], wanted: np.dtype[Any], parsed: bool) -> bool:
    if parsed:
        return found.kind in "iufb" and wanted.kind in "iufbV"
    if found.kind == "f":
        return wanted.kind in "fV"
    return found.kind in "iub" and wanted.kind in "iu" and np.can_cast(found, wanted, "safe")


def _dtype_advice(found: np.dtype[Any], wanted: np.dtype[Any], spec: TensorSpec) -> str:
    if found == np.uint8 and wanted.kind == "f":
        return f"describe the scaling under `preprocess: {{{spec.name}: {{kind: image, mean: ..., scale: ...}}}}`"
    if found.kind in "UO":
        return f"save numbers, or describe the text under `preprocess: {{{spec.name}: {{kind: text, tokenizer: DIR}}}}`"
    return f"save the array with .astype('{spec.dtype}')"


def _check_exact(before: Array, after: Array, spec: TensorSpec, place: Place) -> None:
    wrong = np.argwhere(before != after)
    if len(wrong):
        raise DataError(
            f"The value {before[tuple(wrong[0])]} for the input '{spec.name}' in {place(int(wrong[0][0]))} is no "
            f"{spec.dtype}.",
            expected=f"values that {spec.dtype} can hold",
            fix="correct the value, or name another column under `columns:`",
        )


def _check_finite(array: Array, spec: TensorSpec, place: Place) -> None:
    if array.dtype.kind not in "fV":
        return
    finite = np.isfinite(array)
    if not finite.all():
        row = int(np.argwhere(~finite)[0][0])
        raise DataError(
            f"The data for the input '{spec.name}' hold {array[~finite][0]} in {place(row)}.",
            expected=f"finite numbers that {spec.dtype} can hold",
            fix="remove the sample, or repair how the data were made",
        )


def parse_rows(rows: Rows, spec: TensorSpec, place: Place) -> list[Array]:
    """Cells of a table -> one array per row. A cell is a number, a JSON list, or numbers with blanks between.

    A flat row takes the shape of an input whose sizes are all fixed and that has as many elements.

    Raises:
        DataError: a cell is no number.
    """
    return [_shaped(_parse_cell(cell, spec, place, index), spec) for index, cell in enumerate(rows)]


def _shaped(row: Array, spec: TensorSpec) -> Array:
    sample = [dim for i, dim in enumerate(spec.shape or ()) if i != (spec.batch_axis or 0)]
    sizes = [dim for dim in sample if isinstance(dim, int)]
    fits = spec.shape is not None and len(sizes) == len(sample) and int(np.prod(sizes)) == row.size
    return row.reshape(sizes) if fits and row.ndim <= 1 else row


def _parse_cell(cell: Any, spec: TensorSpec, place: Place, index: int) -> Array:
    try:
        if isinstance(cell, list):
            array = _plain_list(cell)
        elif isinstance(cell, str):
            array = np.asarray(_numbers(cell))
        else:
            array = np.asarray(cell)
    except (ValueError, OverflowError):
        array = np.asarray(None)
    if array.dtype.kind not in "iufb":
        raise DataError(
            f"The value {cell!r:.60} for the input '{spec.name}' in {place(index)} is no number.",
            expected=f"a number, or a list of numbers, for {spec}",
            fix="correct it, name another column under `columns:`, or say under `preprocess:` how text or image files "
            "become this input",
        )
    return array


def _plain_list(cell: list[Any]) -> Array:
    """A JSON list of numbers, or one row over several columns of a .csv."""
    if any(isinstance(item, str) for item in cell):
        return _fast_numbers(cell)
    return np.asarray(cell) if cell else np.zeros(0, dtype=np.int64)


def _fast_numbers(cell: list[Any]) -> Array:
    for kind in (np.int64, np.float64):
        try:
            return np.asarray(cell, dtype=np.str_).astype(kind)
        except ValueError:
            continue
    return np.asarray([_numbers(item) if isinstance(item, str) else item for item in cell])


def _numbers(text: str) -> Any:
    for parse in _PARSERS:
        try:
            return parse(text)
        except ValueError:
            continue
    return list(_split(text))


_PARSERS: tuple[Callable[[str], Any], ...] = (int, float, json.loads)


def _split(text: str) -> Iterator[float | int]:
    words = text.split()
    if len(words) < 2:
        raise ValueError(text)
    for word in words:
        yield int(word) if word.lstrip("+-").isdigit() else float(word)
