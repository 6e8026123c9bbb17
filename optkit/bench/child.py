"""One candidate in a process of its own: ``python -P -m optkit.bench.child FD``, spoken to by ``optkit.bench.worker``.

FD is a socket of pickled messages. The first that comes is the job ``(model, target, session, inputs)``, answered by
``(seconds per call, phases, about)``; then ``("block", calls, start)`` asks for one block, answered by ``(seconds,
peak)``, and ``("load", rate, seconds, seed)`` for an open loop, answered by ``(samples,)``. An error is the answer to
whatever it was that went wrong. End of file on FD or stdin ends the process.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from optkit.bench.facts import Phases
from optkit.data.dataset import Arrays
from optkit.errors import OptkitError
from optkit.runner.base import Runner, RunnerAbout

Call = Callable[[int], object]
"""Runs the model on the i-th inputs, counted around."""

WARM_S = 1.0
"""No further call of the warm-up begins after so many seconds, but for the ones that have to be."""
SLOW_S = 0.5
"""A model of which the first inference and all others took longer is warm: what a cold call loses, it hardly feels."""
SETTLE_S = 0.1
"""Shortest warm-up of times that seem steady."""
WINDOW = 5
"""Calls whose median is compared with that of the calls before, to see whether times are steady."""
STEADY = 0.05
"""Largest difference of the two medians."""


def main() -> None:
    """Serve one parent until it hangs up."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    connection: Connection = Connection(int(sys.argv[1]))
    try:
        _serve(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except OptkitError as error:
        connection.send(error)


def _end_with_parent() -> None:
    """Wait for the end of stdin, which the parent holds open: it ends this process even in the middle of a call."""
    while os.read(0, 4096):  # not through sys.stdin, whose lock would be held when this process ends by itself
        pass
    os._exit(1)


def _serve(connection: Connection) -> None:
    from optkit.runner.open import open_runner

    model, target, session, inputs = connection.recv()
    runner = open_runner(model, target, session=session)
    first_s = _timed(lambda _: runner.run(inputs[0]), 0)
    call = _rotating(runner, inputs)
    warm = warm_up(call, first_s, least_calls(inputs))
    connection.send((warm.seconds_per_call, _phases(runner.about, first_s, warm), runner.about))
    gc.collect()
    gc.disable()
    answers: dict[str, Callable[..., tuple[object, ...]]] = {"block": _block, "load": _load}
    while True:
        what, *asked = connection.recv()
        connection.send(answers[what](call, *asked))


def _rotating(runner: Runner, inputs: list[Arrays]) -> Call:
    calls = [runner.bind(batch) for batch in inputs]
    return lambda index: calls[index % len(calls)]()


def least_calls(inputs: list[Arrays]) -> int:
    """Calls after which each shape has run: engines allocate, and torch.compile compiles, for each of them anew."""
    shapes = [{name: array.shape for name, array in batch.items()} for batch in inputs]
    return 1 + max(shapes.index(shape) for shape in shapes)


def _block(call: Call, calls: int, start: int) -> tuple[object, ...]:
    return time_block(call, calls, start), peak_bytes()


def _load(call: Call, rate: float, seconds: float, seed: int) -> tuple[object, ...]:
    from optkit.bench.open_loop import open_loop

    return (open_loop(call, rate=rate, seconds=seconds, seed=seed),)


@dataclass(frozen=True)
class WarmUp:
    """A warm-up as it went."""

    seconds_per_call: float
    """At its end."""
    seconds: float
    calls: int
    steady: bool


def warm_up(call: Call, first_s: float, least: int = 1) -> WarmUp:
    """Call until times are steady, or ``WARM_S`` is over; a slow model (``SLOW_S``) once.

    Args:
        call: the model.
        first_s: what the first inference took, which was before.
        least: calls to make in any case.
    """
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < least or (
        time.perf_counter() - begin < WARM_S and min(first_s, *times) < SLOW_S and not _settled(times)
    ):
        times.append(_timed(call, len(times)))
    judged = times if len(times) > 1 else [first_s, *times]
    return WarmUp(median(times[-WINDOW:]), time.perf_counter() - begin, len(times), steady(judged))


def steady(times: list[float]) -> bool:
    """Whether the last calls took as long as those before: ``WINDOW`` each, or half of all where there are fewer."""
    size = min(WINDOW, len(times) // 2)
    last, before = times[-size:], times[-2 * size : -size]
    return abs(median(last) / median(before) - 1) < STEADY


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


def _phases(about: RunnerAbout, first_s: float, warm: WarmUp) -> Phases:
    return Phases(
        import_s=about.import_s,
        load_s=about.load_s,
        session_s=about.session_s,
        first_ms=first_s * 1e3,
        warm_up_s=warm.seconds,
        warm_up_calls=warm.calls,
        steady=warm.steady,
    )


def _settled(times: list[float]) -> bool:
    return len(times) >= 2 * WINDOW and sum(times) > SETTLE_S and steady(times)


def _timed(call: Call, index: int) -> float:
    begin = time.perf_counter()
    call(index)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
