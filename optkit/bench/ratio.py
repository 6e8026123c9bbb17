"""How much faster is one model than another on this machine? Paired, interleaved, a process each, with an interval.

Two engines in one process disturb each other, and two runs one after the other meet two different machines
(frequency, neighbours). So every candidate has a process, one computes at a time, they take turns in short blocks in
an order drawn anew each round, and only blocks of the same round are compared. Engine threads spin for a while after
a call (onnxruntime's for 30 ms), which a user gets too and which therefore stays on: whoever has no turn is stopped
(SIGSTOP).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import Pipe
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from optkit.data.dataset import Arrays
from optkit.errors import ModelError, OptkitError, UsageError
from optkit.model.manifest import Ratio
from optkit.model.model import Model
from optkit.model.target import Target

Times = NDArray[np.float64]

BLOCK_S = 0.01
"""Aim for the length of one block of the fastest candidate."""
MIN_CALLS, MAX_CALLS = 3, 2000
"""Calls in a block, whose median drops the first, cold one; fewer only where the budget does not allow them."""
MIN_ROUNDS, MAX_ROUNDS = 8, 500
"""Rounds, whatever the budget says."""
RESOLUTION = 0.02
"""Two processes with one and the same file came out up to 2 % apart for as long as they lived (where their memory
happens to lie), which no number of rounds averages away: the interval is widened by it at both ends."""
RESAMPLES = 4000
"""Bootstrap resamples."""
START_TIMEOUT_S = 600.0
"""A child that has not loaded and warmed its model by then is given up."""
BLOCK_TIMEOUT_S = 120.0
"""A block may take this much longer than expected."""


@dataclass(frozen=True)
class Candidate:
    """One model to time."""

    model: Model
    target: Target = field(default_factory=Target)
    session: Mapping[str, str] = field(default_factory=dict)
    """onnxruntime session config entries, over those of the model."""


@dataclass(frozen=True)
class Timed:
    """What was found about one candidate."""

    ratio: Ratio
    """Against the first candidate; its own is 1 by definition."""
    peak_mb: float
    """Largest resident memory of its process (interpreter, engine, weights, inputs), in MB of 10^6 bytes."""


def compare_latency(
    candidates: Sequence[Candidate],
    inputs: list[Arrays],
    *,
    budget_s: float = 5.0,
    confidence: float = 0.95,
    seed: int = 0,
    described: str = "",
) -> list[Timed]:
    """Time candidates against the first one.

    Args:
        candidates: the baseline, then those to compare with it; each is loaded in a process of its own.
        inputs: batches fed in turn, the same ones to each candidate in a round.
        budget_s: seconds of measuring, loading and warming up not counted. At least ``MIN_ROUNDS`` rounds are run.
        confidence: of the interval.
        seed: of the order within rounds, and of the bootstrap.
        described: ``real`` or ``synthetic``; shapes are added.

    Raises:
        DataError, ModelError, ProviderError, PackageError: as the candidate's process met them.
        ModelError: a process crashed or hung.
    """
    if not candidates or not inputs:
        raise UsageError("Timing needs a candidate and a batch of inputs.", fix="give at least one of each")
    text = describe(inputs, described)
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(candidate, inputs)) for candidate in candidates]
        speeds = [worker.ready() for worker in workers]
        medians = _rounds(workers, speeds, budget_s, len(inputs), seed)
        peaks = [worker.peak / 1e6 for worker in workers]
    base = medians[:, 0]
    own = ratio_of(base, base, confidence=confidence, seed=seed, inputs=text, resolution=0.0)
    others = [
        ratio_of(base, other, confidence=confidence, seed=seed, inputs=text) for other in medians[:, 1:].transpose()
    ]
    return [Timed(ratio, peak) for ratio, peak in zip([own, *others], peaks, strict=True)]


def ratio_of(
    baseline: Times, candidate: Times, *, confidence: float, seed: int, inputs: str, resolution: float = RESOLUTION
) -> Ratio:
    """The ratio from block medians (float64[rounds], seconds), round by round in pairs.

    The estimate is the median of the pairs' ratios; its interval comes from the percentile bootstrap over rounds
    (Efron 1979), widened by the factor ``1 - resolution`` below and ``1 + resolution`` above.
    """
    ratios = baseline / candidate
    draws = np.random.default_rng(seed).integers(0, len(ratios), size=(RESAMPLES, len(ratios)))
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]
    low, high = np.percentile(np.median(ratios[draws], axis=1), tails)
    return Ratio(
        baseline_ms=float(np.median(baseline)) * 1e3,
        candidate_ms=float(np.median(candidate)) * 1e3,
        speedup=float(np.median(ratios)),
        low=float(low) * (1 - resolution),
        high=float(high) * (1 + resolution),
        confidence=confidence,
        blocks=len(ratios),
        inputs=inputs,
    )


def calls_per_block(speeds: Sequence[float], budget_s: float) -> int:
    """Calls of one block, the same for each candidate, from their seconds per call.

    Long enough for ``BLOCK_S`` of the fastest, and short enough for ``MIN_ROUNDS`` rounds of all within the budget.
    """
    wanted = max(MIN_CALLS, int(np.ceil(BLOCK_S / min(speeds))))
    affordable = int(budget_s / MIN_ROUNDS / sum(speeds))
    return max(1, min(wanted, affordable, MAX_CALLS))


def describe(inputs: Sequence[Arrays], described: str = "") -> str:
    """``real, x float32[8,1,8,8]``; where batches differ in shape, the first one's and how many there are."""
    first = [f"{name} {array.dtype}[{','.join(map(str, array.shape))}]" for name, array in inputs[0].items()]
    others = len({tuple(array.shape for array in batch.values()) for batch in inputs}) - 1
    more = [f"and {others} other {'shapes' if others > 1 else 'shape'}"] if others else []
    return ", ".join([*filter(None, [described]), *first, *more])


