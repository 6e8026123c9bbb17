"""The Chrome trace: what Perfetto needs, one call after the other."""

from __future__ import annotations

import json

from optkit.bench.events import Call, Event
from optkit.bench.trace import GAP_US, chrome_trace
from optkit.bench.work import Tensor


def test_calls_follow_one_another_from_zero():
    inner = Event("clip", "Relu", 130.0, 140.0, provider="CPUExecutionProvider", inputs=(Tensor("float32", (2,)),))
    outer = Event("choose", "If", 120.0, 160.0)
    late = Event("scores", "MatMul", 9010.0, 9020.5)
    made = chrome_trace({"a.onnx": [Call(100.0, 200.0, (outer, inner)), Call(9000.0, 9050.0, (late,))], "b.onnx": []})
    assert json.loads(json.dumps(made)) == made
    names, events = made["traceEvents"][:1] + made["traceEvents"][-1:], made["traceEvents"][1:-1]
    assert [(each["ph"], each["pid"], each["args"]["name"]) for each in names] == [
        ("M", 1, "a.onnx"),
        ("M", 2, "b.onnx"),
    ]
    assert all((each["ph"], each["pid"], each["tid"]) == ("X", 1, 1) for each in events)
    second = 100.0 + GAP_US
    assert [(each["name"], each["cat"], each["ts"], each["dur"]) for each in events] == [
        ("call 0", "call", 0.0, 100.0),
        ("choose", "If", 20.0, 40.0),
        ("clip", "Relu", 30.0, 10.0),
        ("call 1", "call", second, 50.0),
        ("scores", "MatMul", second + 10.0, 10.5),
    ]
    assert events[2]["args"] == {"provider": "CPUExecutionProvider", "inputs": "float32[2]"}
