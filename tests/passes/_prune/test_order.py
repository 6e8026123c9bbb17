"""What goes first, in which steps, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from optkit.passes._prune.order import Chunk, Room, evenly, in_order, kept_without, unit_costs
from optkit.passes._prune.units import Group, Part


def group(name: str, units: int, kind: str = "channels", parts: tuple[Part, ...] = ()) -> Group:
    return Group(name, kind, units, parts, through_norm=False)  # type: ignore[arg-type]


def room(min_share: float = 0.1, multiple: int = 8, **whole: int) -> Room:
    return Room(min_share, multiple, whole)


@pytest.mark.parametrize(
    ("units", "kind", "options", "sizes"),
    [
        (32, "channels", {}, [32, 24, 16, 8]),
        (30, "channels", {}, [30, 24, 16, 8]),
        (8, "channels", {}, [8]),
        (6, "channels", {}, [6, 5, 4, 3, 2, 1]),
        (12, "heads", {"min_share": 0.5}, [12, 11, 10, 9, 8, 7, 6]),
        (64, "channels", {"min_share": 0.3}, [64, 56, 48, 40, 32, 24]),
        (5, "channels", {"multiple": 1, "min_share": 0.5}, [5, 4, 3]),
        (32, "channels", {"whole": {"g": 128}, "min_share": 0.2}, [32]),
    ],
)
def test_sizes_are_multiples_down_to_the_floor(units, kind, options, sizes):
    options = {"min_share": 0.1, "multiple": 8, "whole": {}} | options
    assert Room(**options).sizes(group("g", units, kind)) == sizes


def test_what_cannot_shrink_is_told():
    ((name, reason),) = room().too_small([group("a", 8), group("b", 9)])
    assert name == "a" and "8 channels" in reason


def test_least_useful_units_go_first_relative_to_their_group():
    groups = [group("a", 4), group("b", 4)]
    scores = {"a": np.array([4.0, 1.0, 3.0, 4.0]), "b": np.array([200.0, 300.0, 100.0, 600.0])}
    chunks = in_order(groups, scores, room(multiple=1))
    assert [(each.group, each.units) for each in chunks] == [
        ("a", (1,)),  # 1 of a mean of 3
        ("b", (2,)),  # 100 of a mean of 300
        ("b", (0,)),
        ("a", (2,)),
        ("b", (1,)),
        ("a", (0,)),
    ]


def test_absolute_scores_count_for_what_a_unit_costs():
    groups = [group("a", 3), group("b", 3), group("free", 3)]
    scores = {"a": np.array([1.0, 2.0, 9.0]), "b": np.array([8.0, 30.0, 90.0]), "free": np.array([0.0, 0.1, 0.2])}
    chunks = in_order(groups, scores, room(multiple=1), {"a": 1.0, "b": 10.0, "free": 0.0})
    assert [(each.group, each.units[0]) for each in chunks] == [
        ("b", 0), ("a", 0), ("a", 1), ("b", 1), ("free", 0), ("free", 1)
    ]  # fmt: skip


def test_chunks_leave_whole_multiples():
    scores = {"a": np.arange(20.0)[::-1].copy()}
    chunks = in_order([group("a", 20)], scores, room())
    assert [each.units for each in chunks] == [(19, 18, 17, 16), (15, 14, 13, 12, 11, 10, 9, 8)]


def test_per_layer_all_groups_lose_the_same_share():
    groups = [group("a", 64), group("b", 32)]
    scores = {"a": np.full(64, 1e-9), "b": np.full(32, 1e9)}
    chunks = evenly(groups, scores, room(min_share=0.25, a=64, b=32))
    half = kept_without(groups, [each for each in chunks if each.rank <= 0.5])
    assert {name: len(units) for name, units in half.items()} == {"a": 32, "b": 16}


def test_kept_is_what_is_not_gone():
    groups = [group("a", 4), group("b", 2)]
    assert kept_without(groups, [Chunk("a", (2, 0), 0.1)]) == {"a": [1, 3]}
    assert kept_without(groups, []) == {}


def test_a_unit_costs_what_its_slices_cost():
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 1)).eval()
    index = np.arange(4).reshape(4, 1)
    parts = (Part("0.weight", 0, index, "out"), Part("0.bias", 0, index, "along"), Part("2.weight", 1, index, "in"))
    groups = [group("0", 4, parts=parts)]
    inputs = {"input": torch.zeros(1, 3, 6, 6)}
    assert unit_costs(module, groups, inputs, "macs") == {"0": 36 * (27 + 5)}
    assert unit_costs(module, groups, inputs, "parameters") == {"0": 27 + 1 + 5}


def test_costs_are_counted_where_layers_take_views_of_trainable_weights():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.layer = nn.Parameter(torch.ones(1, 4)), nn.Linear(4, 5, bias=False)

        def forward(self, x):
            return self.layer(x) + self.layer(self.token.expand(2, 4))

    parts = (Part("layer.weight", 0, np.arange(5)[:, None], "out"),)
    found = unit_costs(Token(), [group("layer", 5, parts=parts)], {"x": torch.ones(2, 4)}, "macs")
    assert found == {"layer": 2 * 2 * 4}
