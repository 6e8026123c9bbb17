"""A process that holds one candidate: the parent's side of ``optkit.bench.child``."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from socket import SO_SNDTIMEO, SOL_SOCKET, socketpair
from types import TracebackType
from typing import Any, Self

from optkit.bench.facts import Phases
from optkit.bench.open_loop import LoadSamples
from optkit.data.dataset import Arrays
from optkit.errors import ModelError, OptkitError
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.runner.base import RunnerAbout

START_TIMEOUT_S = 600.0
"""A child that has not loaded and warmed its model by then is given up."""
SEND_TIMEOUT_S = 120.0
"""A child that takes nothing of a message for so long is given up; it reads when it has started Python."""
BLOCK_TIMEOUT_S = 120.0
"""A block may take this much longer than expected."""


@dataclass(frozen=True)
class Candidate:
    """One model to time."""

    model: Model
    target: Target = field(default_factory=Target)
    session: Mapping[str, str] = field(default_factory=dict)
    """onnxruntime session config entries, over those of the model."""
    label: str = ""
    """For people: stands before the message of what goes wrong with it."""


@dataclass(frozen=True)
class Ready:
    """What a child says of itself when it is ready."""

    seconds: float
    """Per call, at the end of the warm-up."""
    phases: Phases
    about: RunnerAbout


class Worker:
    """A child process with one candidate, stopped (SIGSTOP) between its turns.

    It dies with this object, and with this process. Every question raises what the child met on the way (DataError,
    ModelError, ProviderError, PackageError), and ModelError where it crashed or hung.
    """

    def __init__(self, candidate: Candidate, inputs: list[Arrays]) -> None:
        self._candidate = candidate
        self._inputs = inputs
        self._seconds = 0.0
        self.peak = 0
        """Largest resident memory so far, bytes."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def _start(self, stack: ExitStack) -> None:
        self._errors = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - it is one, of the stack
        ours, theirs = socketpair()
        ours.setsockopt(SOL_SOCKET, SO_SNDTIMEO, struct.pack("ll", *divmod(round(SEND_TIMEOUT_S * 1e6), 10**6)))
        self._connection = stack.enter_context(Connection(ours.detach()))
        paths = [path or os.getcwd() for path in sys.path]  # noqa: PTH109 - sys.path holds strings
        command = [sys.executable, "-P", "-m", "optkit.bench.child", str(theirs.fileno())]
        with theirs:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                pass_fds=[theirs.fileno()],
                # A group of its own, in this session: Ctrl-C reaches only the parent, which ends its children; and
                # should the parent be killed, the kernel wakes and hangs up stopped groups that nobody is left to wake.
                process_group=0,
            )
        self._process = stack.enter_context(process)
        stack.callback(self._signal, signal.SIGKILL)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def ready(self) -> Ready:
        """Load and warm up."""
        candidate = self._candidate
        job = (candidate.model, candidate.target, dict(candidate.session), self._inputs)
        ready = Ready(*self._ask(job, START_TIMEOUT_S))
        self._seconds = ready.seconds
        return ready

    def block(self, calls: int, start: int) -> list[float]:
        """Seconds of each of ``calls`` calls, beginning with inputs ``start``."""
        seconds, self.peak = self._ask(("block", calls, start), BLOCK_TIMEOUT_S + 10 * self._seconds * calls)
        found: list[float] = seconds
        return found

    def load(self, rate: float, seconds: float, seed: int) -> LoadSamples:
        """Requests that do not wait for the model, see ``optkit.bench.open_loop``."""
        (samples,) = self._ask(("load", rate, seconds, seed), BLOCK_TIMEOUT_S + 10 * (seconds + self._seconds))
        found: LoadSamples = samples
        return found

    def _ask(self, message: object, timeout: float) -> tuple[Any, ...]:
        """One turn: wake the child, let it answer, stop it."""
        self._signal(signal.SIGCONT)
        try:
            self._connection.send(message)
            if not self._connection.poll(timeout):
                raise self._lost(f"gave no answer for {timeout:.0f} s")
            answer = self._connection.recv()
        except BlockingIOError as error:
            raise self._lost(f"took no message for {SEND_TIMEOUT_S:.0f} s") from error
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise self._lost(self._end()) from error
        self._signal(signal.SIGSTOP)
        if isinstance(answer, OptkitError):
            answer.message = self._named(answer.message, answer.file)
            raise answer
        return tuple(answer)

    def _signal(self, number: signal.Signals) -> None:
        """To the child and all that it has started: compilers, loaders."""
        with suppress(ProcessLookupError, PermissionError):  # macOS: the group has only ended processes
            os.killpg(self._process.pid, number)

    def _named(self, message: str, file: str | None) -> str:
        """With the candidate's label, where the file does not say it."""
        return message if self._candidate.label in ("", file) else f"{self._candidate.label}: {message}"

    def _lost(self, what: str) -> ModelError:
        file = str(self._candidate.model.path)
        return ModelError(
            self._named(f"The process that timed the model {what}.", file),
            file=file,
            expected="a model that loads and runs",
            fix="try 'optkit run' on it, or give it less to do (batch, shapes)",
        )

    def _end(self) -> str:
        """How the process ended, with the last line it wrote."""
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "hung up and did not end"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        last = f": {lines[-1]}" if lines else ""
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}" + (last or ", perhaps for want of memory")
        return f"ended with code {code}{last}"
