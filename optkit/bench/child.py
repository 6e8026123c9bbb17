"""One candidate in a process of its own: ``python -P -m optkit.bench.child FD``, spoken to by ``optkit.bench.ratio``.

FD is a socket of pickled messages. The first that comes is the job ``(model, target, session, inputs)``, answered by
``("ready", seconds per call)``; then ``(calls, start)`` asks for one block, answered by ``("block", seconds, peak)``.
``("failed", error)`` is the answer to anything that went wrong. End of file on FD or stdin ends the process.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from optkit.data.dataset import Arrays
from optkit.errors import OptkitError
from optkit.model.model import Model
from optkit.model.target import Target

Call = Callable[[int], object]
"""Runs the model on the i-th inputs, counted around."""

WARM_S = 1.0
"""Longest warm-up in seconds, beyond the first two calls."""
WINDOW = 5
"""Calls whose median is compared with that of the calls before, to see whether times are steady."""


def main() -> None:
    """Serve one parent until it hangs up."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    connection: Connection = Connection(int(sys.argv[1]))
    try:
        _serve(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except OptkitError as error:
        connection.send(("failed", error))


def _end_with_parent() -> None:
    """Wait for the end of stdin, which the parent holds open: it ends this process even in the middle of a call."""
    sys.stdin.buffer.read()
    os._exit(1)


def _serve(connection: Connection) -> None:
    model, target, session, inputs = connection.recv()
    call = _opened(model, target, session, inputs)
    connection.send(("ready", warm_up(call)))
    gc.collect()
    gc.disable()
    while True:
        calls, start = connection.recv()
        seconds = time_block(call, calls, start)
        connection.send(("block", seconds, peak_bytes()))


def _opened(model: Model, target: Target, session: Mapping[str, str], inputs: list[Arrays]) -> Call:
    from optkit.runner.open import open_runner

    runner = open_runner(model, target, session=session)
    calls = [runner.bind(batch) for batch in inputs]
    return lambda index: calls[index % len(calls)]()


def warm_up(call: Call) -> float:
    """Call until times are steady (or ``WARM_S`` is over); seconds per call at the end."""
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 2 or (time.perf_counter() - begin < WARM_S and not _steady(times)):
        times.append(_timed(call, len(times)))
    return median(times[-WINDOW:])


def time_block(call: Call, calls: int, start: int) -> list[float]:
    """Seconds of each of ``calls`` calls, beginning with inputs ``start``."""
    return [_timed(call, index) for index in range(start, start + calls)]


def peak_bytes() -> int:
    """Largest resident memory of this process so far.

    ``ru_maxrss`` would begin with the parent's size: on Linux it survives fork and exec.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _steady(times: list[float]) -> bool:
    last, before = times[-WINDOW:], times[-2 * WINDOW : -WINDOW]
    return len(before) == WINDOW and sum(times) > 0.1 and abs(median(last) / median(before) - 1) < 0.05


def _timed(call: Call, index: int) -> float:
    begin = time.perf_counter()
    call(index)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
