"""Which layer learns from which, taps, projections, and the distance of hidden states."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from optkit.errors import PassError
from optkit.passes._train.hidden import (
    find_pairs,
    first_tensor,
    hidden_loss,
    key_of,
    projections,
    require_modules,
    tapped,
)
from optkit.passes._train.losses import row_distance


def stack(count: int) -> nn.Module:
    return nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(2, 2) for _ in range(count))})


def ends(mine: int, theirs: int, kept: list[int] | None = None) -> list[int]:
    pairs = find_pairs(stack(mine), stack(theirs), ["layers"], {"layers": kept} if kept else {})
    assert list(pairs) == [f"layers.{index}" for index in range(mine)]
    return [int(name.removeprefix("layers.")) for name in pairs.values()]


def test_layers_are_shared_out_evenly() -> None:
    assert ends(3, 6) == [1, 3, 5]
    assert ends(2, 12) == [5, 11]
    assert ends(1, 4) == [3]
    assert ends(4, 4) == [0, 1, 2, 3]
    assert ends(4, 6) == [1, 2, 4, 5]


def test_a_kept_layer_does_the_work_of_those_dropped_behind_it() -> None:
    assert ends(3, 6, [0, 2, 5]) == [1, 4, 5]
    assert ends(2, 6, [0, 1]) == [0, 5]


def test_lists_that_the_student_lacks_are_left_out() -> None:
    assert find_pairs(nn.Linear(2, 2), stack(4), ["layers"], {}) == {}


def test_the_first_tensor_of_an_output() -> None:
    one = torch.ones(1)
    assert first_tensor(one) is one
    assert first_tensor((None, [one, torch.zeros(1)])) is one
    assert first_tensor({"a": None, "b": one}) is one
    assert first_tensor("text") is None


def test_taps_tell_the_latest_output_and_are_removed() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    with tapped(module, ["0"]) as found:
        module(torch.zeros(1, 2))
        module(torch.ones(1, 2))
        assert torch.equal(found["0"], module[0](torch.ones(1, 2)))
    assert not module[0]._forward_hooks


def test_projections_only_where_widths_differ() -> None:
    mine = {"a.0": torch.rand(2, 5, 4), "b": torch.rand(2, 6, 3, 3)}
    theirs = {"x": torch.rand(2, 5, 4), "y": torch.rand(2, 8, 3, 3)}
    pairs = {"a.0": "x", "b": "y"}
    maps = projections(pairs, mine, theirs)
    assert list(maps) == ["b"]
    assert tuple(maps["b"].weight.shape) == (8, 6)
    assert maps["b"].weight.equal(projections(pairs, mine, theirs)["b"].weight)
    loss = hidden_loss(pairs, maps, mine, theirs, None)
    convolved = nn.functional.conv2d(mine["b"], maps["b"].weight[:, :, None, None])
    rows = [each.permute(0, 2, 3, 1) for each in (convolved, theirs["y"])]
    expected = (row_distance(mine["a.0"], theirs["x"]) + row_distance(*rows)) / 2
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


def test_projections_begin_as_what_fits_best() -> None:
    torch.manual_seed(0)
    state, turn = torch.randn(2, 50, 4), torch.randn(7, 4)
    made = projections({"a": "b"}, {"a": state}, {"b": state @ turn.T})["a"].weight
    torch.testing.assert_close(made, turn, rtol=0, atol=0.02)


def test_masked_tokens_do_not_count() -> None:
    mask = torch.tensor([[1, 1, 0]])
    mine, aim = torch.rand(1, 3, 4), torch.rand(1, 3, 4)
    other = mine.clone()
    other[0, 2] = 100
    both = [hidden_loss({"a": "b"}, nn.ModuleDict(), {"a": each}, {"b": aim}, mask) for each in (mine, other)]
    assert float(both[0]) == float(both[1]) > 0


@pytest.mark.parametrize(("mine", "told"), [(torch.rand(2, 4, 4), r"\[2, 4, 4\]"), (None, "no tensor")])
def test_other_tokens_are_refused(mine: torch.Tensor | None, told: str) -> None:
    given = {} if mine is None else {"a": mine}
    with pytest.raises(PassError, match=told):
        projections({"a": "b"}, given, {"b": torch.rand(2, 5, 4)})


def test_names_are_checked() -> None:
    require_modules({"layers.0": "layers.1"}, stack(1), stack(2))
    with pytest.raises(PassError, match=r"teacher has no module 'layer\.1'") as caught:
        require_modules({"layers.0": "layer.1"}, stack(1), stack(2))
    assert caught.value.fix == "did you mean 'layers.1'?"
    assert key_of("a.0.b") == "a/0/b"
