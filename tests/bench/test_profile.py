"""Profiling on onnxruntime: the turns on a clock of its own, then a small real run for its structure."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from optkit.bench import profile as module
from optkit.bench.events import Cost
from optkit.bench.profile import Turns, profile_model, profiler_cost, take_turns
from optkit.model.model import Model
from optkit.model.target import Target
from tests.helpers import normal, onnx_model

TEXT = """g (float[batch,4] x, bool c) => (float[batch,3] y) {
    [scores] h = MatMul(x, w)
    [choose] y = If(c) <then_branch = t () => (float[batch,3] a) { [clip] a = Relu(h) },
                        else_branch = e () => (float[batch,3] z) { [turn] z = Neg(h) }>
}"""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Time that only sleeping and calls move."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    yield now


def lasting(clock: list[float], seconds: float) -> Turns:
    return Turns(lambda _: clock.__setitem__(0, clock[0] + seconds))


def test_the_first_call_of_a_turn_counts_only_where_calls_are_long(clock: list[float]):
    short, long = lasting(clock, 0.01), lasting(clock, 0.05)
    for each in (short, long):
        each.turn(0.195)
    assert short.kept == list(range(1, 20)) and short.calls == 20
    assert long.kept == [0, 1, 2, 3] and long.times == pytest.approx([0.05] * 4)


def test_turns_end_with_the_time_or_with_all_calls_made(clock: list[float]):
    one, other = lasting(clock, 0.01), lasting(clock, 0.02)
    take_turns([one, other], 1.0)
    assert 1.0 <= clock[0] - 2 * module.WARM_S < 2.0
    assert one.kept and max(one.kept) < one.calls
    few = lasting(clock, 0.01)
    few.most = 45
    take_turns([few], 100.0)
    assert few.calls == 45


@pytest.mark.parametrize(("seconds", "most"), [(60.0, 10**9), (0.001, 1)])
def test_however_slow_or_few_three_calls_are_kept(seconds: float, most: int, clock: list[float]):
    one, other = lasting(clock, seconds), lasting(clock, seconds)
    other.most = most
    take_turns([one, other], 1.0)
    assert min(len(one.kept), len(other.kept)) >= module.LEAST


@pytest.fixture
def model(tmp_path: Path) -> Model:
    onnx.save(onnx_model(TEXT, {"w": normal(4, 3)}), tmp_path / "m.onnx")
    return Model.open(tmp_path / "m.onnx")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profiler that costs nothing."""
    monkeypatch.setattr(module, "profiler_cost", lambda *_: Cost())


def batch(chosen: bool) -> dict[str, np.ndarray]:
    return {"x": normal(2, 4), "c": np.array(chosen)}


def test_a_small_real_profile(model: Model, free: None, tmp_path: Path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    found = profile_model(model, Target("cpu", 1), [batch(True)], scratch, seconds=0.2)
    nodes = {node.name: node for node in found.nodes}
    assert list(nodes) == ["scores", "choose", "clip"] and {node.executions for node in found.nodes} == {1.0}
    assert [str(tensor) for tensor in nodes["scores"].inputs] == ["float32[2,4]", "float32[4,3]"]
    work = nodes["scores"].work
    assert work is not None and (work.operations, work.bytes, work.weight_bytes) == (48, 4 * (8 + 12 + 6), 48)
    assert nodes["clip"].work is None and nodes["choose"].provider == "CPUExecutionProvider"
    assert found.engine == "onnxruntime" and found.version
    assert found.plain_s > 0 and found.profiled_s > 0 and all(node.seconds >= 0 for node in found.nodes)
    assert len(found.calls) == min(module.KEPT_CALLS, found.profiled_calls)
    assert [event.name for event in found.calls[0].events] == ["scores", "choose", "clip"]
    assert {file.name for file in tmp_path.iterdir()} == {"m.onnx", "scratch"}


def test_branches_count_by_how_often_they_ran(model: Model, free: None, tmp_path: Path):
    found = profile_model(model, Target("cpu", 1), [batch(True), batch(False)], tmp_path, seconds=0.2)
    executions = {node.name: node.executions for node in found.nodes}
    assert executions["scores"] == 1.0 and executions["clip"] + executions["turn"] == pytest.approx(1.0)


def test_large_models_are_not_held_twice(model: Model, free: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LARGE_BYTES", 0)
    sessions: list[weakref.ref[object]] = []
    held: list[bool] = []
    bound, with_profiler = module.bound, module._with_profiler

    def watched(bind: Any, inputs: Any) -> Any:
        sessions.append(weakref.ref(bind.__self__.session))
        return bound(bind, inputs)

    def second(*arguments: Any) -> Any:
        held.append(sessions[0]() is not None)
        return with_profiler(*arguments)

    monkeypatch.setattr(module, "bound", watched)
    monkeypatch.setattr(module, "_with_profiler", second)
    found = profile_model(model, Target("cpu", 1), [batch(True)], tmp_path, seconds=0.2)
    assert [node.name for node in found.nodes] == ["scores", "choose", "clip"]
    assert held == [False]


def test_the_profilers_own_part(tmp_path: Path):
    cost = profiler_cost(Target("cpu", 1), tmp_path)
    assert cost.within >= 0 and cost.around >= 0 and cost != Cost()
