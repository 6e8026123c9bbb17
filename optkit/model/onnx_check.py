"""Do the weights of an ONNX file exist, fit their dims, and lie inside the model's folder? Reads no weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from optkit.errors import ModelError

if TYPE_CHECKING:
    from onnx import TensorProto


@cache
def _bits(data_type: int) -> int | None:
    """Bits per value in ``raw_data``; None for strings and types this version of onnx does not size."""
    from onnx import TensorProto, helper

    names = {TensorProto.DataType.Name(value): value for value in TensorProto.DataType.values()}
    packed = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
    unsized = {"STRING", "UNDEFINED", "FLOAT6E2M3", "FLOAT6E3M2"}
    found = next((name for name, value in names.items() if value == data_type), "UNDEFINED")
    if found in unsized:
        return None
    return packed[found] if found in packed else int(helper.tensor_dtype_to_np_dtype(data_type).itemsize) * 8


def expected_bytes(tensor: TensorProto) -> int | None:
    """Size of the values by dims and dtype, bytes; None where the dtype has no fixed size (strings)."""
    bits = _bits(tensor.data_type)
    return None if bits is None else (math.prod(tensor.dims) * bits + 7) // 8


def location_of(tensor: TensorProto) -> str | None:
    """Where the external data are, as the file states it; None for inline tensors."""
    from onnx import TensorProto

    if tensor.data_location != TensorProto.EXTERNAL:
        return None
    return _entries(tensor).get("location", "")


def _entries(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def check_inline(tensors: Iterable[tuple[str, TensorProto]], path: Path) -> None:
    """Inline values are as many as the dims say.

    Raises:
        ModelError: names the first tensor that is too short or too long.
    """
    for name, tensor in tensors:
        found, expected = _inline_bytes(tensor), expected_bytes(tensor)
        if found is not None and expected is not None and found != expected:
            raise ModelError(
                f"The ONNX model is damaged: the tensor '{name}' has {found:,} bytes of values,"
                f" its shape {list(tensor.dims)} needs {expected:,}.",
                expected="as many values as the shape says",
                fix="export or copy the model again",
                file=path,
            )


def _inline_bytes(tensor: TensorProto) -> int | None:
    """Bytes of the values in the protobuf, None where they cannot be counted."""
    if location_of(tensor) is not None:
        return None
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    bits = _bits(tensor.data_type)
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    count = next((len(values) for values in fields if values), 0)
    if bits is None or (count and bits % 8):
        return None
    per_value = 2 if tensor.data_type in _complex() else 1
    return count * bits // 8 // per_value


@cache
def _complex() -> frozenset[int]:
    from onnx import TensorProto

    return frozenset({TensorProto.COMPLEX64, TensorProto.COMPLEX128})


def check_external(tensors: Iterable[tuple[str, TensorProto]], path: Path) -> None:
    """External data are there, long enough, and inside the model's folder.

    Raises:
        ModelError: names the first tensor that fails, and its location.
    """
    sizes: dict[str, int] = {}
    for name, tensor in tensors:
        location = location_of(tensor)
        if location is None:
            continue
        if location not in sizes:
            sizes[location] = _size_inside(name, location, path)
        _check_region(name, tensor, sizes[location], path)


def _size_inside(name: str, location: str, path: Path) -> int:
    """Size of the data file, after checking that it is a file in the model's own folder."""
    forms = (PurePosixPath(location), PureWindowsPath(location))
    leaves = any(form.is_absolute() or form.drive or form.root or ".." in form.parts for form in forms)
    if leaves or "\0" in location:
        raise _outside(name, location, path, "its path leads outside the model's folder")
    file = path.parent / location
    if not file.resolve().is_relative_to(path.parent.resolve()):
        raise _outside(name, location, path, "it is a link that leads outside the model's folder")
    if not location or not file.is_file():
        raise ModelError(
            f"The external data of the tensor '{name}' are missing: there is no file '{location}' beside the model.",
            expected=f"{file}",
            fix=f"copy '{location}' into {path.parent.absolute()}, from where the model came from",
            file=path,
        )
    return file.stat().st_size


def _outside(name: str, location: str, path: Path, why: str) -> ModelError:
    return ModelError(
        f"The external data '{location}' of the tensor '{name}' are refused: {why}.",
        expected="a plain file in the folder of the model, or below it",
        fix="copy the data file beside the model and save the model again with that location",
        file=path,
    )


def _check_region(name: str, tensor: TensorProto, size: int, path: Path) -> None:
    entries, expected = _entries(tensor), expected_bytes(tensor)
    offset = _number(name, "offset", entries.get("offset", "0"), path)
    fallback = size - offset if expected is None else expected
    length = _number(name, "length", entries.get("length", str(max(fallback, 0))), path)
    if expected is not None and length != expected:
        raise ModelError(
            f"The external data of the tensor '{name}' are {length:,} bytes in '{entries['location']}',"
            f" its shape {list(tensor.dims)} needs {expected:,}.",
            expected="as many values as the shape says",
            fix="export or copy the model again",
            file=path,
        )
    if offset + length > size:
        raise ModelError(
            f"The external data '{entries['location']}' are cut off: the tensor '{name}' ends at byte"
            f" {offset + length:,}, the file has {size:,}.",
            expected=f"at least {offset + length:,} bytes",
            fix=f"copy '{entries['location']}' again, and compare sizes or checksums with the source",
            file=path,
        )


def _number(name: str, key: str, text: str, path: Path) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    raise ModelError(
        f"The external data of the tensor '{name}' have the {key} '{text}'.",
        expected="a number of bytes",
        fix="export the model again",
        file=path,
    )
