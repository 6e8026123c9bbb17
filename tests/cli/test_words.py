"""Words of the command line as values, and what is said about wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from optkit.cli.words import parse_counts, parse_dims, parse_entries, parse_load, parse_rules, parse_sizes
from optkit.errors import UsageError


def test_dims_add_up_by_name() -> None:
    assert parse_dims(["batch=1,8", "seq= 32", "batch=16"]) == {"batch": [1, 8, 16], "seq": [32]}
    assert parse_dims([]) == {}


def test_sizes() -> None:
    assert parse_sizes(["batch=8", "seq=3"]) == {"batch": 8, "seq": 3}
    with pytest.raises(UsageError, match="batch=1,2: a profile is of one size"):
        parse_sizes(["batch=1", "batch=2"])


def test_counts_rates_and_entries() -> None:
    assert parse_counts("--threads", ["1,2", "4"]) == [1, 2, 4]
    assert (parse_load("200/s", None), parse_load(" 12.5", 3.0)) == ({"rate": 200.0}, {"rate": 12.5, "seconds": 3.0})
    assert parse_load(None, None) is None
    entry = "session.intra_op.allow_spinning=0"
    assert parse_entries([entry, "a=b=c"]) == {"session.intra_op.allow_spinning": "0", "a": "b=c"}


def test_rules_that_were_given() -> None:
    given = {"models": ["m"], "budget": 3.0, "seed": 0, "margin": None, "json": True}
    assert parse_rules(given) == {"budget_s": 3.0, "seed": 0}


@pytest.mark.parametrize(
    ("parse", "given", "words"),
    [
        (parse_dims, ["batch"], "--dims batch: a number is missing."),
        (parse_dims, ["batch="], "--dims batch=: a number is missing."),
        (parse_dims, ["=3"], "--dims =3: the name is missing."),
        (parse_dims, ["batch=0"], "'0' is no whole number from 1"),
        (parse_dims, ["batch=-1"], "'-1' is no whole number from 1"),
        (parse_dims, ["batch=1,,2"], "a number is missing"),
        (parse_dims, ["batch=1 seq=2"], "'1 seq=2' is no whole number"),
        (lambda words: parse_counts("--threads", words), ["1.5"], "--threads 1.5: '1.5' is no whole number from 1"),
        (lambda word: parse_load(word, 1.0), "fast", "--load fast: that is no rate."),
        (lambda word: parse_load(word, 1.0), "0", "--load 0: that is no rate."),
        (lambda word: parse_load(word, 1.0), "-5/s", "--load -5/s: that is no rate."),
        (lambda word: parse_load(word, 1.0), "inf", "that is no rate"),
        (lambda word: parse_load(word, 1.0), "nan/s", "that is no rate"),
        (lambda word: parse_load(word, 1.0), None, "--load-seconds says how long a load lasts, and there is none."),
        (parse_entries, ["spinning"], "--session spinning: that is no entry."),
        (parse_entries, ["=1"], "--session =1: that is no entry."),
    ],
)
def test_wrong_words_are_told(parse: Callable[[Any], Any], given: Any, words: str) -> None:
    with pytest.raises(UsageError) as told:
        parse(given)
    assert words in told.value.message and told.value.message.endswith(".")
    assert told.value.expected and told.value.fix
