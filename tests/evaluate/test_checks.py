import pytest

from optkit.evaluate.checks import add_limits, budget_limits, would_pass
from optkit.evaluate.limits import Limits
from optkit.model.manifest import LimitResult, MeasuredOn, Ratio, Verdict


def ratio(low, speedup, high):
    return Ratio(
        baseline_ms=10.0,
        candidate_ms=10.0 / speedup,
        speedup=speedup,
        low=low,
        high=high,
        confidence=0.95,
        blocks=20,
        inputs="real",
    )


def budgets(limits, timed=None, peak=None):
    made = budget_limits(
        Limits.parse(limits), ratio=timed, size_bytes=3_000_000, original_bytes=4_000_000, peak_mb=peak, timing_note="x"
    )
    return {limit.name: limit for limit in made}


@pytest.mark.parametrize(
    ("stated", "timed", "held", "measured"),
    [
        ([], ratio(0.9, 0.95, 0.979), False, 0.95),
        ([], ratio(0.9, 0.95, 0.981), True, 0.95),
        (["speedup=1.5"], ratio(1.4, 1.6, 1.8), False, 1.4),
        (["speedup=1.4"], ratio(1.4, 1.6, 1.8), True, 1.4),
        ([], None, None, None),
        (["speedup=1.5"], None, None, None),
    ],
)
def test_speedup(stated, timed, held, measured):
    limit = budgets(stated, timed)["speedup"]
    assert (limit.held, limit.measured, limit.kind) == (held, measured, "budget")
    if timed is None:
        assert limit.note == "not checked: x"


def test_size_latency_and_memory():
    found = budgets(["size_mb=3", "size_ratio=0.7", "latency_ms=5", "memory_mb=100"], ratio(1, 2, 3), 99.0)
    assert {name: (limit.measured, limit.held) for name, limit in found.items() if name != "speedup"} == {
        "size_mb": (3.0, True),
        "size_ratio": (0.75, False),
        "latency_ms": (5.0, True),
        "memory_mb": (99.0, True),
    }
    untimed = budgets(["latency_ms=5", "memory_mb=100"])
    assert [untimed[name].held for name in ("latency_ms", "memory_mb")] == [None, None]


def test_limits_added_to_a_verdict_count():
    on = MeasuredOn(split="evaluation", source="x", samples=1, batch=1, synthetic=False)
    verdict = Verdict(held=True, measured_on=on)
    added = add_limits(verdict, tuple(budgets(["size_ratio=0.7"], ratio(1, 2, 3)).values()))
    assert (added.held, added.accuracy_held, added.budget_held) == (False, True, False)
    assert added.would_pass == {"size_ratio": 0.75}
    assert add_limits(verdict, tuple(budgets([]).values())).held


@pytest.mark.parametrize(
    ("name", "measured", "value"),
    [
        ("cosine", 0.987654, 0.9876),
        ("labelled.agreement", 1.0, 1.0),
        ("max_error", 0.00123456, 0.001235),
        ("metric_drop", -0.0, 0.0),
        ("labelled.metric_drop", -0.123456, -0.1234),
        ("size_mb", 12345.6, 12350.0),
        ("cosine", -0.00012345, -0.0001235),
    ],
)
def test_the_value_that_would_have_passed_is_rounded_to_the_safe_side(name, measured, value):
    limit = LimitResult(name=name, limit="x", measured=measured, held=False, kind="accuracy")
    assert would_pass([limit]) == {name: value}


def test_nothing_would_have_passed_infinity():
    limit = LimitResult(name="max_error", limit="x", measured=float("inf"), held=False, kind="accuracy")
    assert would_pass([limit]) == {}
