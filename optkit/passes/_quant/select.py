"""Which nodes a quantizing pass takes on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
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
QUANTIZED = re.compile(
    r"(com\.microsoft\.)?"
    r"(\w*[Qq]uantize\w*|Q(Linear|Gemm|Attention|Ordered|MoE|EmbedLayer)\w*|(MatMul|Conv)Integer\w*|MatMul(NBits|Bnb4|FpQ4)\w*)"
)
"""Operators, as ``op_counts`` names them, that only quantized models have."""


def excluded(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of ``patterns`` is ``name`` or matches all of it."""
    return any(name == pattern or re.fullmatch(pattern, name) for pattern in patterns)


def already_quantized(counts: Counter[str]) -> str:
    """A sentence where ``counts``, of ``op_counts``, hold operators of a quantized model; else empty.

    A pass that finds float layers beside them quantizes those, with the sentence among its notes.
    """
    kinds = [(kind, count) for kind, count in counts.most_common() if QUANTIZED.fullmatch(kind)]
    told = ", ".join(f"{count} {kind.split('.')[-1]}" for kind, count in kinds[:4])
    return f"the model holds quantized operators already: {told}" if kinds else ""


def nothing(sought: str, skipped: Sequence[tuple[str, str]], found: Counter[str]) -> str:
    """Why nothing was quantized: it is excluded or quantized already, or there is nothing of what is ``sought``."""
    if count := sum(reason == EXCLUDED for _, reason in skipped):
        return f"nothing to quantize: {count} nodes are excluded, and there is {sought} besides"
    if already := already_quantized(found):
        return f"nothing to quantize: {sought}; {already}"
    operators = ", ".join(f"{count} {kind}" for kind, count in found.most_common(12))
    return f"nothing to quantize: {sought}; the model has {operators or 'no nodes'}{commonest(skipped)}"


def commonest(skipped: Sequence[tuple[str, str]]) -> str:
    """The end of a sentence: why most of ``skipped`` were left, if there are any."""
    reasons = Counter(reason for _, reason in skipped).most_common(1)
    return "".join(f"; {count} were looked at and left: {reason}" for reason, count in reasons)


def unused(patterns: Iterable[str], names: Iterable[str], option: str = "exclude", what: str = "node") -> list[str]:
    """A sentence for every pattern of ``option`` that fits no node or other ``what``: a typo more often than not."""
    known = list(names)
    idle = [pattern for pattern in patterns if not any(excluded(name, [pattern]) for name in known)]
    return [f"{option} '{pattern}' matches no {what}{_meant(pattern, known)}" for pattern in idle]


def _meant(pattern: str, known: Sequence[str]) -> str:
    close = get_close_matches(pattern, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
