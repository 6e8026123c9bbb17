"""A recorded profile of onnxruntime 1.31: MatMul -> If(c) {Add -> Relu | Neg}, three calls, the last with c false."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optkit.bench.events import Call, Cost, Event, add_up, ort_calls, own_times, typical, within
from optkit.bench.work import Tensor


@pytest.fixture
def calls() -> list[Call]:
    return ort_calls(json.loads(Path(__file__).with_name("ort_profile.json").read_text()))


def test_calls_and_their_nodes_in_order_of_execution(calls: list[Call]):
    assert [(call.start, call.end) for call in calls] == [(11941, 12089), (12375, 12417), (18626, 18760)]
    names = [[event.name for event in call.events] for call in calls]
    assert names == [["scores", "choose", "shift", "clip"]] * 2 + [["scores", "choose", "Neg_0"]]
    first = calls[1].events[0]
    assert (first.operator, first.start, first.end, first.provider) == ("MatMul", 12384, 12392, "CPUExecutionProvider")
    assert first.inputs == (Tensor("float32", (2, 4)),)  # its packed weight is not shown
    assert calls[0].events[1].inputs == (Tensor("bool", ()),)


def test_a_node_does_not_count_what_runs_within_it(calls: list[Call]):
    own = {event.name: microseconds for event, microseconds in own_times(calls[1].events)}
    assert own == {"scores": 8, "choose": 17 - 3 - 2, "shift": 3, "clip": 2}
    assert sum(own.values()) == 8 + 17


def test_the_profilers_own_part_is_taken_off(calls: list[Call]):
    own = {event.name: us for event, us in own_times(calls[1].events, Cost(within=2.5, around=1.0))}
    assert own == {"scores": 5.5, "choose": 17 - 2.5 - 3 - 2 - 2 * 1.0, "shift": 0.5, "clip": 0.0}


def test_nodes_add_up_to_the_calls(calls: list[Call]):
    times = {each.event.name: each for each in add_up(calls)}
    assert list(times) == ["scores", "choose", "shift", "clip", "Neg_0"]
    assert times["scores"].microseconds == 86 + 8 + 48 and times["scores"].executions == 3
    assert times["Neg_0"].executions == 1
    tops = sum(event.end - event.start for call in calls for event in call.events if event.name in ("scores", "choose"))
    assert sum(each.microseconds for each in times.values()) == tops


def test_nodes_of_one_name_are_told_apart_by_their_index():
    events = [Event("n", "Add", start, start + 2, index=index) for start, index in ((0, 0), (3, 1), (6, 0))]
    assert [each.executions for each in add_up([Call(0, 9, tuple(events))])] == [2, 1]


def test_the_middle_half_of_the_calls_by_length():
    lengths = [5, 100, 4, 6, 1, 7, 50, 8]
    chosen = typical([Call(1000 * at, 1000 * at + length, ()) for at, length in enumerate(lengths)])
    assert [call.end - call.start for call in chosen] == [5, 6, 7, 8]
    assert typical([]) == [] and len(typical([Call(0, 1, ())])) == 1


def test_what_lies_outside_of_the_calls_is_left_out():
    events = [Event(name, "", start, start + 1) for name, start in (("late", 50), ("in", 11), ("early", 3))]
    assert [[event.name for event in call.events] for call in within([(10, 20), (30, 40)], events)] == [["in"], []]
