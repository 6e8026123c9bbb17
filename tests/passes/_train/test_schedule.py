"""The learning rate over the budget."""

from __future__ import annotations

import pytest

from optkit.passes._train.schedule import Budget, rate


def test_it_rises_linearly_and_falls_as_half_a_cosine() -> None:
    assert [rate(used, 0.2) for used in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert rate(0.0, 0.0) == 1


def test_steps_and_time_both_use_the_budget() -> None:
    assert Budget(10).used(5, 1e9) == 0.5
    assert Budget(10, 4.0).used(1, 3.0) == 0.75
    assert Budget(10, 4.0).used(9, 1.0) == 0.9
    assert Budget(10, 4.0).used(1, 9.0) == 1
