"""The one door: runs a verb's work, shows its answer, and turns every failure into words and an honest exit code."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import typer

from optkit.errors import Interrupted, OptkitError, OutputError, Terminated, UsageError

T = TypeVar("T")


class Ended(BaseException):
    """SIGTERM came; no ``except Exception`` of a library on the way may swallow it."""


def answer(
    verb: str,
    as_json: bool,
    work: Callable[[], T],
    show: Callable[[T], None],
    *,
    show_missed: Callable[[Any], None] | None = None,
    on_end: Callable[[T | None, BaseException | None], None] | None = None,
    remind: bool = False,
) -> None:
    """Do the work, then print its result for people or as JSON; on failure the error, and leave with its exit code.

    Args:
        verb: for the JSON envelope.
        as_json: print the envelope instead of calling ``show``.
        work: the verb's one call.
        show: prints the result for people.
        show_missed: prints the facts that come with a missed limit.
        on_end: writes report files, from the result or the error; called in both cases.
        remind: tell the facts' notes on stderr too, where the result goes past whoever sits at the terminal.
    """
    signal.signal(signal.SIGTERM, _end)
    result, failure = _attempt(work)
    if on_end is not None:
        _, problem = _attempt(lambda: on_end(result, failure))
        if failure is not None and problem is not None:
            tell(problem)
        failure = failure or problem
    facts = getattr(failure, "facts", None)
    try:
        if as_json:
            _print_json(verb, facts if result is None else result, failure)
        elif failure is None:
            show(result)  # type: ignore[arg-type]
        elif facts is not None and show_missed is not None:
            show_missed(facts)
        sys.stdout.flush()
    except BrokenPipeError:
        silence()
    except OSError as error:
        failure = OutputError(
            f"The result cannot be written to stdout: {error.strerror}.",
            expected="a pipe, file or terminal with room for it",
            fix="free some space, or send it somewhere else",
        )
        silence()
    if remind and (as_json or not sys.stdout.isatty()):
        _remind(facts if result is None else result)
    if failure is not None:
        tell(failure)
        raise typer.Exit(exit_code(failure))


def _remind(facts: object) -> None:
    """The notes of facts, or of an answer that has them as its ``facts`` and ``verdict``."""
    parts = (facts, getattr(facts, "facts", None), getattr(facts, "verdict", None))
    for note in dict.fromkeys(note for part in parts for note in getattr(part, "notes", ())):
        typer.echo(f"note: {note}", err=True)


def _attempt(work: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """What ``work`` gives, or why it gave nothing."""
    again = "run it again; what optimize has finished is in the cache, and a training goes on from its last look"
    try:
        return work(), None
    except KeyboardInterrupt as stop:
        return None, _with_facts(Interrupted("Interrupted.", fix=again), stop)
    except Ended as stop:
        return None, _with_facts(Terminated("Terminated.", fix=again), stop)
    except MemoryError:
        return None, OptkitError("Out of memory.", expected="more free memory", fix="close other programs")
    except (Exception, SystemExit) as error:  # noqa: BLE001  the door: what is no OptkitError is a bug, told as one
        return None, error


def _with_facts(told: OptkitError, stop: BaseException) -> OptkitError:
    """The error, with what was found out before the stop."""
    told.facts = getattr(stop, "facts", None)
    return told


def exit_code(failure: BaseException) -> int:
    """The error's own; 1 for a bug."""
    return failure.exit_code if isinstance(failure, OptkitError) else 143 if isinstance(failure, Ended) else 1


def silence() -> None:
    """Nobody reads stdout any more: what is still to come goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(failure: BaseException) -> None:
    """The error on stderr; for a bug the path of the log file with the traceback."""
    if isinstance(failure, OptkitError):
        print_error(failure)
        return
    log = _write_log(failure)
    typer.echo(
        f"optkit: this is a bug: {type(failure).__name__}: {failure}\nThe traceback is in {log}; please report it.",
        err=True,
    )


def print_error(error: OptkitError) -> None:
    """What happened, what was expected, what to do."""
    red = typer.style("error:", fg="red", bold=True)
    typer.echo(f"{red} {error}", err=True)


def _print_json(verb: str, result: object, error: BaseException | None) -> None:
    from optkit.report.json import dump, envelope

    typer.echo(dump(envelope(verb, result, error)))


def _write_log(failure: BaseException) -> Path:
    from platformdirs import user_log_path

    name = f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    text = f"argv: {sys.argv}\n" + "".join(traceback.format_exception(failure))
    for folder in (user_log_path("optkit"), Path(os.environ.get("TMPDIR", "/tmp"))):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
            return folder / name
        except OSError:
            continue
    typer.echo(text, err=True)
    return Path(os.devnull)


def usage_failure(error: typer.TyperException, argv: list[str]) -> int:
    """A wrong command line as typer found it: words or the JSON envelope, and exit code 2."""
    context = getattr(error, "ctx", None)
    if not error.format_message():  # nothing was asked, and the help is on the screen already
        typer.echo()
        return int(error.exit_code)
    if context is None:
        told = OptkitError(error.format_message())
    else:
        usage = context.get_usage().partition(": ")[2] or context.command_path
        told = UsageError(error.format_message(), expected=usage, fix=f"see {context.command_path} --help")
        if "--json" in argv:
            _print_json(context.command_path.partition(" ")[2] or context.command_path, None, told)
    print_error(told)
    return int(error.exit_code)


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  the signature of signal handlers
    raise Ended
