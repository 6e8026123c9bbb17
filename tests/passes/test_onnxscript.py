"""The rule for pairs of slices: it finds what it found, and no longer looks where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest
from onnxscript.optimizer import optimize
from onnxscript.rewriter.rules.common import slice_split_rule as rule

from optkit.passes._onnxscript import hasten
from tests.helpers import onnx_model

HALVES = """g (float[n,8] x) => (float[n,4] y) {
    b = Slice(x, four, eight, one)
    a = Slice(x, zero, four, one)
    c = Neg(b)
    y = Add(a, c)
}"""
BOUNDS = {name: np.array([value], np.int64) for name, value in (("zero", 0), ("one", 1), ("four", 4), ("eight", 8))}


@pytest.fixture
def quick() -> Iterator[None]:
    """The rule as ``hasten`` makes it, and afterwards as it was."""
    kept = vars(rule).pop("match", None)
    hasten()
    yield
    vars(rule).pop("match", None)
    if kept is not None:
        rule.match = kept


def optimized(text: str) -> list[str]:
    model = ir.from_proto(onnx_model(text, BOUNDS))
    optimize(model)
    return [node.op_type for node in model.graph]


@pytest.mark.usefixtures("quick")
def test_two_halves_become_one_split_as_before() -> None:
    assert optimized(HALVES) == ["Split", "Neg", "Add"]
    assert "match" in vars(rule)
    vars(rule).pop("match")
    assert optimized(HALVES) == ["Split", "Neg", "Add"]


@pytest.mark.usefixtures("quick")
def test_the_graph_is_listed_at_slices_only() -> None:
    model = ir.from_proto(onnx_model(HALVES, BOUNDS))
    _, first, neg, add = model.graph

    class Listed:
        times = 0

        def __iter__(self) -> Iterator[ir.Node]:
            Listed.times += 1
            return iter(model.graph)

        graph = model.graph

    for node in (neg, add):
        assert not rule.match(model, Listed(), node)
    assert Listed.times == 0
    assert rule.match(model, Listed(), first)
    assert Listed.times > 0


@pytest.mark.usefixtures("quick")
def test_it_is_done_once() -> None:
    made = vars(rule)["match"]
    hasten()
    assert vars(rule)["match"] is made
