"""The progress bar: on a terminal, and nowhere else."""

from __future__ import annotations

import io
import sys

import pytest

from optkit.cli.progress import bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def watched(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with bar() as watch:
        watch("planning", 0, 0)
        watch("simplify", 2, 5)
    return stream.getvalue()


def test_nothing_is_written_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched(io.StringIO(), monkeypatch) == ""


def test_a_terminal_shows_what_is_done_and_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = watched(Terminal(), monkeypatch)
    assert "simplify" in shown
    assert "2/5" in shown
