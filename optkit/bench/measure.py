"""The stopwatch: candidates against a baseline on this machine. Paired, interleaved, a process each, launched anew.

Two engines in one process disturb each other, and two runs one after the other meet two different machines
(frequency, neighbours). So every candidate has a process, one computes at a time, they take turns in short blocks in
an order drawn anew each round, and only blocks of the same round are compared. Engine threads spin for a while after
a call (onnxruntime's for 30 ms), which a user gets too and which therefore stays on: whoever has no turn is stopped
(SIGSTOP). The first call of a block meets caches that others have filled; it is left out. Why all processes are
started several times is told in ``optkit.bench.ratio``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from optkit.bench.facts import Phases, Steady
from optkit.bench.open_loop import LoadSamples
from optkit.bench.ratio import SPREAD, Times, describe, interval, median_error, ratio_of
from optkit.bench.steady import steady_of
from optkit.bench.worker import Candidate, Ready, Worker
from optkit.data.dataset import Arrays
from optkit.errors import UsageError
from optkit.model.manifest import Ratio
from optkit.runner.base import RunnerAbout

__all__ = ["Candidate", "Measured", "Rules", "measure", "open_loop_of"]

Watch = Callable[[str, int, int], None]
"""(what, done, total): told to whoever watches."""

BLOCK_S = 0.03
"""Aim for the length of a block."""
MIN_CALLS, MAX_CALLS = 4, 2000
"""Calls in a block; fewer than the first number only where the budget does not allow blocks longer than ``BLOCK_S``."""
ALONE_S = 0.1
"""A call of so many seconds may be the only one of its block, as it hardly feels that it is the cold first one."""
ROUNDS = 8
"""Rounds of a launch that the budget is planned for, and the first count at which the precision is looked at; then at
every doubling, since whoever looks after each round stops at the luckiest."""
MIN_ROUNDS, MAX_ROUNDS = 3, 512
"""Rounds of a launch, whatever budget and precision say."""


@dataclass(frozen=True)
class Rules:
    """How long to measure, and how sure to be."""

    budget_s: float = 10.0
    """Seconds of measuring and of all starts but the first; ``MIN_ROUNDS`` are made in any case."""
    precision: float = 0.01
    """A launch ends when noise within it moves none of its ratios by more than this share (with ``confidence``). The
    interval also holds how launches differ, and may be wider."""
    confidence: float = 0.99
    margin: float = 0.02
    """Differences up to this share are called ``same``."""
    launches: int = 8
    """How often all processes are started anew, at most: see ``launches_within``."""
    seed: int = 0


@dataclass(frozen=True)
class Measured:
    """What was found about one candidate."""

    phases: Phases
    """Of the first launch."""
    blocks: list[list[float]]
    """Seconds of each call, block by block, without the cold first call of a block (unless it is the only one)."""
    launch_of: list[int]
    """The launch that each block belongs to, from 0."""
    peak_mb: float
    """Largest resident memory of its processes (interpreter, engine, weights, inputs), in MB of 10^6 bytes."""
    about: RunnerAbout
    ratio: Ratio
    """Against the first candidate; its own is 1 by definition."""
    steady: Steady
    stable: bool
    """Whether noise moves the figure by no more than the margin, or the precision where that is larger. The figure is
    the ratio; the baseline's own time within a launch; a lone candidate's own time."""


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
    rows: int = 1,
    watch: Watch | None = None,
) -> list[Measured]:
    """Time candidates against the first one.

    Args:
        candidates: the baseline, then those to compare with it; each is loaded in a process of its own.
        inputs: batches fed in turn, the same ones to each candidate in a round.
        rules: budget, precision and the like.
        described: ``real`` or ``synthetic``; shapes are added.
        rows: samples in one batch, for the throughput.
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
    return [_measured(launches, index, rules, text, rows) for index in range(len(candidates))]


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


def calls_per_block(speeds: Sequence[float], budget_s: float) -> list[int]:
    """Calls in a block of each candidate, from their seconds per call.

    Each gets ``BLOCK_S`` or ``MIN_CALLS``, whichever is longer. Where ``ROUNDS`` rounds of that exceed the budget,
    those whose blocks are longer than ``BLOCK_S`` give up calls, down to one that is warm.

    Args:
        speeds: seconds per call of each candidate.
        budget_s: seconds for the launch.
    """
    found, left = [0] * len(speeds), budget_s / ROUNDS
    for rank, index in enumerate(np.argsort(speeds)):
        speed = speeds[index]
        wanted = min(max(MIN_CALLS, math.ceil(BLOCK_S / speed)), MAX_CALLS)
        least = wanted if MIN_CALLS * speed <= BLOCK_S else 2 if speed < ALONE_S else 1
        share = int(left / (len(speeds) - rank) / speed)
        found[index] = max(least, min(wanted, share))
        left -= found[index] * speed
    return found


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


def _judged(medians: Times, index: int) -> Times:
    """What has to be free of noise for one candidate to be called stable, float64[rounds].

    Of the baseline beside others its own time, as far as it varies within the launch: launches are compared with it.
    """
    logs = np.log(medians[:, 0])
    return _relative(medians)[:, index] if index or medians.shape[1] == 1 else logs - np.median(logs)


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
    """A process for each in any order; the next one is started when the one before is ready."""
    workers: dict[int, Worker] = {}
    ready: dict[int, Ready] = {}
    for index in random.permutation(len(candidates)).tolist():
        workers[index] = stack.enter_context(Worker(candidates[index], inputs))
        ready[index] = workers[index].ready()
    return [workers[index] for index in sorted(workers)], [ready[index] for index in sorted(ready)]


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
            times = workers[index].block(calls[index], len(found) % inputs)
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
    judged = [_judged(each, index) for each in medians]
    low, high = interval(judged, confidence=rules.confidence, spread=0.0)
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
