"""The header of a safetensors file: 8 bytes of length, then JSON. (https://huggingface.co/docs/safetensors)"""

from __future__ import annotations

import json
from pathlib import Path

from optkit.errors import ModelError

_HEADER_LIMIT = 100_000_000
"""Bytes; a header is never longer, by the specification."""


def looks_like_safetensors(head: bytes) -> bool:
    """Whether a file that begins with these bytes (at least 9) can be one."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _HEADER_LIMIT


def safetensors_keys(path: Path) -> tuple[str, ...]:
    """Names of the tensors, in the file's order; reads the header only.

    Raises:
        ModelError: the header cannot be read, or the tensors do not end where the file does.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
    try:
        entries = json.loads(header)
        keys = tuple(key for key in entries if key != "__metadata__")
        end = max((int(entries[key]["data_offsets"][1]) for key in keys), default=0)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise _broken(path, "its header cannot be read") from error
    if 8 + length + end != size:
        raise _broken(path, f"its tensors end at byte {8 + length + end:,}, the file has {size:,}")
    return keys


def _broken(path: Path, why: str) -> ModelError:
    return ModelError(
        f"The safetensors file is cut off or damaged: {why}.",
        expected="a complete file",
        fix="save or copy it again, and compare sizes or checksums with the source",
        file=path,
    )
