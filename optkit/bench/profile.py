"""Where the time of a model on onnxruntime goes: its profiler's record, beside the latency without the profiler.

Made to be called in a process of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

from optkit.bench.events import FREE, Call, Cost, add_up, ort_calls, typical
from optkit.bench.names import origins
from optkit.bench.optimized import Structure, complete, read_optimized, save_optimized
from optkit.bench.work import Tensor, Work, work_of
from optkit.data.dataset import Arrays
from optkit.errors import ModelError
from optkit.model.model import Model
from optkit.model.target import Target

if TYPE_CHECKING:
    import onnxruntime

    from optkit.runner.onnx import OnnxRunner

SECONDS = 6.0
"""Of timing, half of it with the profiler."""
TURN_S = 0.2
"""With the profiler and without take turns of this length, so that both meet the same machine."""
PAUSE_S = 0.05
"""Before a turn, until the other session's idle threads spin no more."""
WARM_CALLS, WARM_S = 50, 0.3
"""Warm-up ends with whichever comes first, but not before three calls."""
MOST_EVENTS = 60_000
"""Executions of nodes that are recorded, at about 1 kB each."""
LOOPED = 50
"""Executions of a node in a call that are reckoned with where there are loops."""
LARGE_BYTES = 10**9
"""Models above this are not held twice at a time."""
LEAST = 3
"""Calls that are kept at least, however long they take."""
COLD_S = 0.02
"""The first call of a turn counts only if it took longer: then it makes no difference that it found caches cold."""
KEPT_CALLS = 20
"""Calls that are kept for a trace."""
CHAIN = 64
"""Nodes of the model that shows what the profiler itself costs."""

Run = Callable[[int], object]
"""Runs the model on the i-th inputs, counted around."""


def profile_model(
    model: Model, target: Target, inputs: Sequence[Arrays], scratch: Path, seconds: float = SECONDS
) -> Profiled:
    """Profile a model on the engine of its form; see ``profile_onnx`` and ``profile_torch``."""
    if model.form == "torch":
        from optkit.bench.profile_torch import profile_torch

        return profile_torch(model, target, inputs, seconds)
    return profile_onnx(model, target, inputs, scratch, seconds)


@dataclass(frozen=True)
class NodeProfile:
    """One node in a typical call."""

    name: str
    origin: str
    """Of the model's own nodes the one it came from; empty where names do not tell."""
    operator: str
    provider: str
    """Full name of the execution provider; empty for torch."""
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    executions: float
    """Per call."""
    seconds: float
    """Per call, without the profiler's own part and the nodes within it."""
    work: Work | None = None
    """Of one execution."""


@dataclass(frozen=True)
class Profiled:
    """What was found about one model."""

    engine: str
    version: str
    plain_s: float
    """Median latency without the profiler."""
    plain_times: tuple[float, ...] = field(repr=False)
    """Seconds of each of those calls."""
    profiled_s: float
    """Mean length of a typical call with the profiler."""
    profiled_calls: int
    """The middle half of the recorded calls, by length: those that count."""
    nodes: tuple[NodeProfile, ...]
    cost_s: float
    """The profiler's own time within each execution of a node, taken off."""
    calls: tuple[Call, ...] = field(repr=False)
    """Some typical ones, for a trace."""


@dataclass
class Turns:
    """Calls of one model that takes turns with others."""

    run: Run
    most: int = 10**9
    """Calls to make at most."""
    calls: int = 0
    kept: list[int] = field(default_factory=list)
    """Numbers of the calls that are kept."""
    times: list[float] = field(default_factory=list)
    """Seconds of each."""

    def warm_up(self) -> None:
        """Calls that are not kept."""
        begin = time.perf_counter()
        while self.calls < 3 or (self.calls < WARM_CALLS and time.perf_counter() - begin < WARM_S):
            self._call()

    def turn(self, seconds: float) -> None:
        """Call for as long, and until a few calls are kept."""
        begin = time.perf_counter()
        self._keep(cold=True)
        while len(self.times) < LEAST or (time.perf_counter() - begin < seconds and self.calls < self.most):
            self._keep()

    def _keep(self, cold: bool = False) -> None:
        number, taken = self.calls, self._call()
        if not cold or taken > COLD_S:
            self.kept.append(number)
            self.times.append(taken)

    def _call(self) -> float:
        begin = time.perf_counter()
        self.run(self.calls)
        self.calls += 1
        return time.perf_counter() - begin


def take_turns(turns: Sequence[Turns], seconds: float) -> None:
    """Warm all up, then let them take turns until the time is over or one has made all its calls."""
    for each in turns:
        each.warm_up()
    end = time.perf_counter() + seconds
    while not turns[0].times or (time.perf_counter() < end and all(each.calls < each.most for each in turns)):
        for each in turns:
            time.sleep(PAUSE_S if len(turns) > 1 else 0)
            each.turn(TURN_S)


