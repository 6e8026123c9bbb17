"""Names a model gives its inputs and outputs, as names of files: a model file may come from anywhere."""

from __future__ import annotations

import re
from collections.abc import Container

_LONGEST = 100


def file_name(name: str, taken: Container[str] = ()) -> str:
    """One plain path component for ``name``, and none of ``taken``; ``input_ids`` and the like stay as they are."""
    plain = re.sub(r"[^\w.-]", "_", name)[:_LONGEST]
    return _free(plain if plain.strip(".") else f"_{plain}", taken)


def member_name(name: str, taken: Container[str] = ()) -> str:
    """The name of a member of an archive: ``name`` itself, unless unpacking it could lead out of the folder."""
    leads_out = name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or re.match(r"[A-Za-z]:[/\\]", name)
    return file_name(name, taken) if leads_out or "\0" in name else _free(name, taken)


def _free(name: str, taken: Container[str]) -> str:
    found, number = name, 1
    while found in taken:
        found, number = f"{name}_{number}", number + 1
    return found
