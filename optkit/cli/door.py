"""The one door: runs a verb's work, shows its answer, and turns every failure into words and an honest exit code."""

from __future__ import annotations

import json as json_module
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TypeVar

import typer

from optkit.errors import Interrupted, OptkitError, Terminated

T = TypeVar("T")


def answer(
    verb: str,
    as_json: bool,
    work: Callable[[], T],
    show: Callable[[T], None],
    *,
    on_end: Callable[[T | None, BaseException | None], None] | None = None,
) -> None:
    """Do the work, then print its result for people or as JSON; on failure the error, and leave with its exit code.

    Args:
        verb: for the JSON envelope.
        as_json: print the envelope instead of calling ``show``.
        work: the verb's one call.
        show: prints the result for people.
        on_end: writes report files, from the result or the error; called in both cases.
    """
    _listen_to_sigterm()
    result: T | None = None
    failure: BaseException | None = None
    try:
        result = work()
        if on_end is not None:
            on_end(result, None)
    except KeyboardInterrupt:
        failure = Interrupted("Interrupted.", fix="finished steps are in the cache; run it again to go on")
    except OptkitError as error:
        failure = error
    except MemoryError as error:
        failure = OptkitError("Out of memory.", expected="more free memory", fix="close other programs")
        failure.__cause__ = error
    except Exception as error:  # noqa: BLE001  the door: everything else is a bug, told as one
        failure = error
    if failure is not None:
        _fail(verb, as_json, failure, on_end)
    if as_json:
        _print_json(verb, result, None)
    else:
        show(result)  # type: ignore[arg-type]


def _fail(
    verb: str,
    as_json: bool,
    failure: BaseException,
    on_end: Callable[[T | None, BaseException | None], None] | None,
) -> None:
    if on_end is not None:
        try:
            on_end(None, failure)
        except OptkitError as second:
            print_error(second)
    if as_json:
        _print_json(verb, getattr(failure, "facts", None), failure)
    tell(failure)
    raise typer.Exit(getattr(failure, "exit_code", 1))


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
            (folder / name).write_text(text)
            return folder / name
        except OSError:
            continue
    typer.echo(text, err=True)
    return Path(os.devnull)


def usage_failure(error: typer.TyperException, argv: list[str]) -> int:
    """A wrong command line as typer found it: words or the JSON envelope, and exit code 2."""
    message = str(getattr(error, "message", "") or error)
    context = getattr(error, "ctx", None)
    if context is not None and "--json" in argv:
        from optkit.errors import UsageError
        from optkit.report.json import dump, envelope

        wrong = UsageError(message, fix=f"see: {context.command_path} --help")
        typer.echo(dump(envelope(context.info_name or "optkit", None, wrong)))
    show = getattr(error, "format_message", None)
    red = typer.style("error:", fg="red", bold=True)
    hint = f"\nFix: see {context.command_path} --help" if context is not None else ""
    typer.echo(f"{red} {show() if show else json_module.dumps(message)}{hint}", err=True)
    return int(getattr(error, "exit_code", 2))


def _listen_to_sigterm() -> None:
    def terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  the signature of signal handlers
        raise Terminated("Terminated.", fix="finished steps are in the cache; run it again to go on")

    signal.signal(signal.SIGTERM, terminate)
