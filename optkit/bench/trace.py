"""Calls as a Chrome trace, which https://ui.perfetto.dev and chrome://tracing open.

The format is Google's "Trace Event Format": complete events (``ph: X``) with times in microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optkit.bench.events import Call

GAP_US = 10.0
"""Between two calls."""


def chrome_trace(models: Mapping[str, Sequence[Call]]) -> dict[str, Any]:
    """Each model a process, in it one call after the other, whatever lay between them in the recording.

    Args:
        models: label -> calls; their times are of the recording.
    """
    events = [event for pid, (label, calls) in enumerate(models.items(), 1) for event in _process(pid, label, calls)]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _process(pid: int, label: str, calls: Sequence[Call]) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "pid": pid, "tid": 1, "name": "process_name", "args": {"name": label}}
    at = 0.0
    for index, call in enumerate(calls):
        shift = at - call.start
        yield _complete(pid, f"call {index}", "call", at, call.end - call.start, {})
        for event in call.events:
            about = {"provider": event.provider} if event.provider else {}
            for name, tensors in (("inputs", event.inputs), ("outputs", event.outputs)):
                about |= {name: ", ".join(map(str, tensors))} if tensors else {}
            yield _complete(pid, event.name, event.operator, event.start + shift, event.end - event.start, about)
        at += call.end - call.start + GAP_US


def _complete(pid: int, name: str, category: str, start: float, duration: float, about: dict[str, str]) -> Any:
    where = {"ph": "X", "pid": pid, "tid": 1}
    return where | {"name": name, "cat": category, "ts": round(start, 3), "dur": round(duration, 3), "args": about}
