"""Which nodes a quantizing pass takes on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"'{pattern}' is no regular expression: {error}") from error
    return pattern


NodePattern = Annotated[str, AfterValidator(_compiles)]
"""A node's name, or a regular expression that matches all of it."""


def excluded(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of ``patterns`` is ``name`` or matches all of it."""
    return any(name == pattern or re.fullmatch(pattern, name) for pattern in patterns)


def unused(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """A sentence for every pattern that excludes no node, which is a typo more often than not."""
    known = list(names)
    idle = [pattern for pattern in patterns if not any(excluded(name, [pattern]) for name in known)]
    return [f"exclude '{pattern}' matches no node" for pattern in idle]
