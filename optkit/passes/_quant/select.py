"""Which nodes a quantizing pass takes on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
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


EXCLUDED = "excluded"
"""The reason for nodes that ``exclude`` leaves in float."""


def excluded(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of ``patterns`` is ``name`` or matches all of it."""
    return any(name == pattern or re.fullmatch(pattern, name) for pattern in patterns)


def nothing(sought: str, skipped: Sequence[tuple[str, str]], found: Counter[str]) -> str:
    """Why nothing was quantized: it is excluded, or the model has other operators than those ``sought``."""
    if count := sum(reason == EXCLUDED for _, reason in skipped):
        return f"nothing to quantize: {count} nodes are excluded, and there is {sought} besides"
    operators = ", ".join(f"{count} {kind}" for kind, count in found.most_common(12))
    return f"nothing to quantize: {sought}; the model has {operators or 'no nodes'}"


def unused(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """A sentence for every pattern that excludes no node, which is a typo more often than not."""
    known = list(names)
    idle = [pattern for pattern in patterns if not any(excluded(name, [pattern]) for name in known)]
    return [f"exclude '{pattern}' matches no node" for pattern in idle]
