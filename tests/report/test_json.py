"""Facts as JSON: strict JSON, numbers that are not finite flagged, the envelope the same for every verb."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optkit.errors import BudgetMissed, RecipeError
from optkit.model.manifest import OutputFidelity
from optkit.report.json import dump, envelope
from tests.report.facts import limit, verdict


def strict(text: str) -> Any:
    """Parsed by the letter: no NaN, no Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_are_not_finite_become_null_and_are_flagged() -> None:
    outputs = (
        OutputFidelity(name="a", dtype="float32", rows=1, sqnr_db=float("inf")),
        OutputFidelity(name="b", dtype="float32", rows=1, sqnr_db=float("nan"), max_error=float("-inf")),
    )
    body = strict(dump(envelope("check", verdict(limit("cosine", held=True), outputs=outputs))))
    assert body["result"]["outputs"][0]["sqnr_db"] is None
    assert body["nonfinite"] == {
        "result.outputs.0.sqnr_db": "inf",
        "result.outputs.1.sqnr_db": "nan",
        "result.outputs.1.max_error": "-inf",
    }
    assert strict(dump(envelope("check", verdict())))["nonfinite"] == {}


def test_the_envelope_of_a_success() -> None:
    body = strict(dump(envelope("cache ls", {"root": Path("/c")})))
    assert body == {
        "schema": 1,
        "verb": "cache ls",
        "ok": True,
        "exit_code": 0,
        "error": None,
        "result": {"root": "/c"},
        "nonfinite": {},
    }


def test_the_envelope_of_an_error_and_of_a_bug() -> None:
    error = RecipeError("Bad.", expected="good", fix="mend it", file="r.yaml", line=3, column=5)
    body = strict(dump(envelope("optimize", None, error)))
    assert (body["ok"], body["exit_code"], body["result"]) == (False, 3, None)
    assert body["error"] == {
        "kind": "recipe-error",
        "message": "Bad.",
        "expected": "good",
        "fix": "mend it",
        "file": "r.yaml",
        "line": 3,
        "column": 5,
    }
    missed = strict(dump(envelope("check", verdict(limit("size_mb", held=False)), BudgetMissed("Too large."))))
    assert (missed["exit_code"], missed["error"]["kind"], missed["result"]["held"]) == (5, "budget-missed", False)
    bug = strict(dump(envelope("run", None, KeyError("x"))))
    assert (bug["exit_code"], bug["error"]["kind"], bug["error"]["message"]) == (1, "bug", "KeyError: 'x'")


def test_anything_becomes_plain() -> None:
    @dataclass(frozen=True)
    class Point:
        x: float
        names: tuple[str, ...]

    facts = {
        "path": Path("a/b"),
        "point": Point(1.5, ("p", "q")),
        "scalar": np.float32(0.5),
        "whole": np.int64(3),
        "flag": np.bool_(True),
        "array": np.arange(3),
        "text": np.str_("t"),
        "set": frozenset(["only"]),
        7: None,
    }
    assert strict(dump(facts)) == {
        "path": "a/b",
        "point": {"x": 1.5, "names": ["p", "q"]},
        "scalar": 0.5,
        "whole": 3,
        "flag": True,
        "array": [0, 1, 2],
        "text": "t",
        "set": ["only"],
        "7": None,
    }


def test_file_names_that_are_no_text_survive() -> None:
    text = dump({"path": "mod\udcffel", "name": "図"})
    assert text.encode("utf-8") and "図" in text
    assert strict(text) == {"path": "mod\udcffel", "name": "図"}
