"""What a profiler recorded, as calls of nodes; the typical calls, and each node's own time in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optkit.bench.work import Tensor

_NODE = "_kernel_time"
_CALL = "model_run"
_DTYPES = {"float": "float32", "double": "float64"}
"""onnxruntime's names that are not numpy's."""


@dataclass(frozen=True)
class Event:
    """One execution of a node. Times in microseconds of the recording."""

    name: str
    operator: str
    start: float
    end: float
    inputs: tuple[Tensor, ...] = ()
    """As the profiler saw them: onnxruntime leaves out weights it has packed."""
    outputs: tuple[Tensor, ...] = ()
    provider: str = ""
    """Full name of the execution provider."""
    index: int = 0
    """Of the node in its graph; nodes need not have different names."""
    operations: int | None = None
    """Where the profiler counts them itself (torch)."""

    @property
    def node(self) -> tuple[str, str, int]:
        """Same node, same key."""
        return self.name, self.operator, self.index

    @property
    def unnamed(self) -> bool:
        """Whether onnxruntime made up the name, which it does after operator and index."""
        return self.name == f"{self.operator}_{self.index}"


@dataclass(frozen=True)
class Call:
    """One inference."""

    start: float
    end: float
    events: tuple[Event, ...]
    """By start; the nodes of a subgraph lie within their If, Loop or Scan."""


@dataclass(frozen=True)
class Cost:
    """What a profiler adds for each execution of a node, in microseconds."""

    within: float = 0.0
    """Between the start and the end it records."""
    around: float = 0.0
    """Before and after: part of the node that this one lies in, if any."""


FREE = Cost()


@dataclass
class NodeTime:
    """One node over all typical calls."""

    event: Event
    """Its first execution."""
    executions: int = 0
    microseconds: float = 0.0
    """Of all executions, without the nodes within."""


def ort_calls(recorded: Iterable[Mapping[str, Any]]) -> list[Call]:
    """The events of an onnxruntime profile (its JSON file, a list) as calls, in order.

    Format: ``cat`` is ``Session`` or ``Node``; a node's ``name`` ends in ``_kernel_time``; ``ts`` and ``dur`` are
    whole microseconds.
    """
    chosen = [event for event in recorded if "dur" in event]
    runs = sorted((event for event in chosen if event["name"] == _CALL), key=lambda event: event["ts"])
    nodes = [_event(event) for event in chosen if event.get("cat") == "Node" and event["name"].endswith(_NODE)]
    spans = [(float(run["ts"]), float(run["ts"] + run["dur"])) for run in runs]
    return within(spans, nodes)


def within(spans: Sequence[tuple[float, float]], events: Iterable[Event]) -> list[Call]:
    """Events assigned to the calls they began in; what lies outside of all is left out.

    Args:
        spans: start and end of each call, in order, without overlap.
        events: in any order.
    """
    ordered = iter(sorted(events, key=lambda event: (event.start, -event.end)))
    current, calls = next(ordered, None), []
    for start, end in spans:
        inside = []
        while current is not None and current.start <= end:
            if current.start >= start:
                inside.append(current)
            current = next(ordered, None)
        calls.append(Call(start, end, tuple(inside)))
    return calls


def _event(record: Mapping[str, Any]) -> Event:
    about = record["args"]
    return Event(
        name=record["name"].removesuffix(_NODE),
        operator=about.get("op_name", ""),
        start=float(record["ts"]),
        end=float(record["ts"] + record["dur"]),
        inputs=_tensors(about.get("input_type_shape", ())),
        outputs=_tensors(about.get("output_type_shape", ())),
        provider=about.get("provider", ""),
        index=int(about.get("node_index", 0)),
    )


def _tensors(listed: Iterable[Mapping[str, Sequence[int]]]) -> tuple[Tensor, ...]:
    """``[{"float": [8, 16]}]``."""
    pairs = (pair for each in listed for pair in each.items())
    return tuple(Tensor(_DTYPES.get(dtype, dtype.lower()), tuple(shape)) for dtype, shape in pairs)


def own_times(events: Sequence[Event], cost: Cost = FREE) -> Iterator[tuple[Event, float]]:
    """Each event with its microseconds, without those of the events within it and without the profiler's own."""
    own = [event.end - event.start - cost.within for event in events]
    open_: list[int] = []
    for index, event in enumerate(events):
        while open_ and events[open_[-1]].end <= event.start:
            open_.pop()
        if open_:
            own[open_[-1]] -= event.end - event.start + cost.around
        open_.append(index)
    return zip(events, (max(each, 0.0) for each in own), strict=True)


def typical(calls: Sequence[Call]) -> list[Call]:
    """The middle half by length, in order: neither the disturbed calls nor the lucky ones."""
    by_length = sorted(range(len(calls)), key=lambda index: calls[index].end - calls[index].start)
    cut = len(calls) // 4
    return [calls[index] for index in sorted(by_length[cut : len(calls) - cut])]


def add_up(calls: Iterable[Call], cost: Cost = FREE) -> list[NodeTime]:
    """Time of each node over these calls, in order of execution.

    Sums over the same calls for all nodes, and not each node's own median: so the nodes add up to the calls.

    Args:
        calls: typical ones.
        cost: what the profiler itself takes, to be taken off.
    """
    nodes: dict[tuple[str, str, int], NodeTime] = {}
    for event, own in (pair for call in calls for pair in own_times(call.events, cost)):
        node = nodes.setdefault(event.node, NodeTime(event))
        node.executions += 1
        node.microseconds += own
    return list(nodes.values())