def _rounds(workers: Sequence[_Worker], speeds: Sequence[float], budget_s: float, inputs: int, seed: int) -> Times:
    """Block medians in seconds, float64[rounds, candidates]."""
    calls = calls_per_block(speeds, budget_s)
    random = np.random.default_rng(seed)
    rows: list[list[float]] = []
    end = time.monotonic() + budget_s
    while len(rows) < MIN_ROUNDS or (time.monotonic() < end and len(rows) < MAX_ROUNDS):
        row = [0.0] * len(workers)
        for index in random.permutation(len(workers)):
            row[index] = float(np.median(workers[index].block(calls, len(rows) * calls % inputs)))
        rows.append(row)
    return np.array(rows)


class _Worker:
    """A child process that holds one candidate; it dies with this object, and with this process."""

    def __init__(self, candidate: Candidate, inputs: list[Arrays]) -> None:
        self._candidate = candidate
        self._inputs = inputs
        self._seconds = 0.0
        self.peak = 0

    def __enter__(self) -> Self:
        self._errors = tempfile.TemporaryFile()
        self._connection, theirs = Pipe()
        paths = [path or os.getcwd() for path in sys.path]  # noqa: PTH109 - sys.path holds strings
        command = [sys.executable, "-P", "-m", "optkit.bench.child", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
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
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._connection.close()
        self._errors.close()

    def ready(self) -> float:
        """Load and warm up; seconds per call."""
        candidate = self._candidate
        job = (candidate.model, candidate.target, dict(candidate.session), self._inputs)
        self._seconds = self._ask(job, START_TIMEOUT_S)[0]
        return self._seconds

    def block(self, calls: int, start: int) -> list[float]:
        """Seconds of each call of one block."""
        seconds, self.peak = self._ask((calls, start), BLOCK_TIMEOUT_S + 10 * self._seconds * calls)
        found: list[float] = seconds
        return found

    def _ask(self, message: object, timeout: float) -> tuple[Any, ...]:
        """One turn: wake the child, let it answer, stop it."""
        self._process.send_signal(signal.SIGCONT)
        try:
            self._connection.send(message)
            if not self._connection.poll(timeout):
                raise self._lost(f"gave no answer for {timeout:.0f} s")
            _, *answer = self._connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise self._lost(self._end()) from error
        self._process.send_signal(signal.SIGSTOP)
        if isinstance(answer[0], OptkitError):
            raise answer[0]
        return tuple(answer)

    def _lost(self, what: str) -> ModelError:
        return ModelError(
            f"The process that timed the model {what}.",
            file=self._candidate.model.path,
            expected="a model that loads and runs",
            fix="try 'optkit run' on it, give it less to do (batch, shapes), or leave timing out with --no-bench",
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
