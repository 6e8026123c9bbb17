"""The progress bar: on a terminal, and nowhere else."""

from __future__ import annotations

import io
import sys

import pytest

from optkit.cli.progress import bar, lines


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


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 10.0, 31.0, 31.0, 45.0, 62.0, 62.0])
    watch = lines(lambda: next(times))
    for done, total in ((1, 9), (2, 9), (3, 9), (4, 0)):
        watch("distill", done, total)
    assert capsys.readouterr().err == "distill: 2 of 9\ndistill ...\n"
