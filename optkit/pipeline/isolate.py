"""Runs a function in a child process where memory or safety asks for it, and watches peak memory of the tree."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import psutil

from optkit.errors import PassError, UsageError
from optkit.model.model import Model

P = ParamSpec("P")
T = TypeVar("T")

ISOLATE_BYTES = 10**9
"""Models above this size are worked on in a child process, so that its memory goes back to the system."""


def needs_child(model: Model) -> bool:
    """True for models over 1 GB, and for TorchScript, whose code is the file's own."""
    return model.size_bytes > ISOLATE_BYTES or model.kind == "torchscript"


def isolated(use_child: bool, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``function`` here, or in a fresh process (arguments and result are pickled).

    Raises:
        PassError: the child died, as it does when the machine runs out of memory.
    """
    if not use_child:
        return function(*args, **kwargs)
    by_script = _names_main(function, args, kwargs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=_quiet_child) as pool:
        try:
            with nullcontext() if by_script else _main_hidden():
                future = pool.submit(function, *args, **kwargs)
            return future.result()
        except BrokenProcessPool as error:
            raise _died(by_script) from error
        except BaseException:
            _kill(pool)
            raise


def _quiet_child() -> None:
    """Ctrl-C is the parent's business: it ends the child."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _names_main(*sent: Any) -> bool:
    """Whether something that is sent to the child is defined in the script that runs, which the child then imports."""
    return b"__main__" in bytes(ForkingPickler.dumps(sent))


@contextmanager
def _main_hidden() -> Iterator[None]:
    """A process begun meanwhile does not import the script that runs, and so does not do all it does over again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def refuse_within_import() -> None:
    """A job must not begin while a worker of another one imports the script: it would wait for that one for ever.

    Raises:
        UsageError: it would.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UsageError(
            "The script starts a job wherever it is imported, and a worker process has to import it.",
            expected="below if __name__ == '__main__': what the script does, above it what it defines",
            fix="indent the calls below: if __name__ == '__main__':",
        )


def _died(by_script: bool) -> PassError:
    if by_script:
        return PassError(
            "The worker process died without a word: out of memory, or while it imported this script.",
            expected="enough memory, and below if __name__ == '__main__': what the script does",
            fix="indent the calls below: if __name__ == '__main__':",
        )
    return PassError(
        "The worker process died without a word, most likely out of memory.",
        expected="enough memory for this model",
        fix="close other programs, or use a machine with more memory",
    )


def _kill(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(wait=False, cancel_futures=True)


@dataclass
class Peak:
    """Highest resident memory seen, MB over the process tree."""

    mb: float = 0.0


@contextmanager
def watched_memory(interval: float = 0.02) -> Iterator[Peak]:
    """Sample the resident memory of this process and its children while the block runs."""
    peak, done, me = Peak(), threading.Event(), psutil.Process()

    def sample() -> None:
        while not done.is_set():
            peak.mb = max(peak.mb, _tree_mb(me))
            done.wait(interval)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _tree_mb(me: psutil.Process) -> float:
    """Resident memory of the tree, MB. A child that is not yet a program of its own still shows its parent's pages."""
    total, own = me.memory_info().rss, me.cmdline()
    with suppress(psutil.Error):
        for child in me.children(recursive=True):
            with suppress(psutil.Error):
                total += child.memory_info().rss if child.cmdline() != own else 0
    return total / 1e6
