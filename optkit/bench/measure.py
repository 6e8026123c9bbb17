"""The stopwatch: candidates against a baseline on this machine. Paired, interleaved, a process each, launched anew.

Two engines in one process disturb each other, and two runs one after the other meet two different machines
(frequency, neighbours). So every candidate has a process, one computes at a time, they take turns in short blocks in
an order drawn anew each round, and only blocks of the same round are compared. Engine threads spin for a while after
a call (onnxruntime's for 30 ms), which a user gets too and which therefore stays on: whoever has no turn is stopped
(SIGSTOP). The first call of a block meets caches that others have filled; it is left out. Why all processes are
started several times is told in ``optkit.bench.ratio``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from optkit.bench.facts import Phases, Steady
from optkit.bench.open_loop import LoadSamples
from optkit.bench.ratio import SPREAD, Times, describe, interval, median_error, ratio_of
from optkit.bench.steady import rows_of, steady_of
from optkit.bench.worker import Candidate, Ready, Worker
from optkit.data.dataset import Arrays
from optkit.errors import UsageError
from optkit.model.manifest import Ratio
from optkit.runner.base import RunnerAbout

__all__ = ["Candidate", "Measured", "Rules", "measure", "open_loop_of"]

Watch = Callable[[str, int, int], None]
"""(what, done, total): told to whoever watches."""

BLOCK_S = 0.01
"""Aim for the length of one block of the fastest candidate."""
MIN_CALLS, MAX_CALLS = 4, 2000
"""Calls in a block; fewer than the first number only where the budget does not allow them."""
ROUNDS = 8
"""Rounds of a launch that the budget is planned for, and the first count at which the precision is looked at; then at
every doubling, since whoever looks after each round stops at the luckiest."""
MIN_ROUNDS, MAX_ROUNDS = 3, 512
"""Rounds of a launch, whatever budget and precision say."""


@dataclass(frozen=True)
class Rules:
    """How long to measure, and how sure to be."""

    budget_s: float = 10.0
    """Seconds of measuring and of all starts but the first."""
    precision: float = 0.01
    """A launch ends when noise moves none of its ratios by more than this share (with ``confidence``)."""
    confidence: float = 0.99
    margin: float = 0.02
    """Differences up to this share are called ``same``."""
    launches: int = 5
    """How often all processes are started anew, at most: see ``launches_within``."""
    seed: int = 0


@dataclass(frozen=True)
class Measured:
    """What was found about one candidate."""

    phases: Phases
    """Of the first launch."""
    blocks: list[list[float]]
    """Seconds of each call, block by block, without the cold first call of a block."""
    launch_of: list[int]
    """The launch that each block belongs to, from 0."""
    peak_mb: float
    """Largest resident memory of its processes (interpreter, engine, weights, inputs), in MB of 10^6 bytes."""
    about: RunnerAbout
    ratio: Ratio
    """Against the first candidate; its own is 1 by definition."""
    steady: Steady
    stable: bool
    """Whether noise moves the ratio (of a candidate alone, its time) by no more than the margin."""


@dataclass(frozen=True)
class _Launch:
    """All candidates started once."""

    ready: list[Ready]
    rounds: list[list[list[float]]]
    """Round -> candidate -> seconds of each call."""
    peaks: list[int]


def measure(
    candidates: Sequence[Candidate],
    inputs: list[Arrays],
    rules: Rules | None = None,
    *,
    described: str = "",
    rows: int | None = None,
    watch: Watch | None = None,
) -> list[Measured]:
    """Time candidates against the first one.

    Args:
        candidates: the baseline, then those to compare with it; each is loaded in a process of its own.
        inputs: batches fed in turn, the same ones to each candidate in a round.
        rules: budget, precision and the like.
        described: ``real`` or ``synthetic``; shapes are added.
        rows: samples in one batch; None = the size of axis 0 where all inputs agree on it.
        watch: is told of each launch.

    Raises:
        DataError, ModelError, ProviderError, PackageError: as the candidate's process met them.
        ModelError: a process crashed or hung.
    """
    if not candidates or not inputs:
        raise UsageError("Timing needs a candidate and a batch of inputs.", fix="give at least one of each")
    rules = rules or Rules()
    launches = _launches(candidates, inputs, rules, watch or _silent)
    text = describe(inputs, described)
    size = rows_of(inputs[0]) if rows is None else rows
    return [_measured(launches, index, rules, text, size) for index in range(len(candidates))]


def open_loop_of(
    candidate: Candidate, inputs: list[Arrays], *, rate: float, seconds: float, seed: int = 0
) -> LoadSamples:
    """One candidate alone under requests that do not wait for it, see ``optkit.bench.open_loop.open_loop``.

    Raises:
        UsageError: no rate, or no time.
        DataError, ModelError, ProviderError, PackageError: see ``measure``.
    """
    with Worker(candidate, inputs) as worker:
        worker.ready()
        return worker.load(rate, seconds, seed)


def launches_within(rules: Rules, start_s: float, round_s: float) -> int:
    """How many of the asked launches the budget allows.

    Each has to measure for at least as long as it takes to start, and for ``ROUNDS`` rounds.

    Args:
        rules: the asked launches, and the budget.
        start_s: what starting all candidates took.
        round_s: one call of each.
    """
    least = start_s + max(start_s, ROUNDS * round_s)
    return max(1, min(rules.launches, int(rules.budget_s / least)))


def calls_per_block(speeds: Sequence[float], budget_s: float) -> int:
    """Calls of one block, the same for each candidate, from their seconds per call.

    Long enough for ``BLOCK_S`` of the fastest, and short enough for ``ROUNDS`` rounds of all within the budget.
    """
    wanted = max(MIN_CALLS, int(np.ceil(BLOCK_S / min(speeds))))
    affordable = int(budget_s / ROUNDS / sum(speeds))
    return max(1, min(wanted, affordable, MAX_CALLS))


def precise(medians: Times, rules: Rules) -> bool:
    """Whether noise moves no ratio of a launch by more than the asked precision.

    Args:
        medians: block medians in seconds, float64[rounds, candidates].
        rules: precision and confidence.
    """
    allowed = rules.precision / NormalDist().inv_cdf(0.5 + rules.confidence / 2)
    return all(median_error(values) <= allowed for values in _relative(medians).transpose())


def _relative(medians: Times) -> Times:
    """Logs of the ratios to the baseline; of a candidate alone, logs of its own seconds."""
    logs = np.log(medians)
    return logs[:, :1] - logs if logs.shape[1] > 1 else logs


def _silent(what: str, done: int, total: int) -> None:
    """The Watch of those who do not watch."""


def _launches(candidates: Sequence[Candidate], inputs: list[Arrays], rules: Rules, watch: Watch) -> list[_Launch]:
    found: list[_Launch] = []
    planned, start_s, end = rules.launches, 0.0, 0.0
    while len(found) < planned:
        watch(f"launch {len(found) + 1}", len(found), planned)
        begin = time.monotonic()
        with ExitStack() as stack:
            random = np.random.default_rng([rules.seed, len(found)])
            workers, ready = _started(stack, candidates, inputs, random)
            now = time.monotonic()
            if not found:
                start_s, end = now - begin, now + rules.budget_s
                planned = launches_within(rules, start_s, sum(each.seconds for each in ready))
            later = planned - len(found) - 1
            seconds = (end - now - later * start_s) / (later + 1)
            rounds = _rounds(workers, [each.seconds for each in ready], seconds, len(inputs), rules, random)
            found.append(_Launch(ready, rounds, [worker.peak for worker in workers]))
    return found


def _started(
    stack: ExitStack, candidates: Sequence[Candidate], inputs: list[Arrays], random: np.random.Generator
) -> tuple[list[Worker], list[Ready]]:
    """A process for each, started and made ready in any order, and one at a time."""
    order = random.permutation(len(candidates))
    workers = {index: stack.enter_context(Worker(candidates[index], inputs)) for index in order}
    ready = {index: worker.ready() for index, worker in workers.items()}
    return [workers[index] for index in sorted(order)], [ready[index] for index in sorted(order)]


def _rounds(
    workers: Sequence[Worker],
    speeds: list[float],
    budget_s: float,
    inputs: int,
    rules: Rules,
    random: np.random.Generator,
) -> list[list[list[float]]]:
    """Seconds of each call, by round and candidate, until they are precise or the budget is spent."""
    calls = calls_per_block(speeds, budget_s)
    found: list[list[list[float]]] = []
    end = time.monotonic() + budget_s
    while not _enough(found, time.monotonic() > end, rules):
        blocks: list[list[float]] = [[]] * len(workers)
        for index in random.permutation(len(workers)):
            times = workers[index].block(calls, len(found) % inputs)
            blocks[index] = times[1:] or times
        found.append(blocks)
    return found


def _enough(rounds: list[list[list[float]]], late: bool, rules: Rules) -> bool:
    count = len(rounds)
    if late or count == MAX_ROUNDS:
        return count >= MIN_ROUNDS
    doubled = count >= ROUNDS and count & (count - 1) == 0
    return doubled and precise(_medians(rounds), rules)


def _medians(rounds: list[list[list[float]]]) -> Times:
    """float64[rounds, candidates]"""
    return np.array([[np.median(block) for block in blocks] for blocks in rounds])


def _measured(launches: list[_Launch], index: int, rules: Rules, text: str, rows: int) -> Measured:
    blocks = [blocks[index] for launch in launches for blocks in launch.rounds]
    medians = [_medians(launch.rounds) for launch in launches]
    low, high = interval([_relative(each)[:, index] for each in medians], confidence=rules.confidence, spread=0.0)
    return Measured(
        phases=launches[0].ready[index].phases,
        blocks=blocks,
        launch_of=[number for number, launch in enumerate(launches) for _ in launch.rounds],
        peak_mb=max(launch.peaks[index] for launch in launches) / 1e6,
        about=launches[0].ready[index].about,
        ratio=ratio_of(
            [each[:, 0] for each in medians],
            [each[:, index] for each in medians],
            confidence=rules.confidence,
            margin=rules.margin,
            inputs=text,
            spread=SPREAD if index else 0.0,
        ),
        steady=steady_of(blocks, launches=len(launches), rows=rows),
        stable=(high - low) / 2 <= max(rules.margin, rules.precision),
    )