def profile_onnx(
    model: Model, target: Target, inputs: Sequence[Arrays], scratch: Path, seconds: float = SECONDS
) -> Profiled:
    """Profile a model on onnxruntime.

    Args:
        model: of form ``onnx`` or ``ort``.
        target: provider and threads.
        inputs: batches fed in turn, all of the same shapes.
        scratch: an empty folder for what onnxruntime writes.
        seconds: of timing.

    Raises:
        ModelError, DataError, ProviderError, PackageError: as the runner; ModelError also where nothing is recorded.
    """
    from optkit.runner.onnx import OnnxRunner

    with ExitStack() as stack:
        plain = stack.enter_context(OnnxRunner(model, target))
        free = Turns(bound(plain.bind, inputs))
        if alone := model.size_bytes > LARGE_BYTES:
            take_turns([free], seconds / 2)
            plain.close()
        profiled = stack.enter_context(_with_profiler(model, target, scratch))
        structure = read_optimized(scratch)
        watched = Turns(bound(profiled.bind, inputs), most=_most_calls(structure))
        take_turns([watched] if alone else [free, watched], seconds / 2 if alone else seconds)
        recorded = ort_calls(json.loads(Path(profiled.session.end_profiling()).read_bytes()))
        version = profiled.about.version
    begin = len(inputs)  # binding has run each once
    chosen = typical([recorded[begin + index] for index in watched.kept if begin + index < len(recorded)])
    if not any(call.events for call in chosen):
        raise ModelError(
            "onnxruntime's profiler recorded no node of the model.",
            file=model.path,
            expected="nodes that onnxruntime itself runs",
            fix="profile it on another provider, such as --provider cpu",
        )
    cost = profiler_cost(target, scratch) if target.provider == "cpu" else FREE
    return Profiled(
        engine="onnxruntime",
        version=version,
        plain_s=median(free.times),
        plain_times=tuple(free.times),
        profiled_s=fmean(call.end - call.start for call in chosen) / 1e6,
        profiled_calls=len(chosen),
        nodes=tuple(_nodes(model, chosen, cost, structure)),
        cost_s=cost.within / 1e6,
        calls=tuple(chosen[:KEPT_CALLS]),
    )


def bound(bind: Callable[[Arrays], Callable[[], object]], inputs: Sequence[Arrays]) -> Run:
    """One call for all inputs, in turn; each has run once."""
    calls = [bind(batch) for batch in inputs]
    for call in calls:
        call()
    return lambda index: calls[index % len(calls)]()


def _with_profiler(model: Model, target: Target, folder: Path) -> OnnxRunner:
    """A session that records; it also writes its optimized graph, where the provider allows that."""
    from optkit.runner.onnx import OnnxRunner

    def record(options: onnxruntime.SessionOptions) -> None:
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        if target.provider == "cpu":
            save_optimized(options, folder)

    return OnnxRunner(model, target, configure=record)


def _most_calls(structure: Structure) -> int:
    executions = structure.nodes * (LOOPED if structure.repeats else 1)
    return max(20, MOST_EVENTS // max(executions, 8))


def _nodes(model: Model, calls: Sequence[Call], cost: Cost, structure: Structure) -> Iterator[NodeProfile]:
    times = add_up(calls, cost)
    inputs = complete(structure, [each.event for each in times])
    known = (
        origins(model.path, {each.event.name: each.event.operator for each in times}) if model.form == "onnx" else None
    )
    for each, full in zip(times, inputs, strict=True):
        event = each.event
        given = event.inputs if full is None else tuple(tensor for tensor in full[0] if tensor is not None)
        yield NodeProfile(
            name=event.name,
            origin=("" if event.unnamed else event.name) if known is None else known[event.name],
            operator=event.operator,
            provider=event.provider,
            inputs=given,
            outputs=event.outputs,
            executions=each.executions / len(calls),
            seconds=each.microseconds / len(calls) / 1e6,
            work=None if full is None else work_of(event.operator, full[0], event.outputs, full[1]),
        )


def profiler_cost(target: Target, scratch: Path) -> Cost:
    """What onnxruntime's profiler adds for each node, found on nodes that do next to nothing."""
    import numpy as np

    from optkit.runner.providers import import_ort

    ort, made, sessions = import_ort(), _chain(), []
    for profiling in (False, True):
        options = ort.SessionOptions()
        options.intra_op_num_threads = target.threads
        options.enable_profiling, options.profile_file_prefix = profiling, str(scratch / "chain")
        sessions.append(ort.InferenceSession(made, options, providers=["CPUExecutionProvider"]))
    feeds: Arrays = {"t0": np.ones(1, np.float32)}
    turns = [Turns(_repeated(session, feeds), most=300) for session in sessions]
    take_turns(turns, 0.3)
    calls = typical(ort_calls(json.loads(Path(sessions[1].end_profiling()).read_bytes())))
    plain = median(turns[0].times) / CHAIN * 1e6
    within = fmean(each.microseconds / each.executions for each in add_up(calls))
    whole = fmean(call.end - call.start for call in calls) / CHAIN
    return Cost(max(0.0, within - plain), max(0.0, whole - within))


def _chain() -> bytes:
    """A model of ``CHAIN`` nodes, one after the other, on one number."""
    from onnx import TensorProto, helper

    nodes = [helper.make_node(("Abs", "Neg")[i % 2], [f"t{i}"], [f"t{i + 1}"]) for i in range(CHAIN)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("t0", f"t{CHAIN}")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 20)]
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return made


def _repeated(session: onnxruntime.InferenceSession, feeds: Arrays) -> Run:
    return lambda _: session.run(None, feeds)
