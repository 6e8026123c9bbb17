"""On random small graphs, simplify and every family of fuse-graph keep what is computed."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optkit.model.target import Target
from optkit.passes._fusion.families import NAMES, defaults
from optkit.passes.fuse_graph import FuseGraph
from optkit.passes.simplify import Simplify
from tests.helpers import open_any, run_pass, session_of
from tests.passes.random_graphs import RandomGraph, random_graphs

TOLERANCE = {"float32": 1e-4, "float64": 1e-4, "float16": 3e-2}
"""Absolute, and relative to the value."""
CHOICES = st.one_of(
    st.just(NAMES),
    st.just(defaults(Target())),
    st.sets(st.sampled_from(NAMES), min_size=1).map(lambda some: tuple(sorted(some))),
)
EXAMPLES = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def ends(session: ort.InferenceSession) -> list[tuple[str, str, list[int | str | None]]]:
    return [(each.name, each.type, each.shape) for each in (*session.get_inputs(), *session.get_outputs())]


def check(graph: RandomGraph, families: tuple[str, ...], simple: bool) -> None:
    original = open_any(graph.model)
    model = run_pass(Simplify(), original).model if simple else original
    outcome = run_pass(FuseGraph(families=families), model)
    assert not [reason for _, reason in outcome.skipped if "cannot open" in reason]
    before, after = (session_of(each.path, plain=True) for each in (original, outcome.model))
    assert ends(after) == ends(before)
    for inputs in graph.feeds:
        found, expected = (session.run(None, inputs) for session in (after, before))
        for one, other in zip(found, expected, strict=True):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            tolerance = TOLERANCE.get(other.dtype.name, 0)
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@settings(EXAMPLES, max_examples=40)
@given(random_graphs(), CHOICES, st.booleans())
def test_outputs_stay(graph: RandomGraph, families: tuple[str, ...], simple: bool) -> None:
    check(graph, families, simple)


@pytest.mark.large
@pytest.mark.timeout(900)
@settings(EXAMPLES, max_examples=1000)
@given(random_graphs(), CHOICES, st.booleans())
def test_outputs_of_many_more_stay(graph: RandomGraph, families: tuple[str, ...], simple: bool) -> None:
    check(graph, families, simple)
