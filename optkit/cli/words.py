"""Words of the command line as values: sizes of dimensions, numbers of threads, a rate, session entries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from optkit.errors import UsageError

RULES = {"budget": "budget_s", **{name: name for name in ("precision", "margin", "launches", "seed")}}
"""Option -> what it is called in ``optkit.bench.measure.Rules``."""


def parse_dims(words: Iterable[str]) -> dict[str, list[int]]:
    """``["batch=1,8", "seq=32"]`` -> ``{"batch": [1, 8], "seq": [32]}``; the same name twice adds up.

    Raises:
        UsageError: an entry is not of that form.
    """
    found: dict[str, list[int]] = {}
    for word in words:
        name, _, sizes = word.partition("=")
        found.setdefault(name.strip(), []).extend(_counts("--dims", word, sizes, "batch=1,8,32"))
    return found


def parse_sizes(words: Iterable[str]) -> dict[str, int]:
    """``["batch=8"]`` -> ``{"batch": 8}``.

    Raises:
        UsageError: an entry is not of that form, or names more than one size.
    """
    found = parse_dims(words)
    for name, sizes in found.items():
        if len(sizes) > 1:
            raise UsageError(
                f"--dims {name}={','.join(map(str, sizes))}: a profile is of one size.",
                expected="one size for each dimension",
                fix="profile them one by one, or time them with: optkit bench",
            )
    return {name: sizes[0] for name, sizes in found.items()}


def parse_counts(option: str, words: Iterable[str]) -> list[int]:
    """``["1,2", "4"]`` -> ``[1, 2, 4]``.

    Raises:
        UsageError: an entry is not of that form.
    """
    return [count for word in words for count in _counts(option, word, word, "1,2")]


def parse_rules(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Of a verb's arguments, as its ``locals()`` has them first thing, the ``RULES`` that were given."""
    return {RULES[name]: value for name, value in arguments.items() if name in RULES and value is not None}


def parse_load(word: str | None, seconds: float | None) -> dict[str, float] | None:
    """``200/s`` or ``200``, and how long, as ``{"rate": 200.0, "seconds": ...}``; None where there is no load.

    Raises:
        UsageError: the rate is no number above 0, or there are only seconds.
    """
    if word is None:
        if seconds is not None:
            raise UsageError(
                "--load-seconds says how long a load lasts, and there is none.",
                expected="--load beside it",
                fix="add --load 200/s, or leave it out",
            )
        return None
    return {"rate": _rate(word), **({} if seconds is None else {"seconds": seconds})}


def _rate(word: str) -> float:
    try:
        rate = float(word.strip().removesuffix("/s"))
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise UsageError(
            f"--load {word}: that is no rate.", expected="requests per second, above 0", fix="write --load 200/s"
        )
    return rate


def parse_entries(words: Iterable[str]) -> dict[str, str]:
    """``["session.intra_op.allow_spinning=0"]`` -> ``{"session.intra_op.allow_spinning": "0"}``.

    Raises:
        UsageError: an entry has no ``=``, or no name before it.
    """
    pairs = {word: word.partition("=") for word in words}
    for word, (key, equals, _) in pairs.items():
        if not key.strip() or not equals:
            raise UsageError(
                f"--session {word}: that is no entry.",
                expected="KEY=VALUE: a session config entry of onnxruntime, or a property of its SessionOptions",
                fix="write --session session.intra_op.allow_spinning=0",
            )
    keys = [key.strip() for key, _, _ in pairs.values()]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise UsageError(f"--session {twice[0]} is given twice.", expected="one value", fix="leave one of them out")
    return {key.strip(): value.strip() for key, _, value in pairs.values()}


def _counts(option: str, word: str, listed: str, example: str) -> list[int]:
    counts = [part.strip() for part in listed.split(",")]
    wrong = [part for part in counts if not part.isdecimal() or int(part) < 1]
    if wrong or word.startswith("="):
        what = f"'{wrong[0]}' is no whole number from 1" if wrong and wrong[0] else "a number is missing"
        raise UsageError(
            f"{option} {word}: {what if not word.startswith('=') else 'the name is missing'}.",
            expected="whole numbers from 1, with commas between",
            fix=f"write {option} {example}",
        )
    return [int(part) for part in counts]
