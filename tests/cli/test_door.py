"""The door: a bug is told as one, with its traceback in a log file; everything else in words."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from optkit.cli.door import Ended, answer
from optkit.errors import AccuracyMissed, DataError, RecipeError
from tests.command import call


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def leave(work: Any, *, as_json: bool = False, **more: Any) -> int:
    """The exit code of ``answer``."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        answer("test", as_json, work, lambda result: typer.echo(f"shown: {result}"), **more)
    except typer.Exit as left:
        return left.exit_code
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def raises(error: BaseException) -> Any:
    def work(*args: object) -> None:
        raise error

    return work


def test_a_bug_is_told_with_the_path_of_a_log_file(
    state: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("optkit.recipe.load.shipped", raises(ZeroDivisionError("a bug in optkit")))
    told = call("recipe", "list", "--json")
    assert told.code == 1
    assert "this is a bug: ZeroDivisionError: a bug in optkit" in told.err and "Traceback (" not in told.err
    (log,) = state.rglob("crash-*.log")
    assert f"The traceback is in {log}" in told.err
    text = log.read_text()
    assert text.startswith("argv: ['optkit', 'recipe', 'list', '--json']")
    assert "Traceback (most recent call last)" in text and "ZeroDivisionError: a bug in optkit" in text
    assert told.body["exit_code"] == 1 and told.body["ok"] is False
    assert told.body["error"]["kind"] == "bug" and "a bug in optkit" in told.body["error"]["message"]


def test_a_bug_while_printing_is_one_too(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optkit.cli.render.show_table", raises(KeyError("column")))
    told = call("recipe", "list")
    assert told.code == 1 and "this is a bug: KeyError: 'column'" in told.err and "Traceback (" not in told.err
    assert len(list(state.rglob("crash-*.log"))) == 1


def test_a_log_that_cannot_be_written_goes_to_another_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("optkit.recipe.load.shipped", raises(ZeroDivisionError("a bug")))
    told = call("recipe", "list")
    (log,) = tmp_path.glob("crash-*.log")
    assert told.code == 1 and str(log) in told.err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (DataError("No data.", expected="some", fix="give some"), 3, "No data.\nExpected: some\nFix: give some\n"),
        (RecipeError("Bad.", file="r.yaml", line=3, column=5), 3, "r.yaml:3:5: Bad.\n"),
        (AccuracyMissed("Missed."), 4, "Missed.\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\nFix: run it again; what optimize has finished"),
        (MemoryError(), 3, "Out of memory.\nExpected: more free memory\n"),
    ],
)
def test_errors_are_told_and_give_their_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, words: str
) -> None:
    assert leave(raises(error)) == code
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith(f"error: {words}")


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (Ended(), 143)])
def test_what_an_interruption_brings_along_is_shown(
    capsys: pytest.CaptureFixture[str], stop: BaseException, code: int
) -> None:
    vars(stop)["facts"] = "three points"
    assert leave(raises(stop), show_missed=typer.echo) == code
    assert capsys.readouterr().out == "three points\n"


def test_facts_of_a_miss_are_shown_beside_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    error = AccuracyMissed("Missed.")
    error.facts = {"cosine": 0.5}
    assert leave(raises(error), show_missed=lambda facts: typer.echo(f"facts: {facts}")) == 4
    told = capsys.readouterr()
    assert told.out == "facts: {'cosine': 0.5}\n" and "Missed." in told.err
    assert leave(raises(error), as_json=True) == 4
    body = json.loads(capsys.readouterr().out)
    assert (body["verb"], body["exit_code"], body["result"]) == ("test", 4, {"cosine": 0.5})
    assert body["error"]["kind"] == "accuracy-missed"


def test_report_files_are_written_in_both_cases(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []
    assert leave(lambda: 7, on_end=lambda result, error: seen.append((result, error))) == 0
    failure = DataError("No data.")
    assert leave(raises(failure), on_end=lambda result, error: seen.append((result, error))) == 3
    assert seen == [(7, None), (None, failure)]
    capsys.readouterr()
    assert leave(lambda: 7, on_end=raises(DataError("No report."))) == 3
    assert capsys.readouterr().err.count("No report.") == 1
    assert leave(raises(failure), on_end=raises(DataError("No report."))) == 3
    told = capsys.readouterr().err
    assert "No report." in told and told.endswith("error: No data.\n")


def test_sigterm_gets_past_except_exception(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> str:
        with contextlib.suppress(Exception):  # as libraries do
            os.kill(os.getpid(), signal.SIGTERM)
        return "survived"

    assert leave(work) == 143
    assert capsys.readouterr().err.startswith("error: Terminated.\n")


@pytest.mark.parametrize(
    ("argv", "verb", "words"),
    [
        (("optimise",), "optkit", "No such command 'optimise'"),
        (("optimize",), "optimize", "Missing argument"),
        (("recipe", "show", "int8", "--resolve"), "recipe show", "No such option: --resolve"),
        (("check", "a.onnx"), "check", "Missing argument"),
        (("optimize", "m.onnx", "--threads", "0"), "optimize", "--threads"),
        (("optimize", "m.onnx", "--threads", "many"), "optimize", "--threads"),
    ],
)
def test_a_wrong_command_line(argv: tuple[str, ...], verb: str, words: str) -> None:
    told = call(*argv)
    assert (told.code, told.out) == (2, "") and told.err.startswith("error: ")
    assert words in told.err and "Fix: see optkit" in told.err and "--help" in told.err
    body = call(*argv, "--json").body
    assert (body["verb"], body["ok"], body["exit_code"]) == (verb, False, 2)
    assert body["error"]["kind"] == "usage-error" and words in body["error"]["message"]


def test_nothing_asked_shows_help_and_version_is_one_line() -> None:
    told = call()
    assert told.code == 2 and "Usage: optkit" in told.out and told.err == ""
    assert call("--version").out.startswith("optkit 0.") and call("--version").out.count("\n") == 1


def test_a_path_that_is_no_text_is_no_bug() -> None:
    name = os.fsdecode(b"mod\xffel.onnx")
    told = call("optimize", name, "--json")
    assert told.code == 3 and "There is no such model" in told.err
    assert told.body["error"]["file"] == name
    assert sys.getfilesystemencodeerrors() == "surrogateescape"


def test_a_work_that_ends_the_process_is_a_bug(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(raises(SystemExit(0))) == 1
    assert "this is a bug: SystemExit: 0" in capsys.readouterr().err
    assert leave(raises(SystemExit(0)), as_json=True) == 1
    body = json.loads(capsys.readouterr().out)
    assert (body["ok"], body["exit_code"], body["error"]["kind"]) == (False, 1, "bug")
    assert len(list(state.rglob("crash-*.log"))) >= 1
