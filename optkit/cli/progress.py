"""How far it is, on stderr: a bar where that is a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUIET_S = 30.0
"""Seconds without a word in a log, at most about."""


def lines(clock: Callable[[], float] = time.monotonic) -> Callable[[str, int, int], None]:
    """A function ``(what, done, total)`` that writes ``distill: 120 of 600`` to stderr every ``QUIET_S`` seconds."""
    told = clock()

    def watch(what: str, done: int, total: int) -> None:
        nonlocal told
        if clock() - told >= QUIET_S:
            told = clock()
            sys.stderr.write(f"{what}: {done} of {total}\n" if total else f"{what} ...\n")

    return watch


@contextmanager
def bar() -> Iterator[Callable[[str, int, int], None]]:
    """A function ``(what, done, total)`` that moves the bar, or writes a line into a log where nothing came for long.

    A total of 0 is not known: the bar then only shows that something runs.
    """
    if not sys.stderr.isatty():
        yield lines()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def watch(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total or None)

        yield watch
