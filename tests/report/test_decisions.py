"""Decisions as a table: all of them in the report, those that gained on the terminal, the others counted."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from optkit.cli import render
from optkit.model.manifest import Decision, Manifest
from optkit.report.decisions import decisions_table, others_line
from optkit.report.markdown import markdown
from tests.report.test_waterfall import manifest, step


def decision(what: str, kept: bool, *figures: float, reason: str = "faster") -> Decision:
    names = dict(zip(("speedup", "low", "high"), figures, strict=False))
    return Decision(what=what, kept=kept, reason=reason, **names)


FAMILIES = (
    decision("attention", True, 1.19, 1.15, 1.23),
    decision("gelu", True, 1.01, 0.99, 1.03, reason="too close to call: the default stays"),
    decision("skip-norm", False, 0.8, 0.78, 0.82, reason="slower"),
    decision("qkv", False, reason="not measured: no time left"),
)
TUNED = (decision("execution_mode=parallel", True, 1.3, 1.2, 1.4),)


def decided(*steps: tuple[Any, ...], **more: Any) -> Manifest:
    made = [step(f"s{i}", f"d{i}", status, decisions=decisions) for i, (status, decisions) in enumerate(steps)]
    return manifest(steps=tuple(made), **more)


def test_each_decision_is_a_row_with_what_it_brings_and_why() -> None:
    table = decisions_table(decided(("changed", FAMILIES)))
    assert table.heads == ("choice", "in the result", "speed with it", "why")
    assert table.rows == (
        ("attention", "yes", "1.19x [1.15, 1.23]", "faster"),
        ("gelu", "yes", "1.01x [0.99, 1.03]", "too close to call: the default stays"),
        ("skip-norm", "no", "0.80x [0.78, 0.82]", "slower"),
        ("qkv", "no", "-", "not measured: no time left"),
    )


def test_decisions_of_several_steps_name_theirs_and_those_rolled_back_are_not_in_the_result() -> None:
    found = decided(("changed", FAMILIES[:1]), ("rolled back", TUNED))
    table = decisions_table(found)
    assert table.heads[:3] == ("choice", "step", "in the result")
    assert [row[:3] for row in table.rows] == [
        ("attention", "s0", "yes"),
        ("execution_mode=parallel", "s1", "no: rolled back"),
    ]
    assert [row[0] for row in decisions_table(found, gains=True).rows] == ["attention"]


def test_only_gains_are_listed_and_the_others_counted_with_their_place() -> None:
    found = decided(("changed", FAMILIES))
    assert [row[0] for row in decisions_table(found, gains=True).rows] == ["attention"]
    assert others_line(found) == "3 more choices without a sure speed-up: --json lists them."
    bundle = found.model_copy(update={"output": "out"})
    assert others_line(bundle).endswith(": report.md and --json list them.")
    one = decided(("changed", FAMILIES[2:3]))
    assert others_line(one) == "1 choice without a sure speed-up: --json lists it."
    assert others_line(decided(("changed", TUNED))) == others_line(manifest()) == ""


def test_the_report_has_all_of_them_and_nothing_where_there_are_none() -> None:
    text = markdown(decided(("changed", FAMILIES), ("changed", TUNED)))
    assert text.count("| s0 |") == 4 + 1 and "## Chosen by measuring" in text
    assert "| execution_mode=parallel | s1 | yes | 1.30x [1.20, 1.40] | faster |" in text
    assert "Chosen by measuring" not in markdown(manifest())


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_terminal_shows_gains_at_any_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    text = StringIO()
    shown = Console(file=text, width=width, highlight=False, force_terminal=True, color_system=None)
    monkeypatch.setattr(render, "console", lambda: shown)
    render.show_manifest(decided(("changed", FAMILIES), ("changed", TUNED)))
    lines = text.getvalue().splitlines()
    flat = " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= width
    for words in ("Chosen by measuring", "attention", "1.19x", "1.23]", "faster", "3 more choices"):
        assert words in flat
    assert "skip-norm" not in flat
