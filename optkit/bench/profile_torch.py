"""Where the time of a torch model goes: torch.profiler's operators (``aten::...``), beside the latency without it.

Made to be called in a process of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean, median
from typing import Any

from optkit.bench.events import Call, Event, add_up, typical, within
from optkit.bench.profile import KEPT_CALLS, SECONDS, NodeProfile, Profiled, Turns, bound, take_turns
from optkit.bench.work import Kind, Tensor, Work, work_of
from optkit.data.dataset import Arrays
from optkit.model.model import Model
from optkit.model.target import Target

MOST_EVENTS = 20_000
"""Recorded; each costs some 50 microseconds to read."""
_MARK = "optkit: call"
_ATTENTION = "scaled_dot_product"
_COUNTED = ("conv", "mm", "linear")
"""torch counts operations of elementwise operators too; only those with such a word in their name are products."""
_DTYPES = {"float": "float32", "double": "float64", "c10::Half": "float16", "c10::BFloat16": "bfloat16"}


def profile_torch(model: Model, target: Target, inputs: Sequence[Arrays], seconds: float = SECONDS) -> Profiled:
    """Profile a model on torch, on the CPU; a node is an operator with one set of input shapes.

    torch does not show outputs, so bytes are not known; operations are torch's own count, or ``work_of``'s.

    Args:
        model: of form ``torch``.
        target: threads, and whether through torch.compile.
        inputs: batches fed in turn, all of the same shapes.
        seconds: of timing.

    Raises:
        ModelError, DataError, PackageError: as the runner.
    """
    os.environ["KINETO_LOG_LEVEL"] = "99"  # its profiler would write to stderr
    from optkit.runner.open import open_runner

    with open_runner(model, target) as runner:
        run = bound(runner.bind, inputs)
        free = Turns(run)
        take_turns([free], seconds / 2)
        each = len(_record(Turns(run, most=1), 0.0)[0].events)
        calls = typical(_record(Turns(run, most=max(3, MOST_EVENTS // max(each, 1))), seconds / 2))
        about = runner.about
    return Profiled(
        engine=about.engine,
        version=about.version,
        plain_s=median(free.times),
        plain_times=tuple(free.times),
        profiled_s=fmean(call.end - call.start for call in calls) / 1e6,
        profiled_calls=len(calls),
        nodes=tuple(_nodes(calls)),
        cost_s=0.0,
        calls=tuple(calls[:KEPT_CALLS]),
    )


def _record(turns: Turns, seconds: float) -> list[Call]:
    from torch.profiler import ProfilerActivity, profile, record_function

    plain = turns.run

    def marked(index: int) -> object:
        with record_function(_MARK):
            return plain(index)

    turns.run = marked
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, with_flops=True) as profiler:
        turns.turn(seconds)
    return torch_calls(profiler.events())


def torch_calls(recorded: Iterable[Any]) -> list[Call]:
    """torch's events (``torch.autograd.profiler_util.FunctionEvent``) as calls, in order.

    Only those of the calling thread. Operations that torch counts for an operator go to the one within it that does
    the work: conv2d -> convolution -> mkldnn_convolution.
    """
    listed = list(recorded)
    marks = [event for event in listed if event.name == _MARK]
    threads = {event.thread for event in marks}
    operations = {id(_worker(event)): event.flops for event in listed if event.flops and _is_product(event.name)}
    spans = sorted((event.time_range.start, event.time_range.end) for event in marks)
    numbers: dict[str, int] = {}
    inner = (event for event in listed if event.name != _MARK and event.thread in threads)
    return within(spans, [_event(event, operations.get(id(event)), numbers) for event in inner])


def _is_product(name: str) -> bool:
    return any(word in name for word in _COUNTED)


def _worker(event: Any) -> Any:
    """The innermost product: itself, or one within it."""
    inner = [child for child in event.cpu_children if _is_product(child.name)]
    return _worker(max(inner, key=lambda child: child.time_range.elapsed_us())) if inner else event


def _event(event: Any, operations: int | None, numbers: dict[str, int]) -> Event:
    inputs = tuple(_tensors(event.input_shapes or (), getattr(event, "input_dtypes", None) or ()))
    return Event(
        name=event.name,
        operator=event.name,
        start=event.time_range.start,
        end=event.time_range.end,
        inputs=inputs,
        index=numbers.setdefault(" ".join(map(str, inputs)), len(numbers)),
        operations=operations,
    )


def _tensors(shapes: Sequence[Any], dtypes: Sequence[str]) -> Iterator[Tensor]:
    """Tensors of rank 1 and more; scalars and lists have no shape."""
    for index, shape in enumerate(shapes):
        if shape and all(isinstance(size, int) for size in shape):
            dtype = dtypes[index] if index < len(dtypes) else ""
            yield Tensor(_DTYPES.get(dtype, dtype), tuple(shape))


def _nodes(calls: Sequence[Call]) -> Iterator[NodeProfile]:
    for each in add_up(calls):
        event = each.event
        yield NodeProfile(
            name=event.name,
            origin=event.name,
            operator=event.operator,
            provider="",
            inputs=event.inputs,
            outputs=(),
            executions=each.executions / len(calls),
            seconds=each.microseconds / len(calls) / 1e6,
            work=_work(event),
        )


def _work(event: Event) -> Work | None:
    operations = event.operations
    if operations is None and _ATTENTION in event.name and len(event.inputs) >= 3:
        found = work_of("MultiHeadAttention", event.inputs[:3], event.inputs[:1])
        operations = found.operations if found else None
    if not operations:
        return None
    kind: Kind = "fp32" if all(tensor.dtype == "float32" for tensor in event.inputs[:1]) else ""
    return Work(operations, kind, bytes=None)
