"""One operator at a time between two linear layers: which units are left, and that half of them can go."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from optkit.passes._prune.groups import find_groups
from tests.passes._prune.nets import Around, alive, cut_in_half, vectors

FREE = {
    "relu": (torch.relu, 12, 12, 12),
    "hardswish": (functional.hardswish, 12, 12, 12),
    "clone": (torch.clone, 12, 12, 12),
    "in place": (lambda x: x.clone().add_(1).mul_(2), 12, 12, 12),
    "scalars": (lambda x: 1 - x * 2, 12, 12, 12),
    "broadcast": (lambda x: x * x.new_ones(1, 7, 1), 12, 12, 12),
    "where": (lambda x: torch.where(x > 0, x, x * 0.1), 12, 12, 12),
    "transposed": (lambda x: x.transpose(1, 2).mT, 12, 12, 12),
    "permuted": (lambda x: x.permute(2, 0, 1).movedim(0, -1), 12, 12, 12),
    "squeezed": (lambda x: x.unsqueeze(1).squeeze(1), 12, 12, 12),
    "flattened rows": (lambda x: x.flatten(0, 1).view(3, 7, -1), 12, 12, 12),
    "flattened positions": (lambda x: x.transpose(1, 2).flatten(1), 12, 84, 12),
    "gated halves": (lambda x: x.chunk(2, -1)[0] * x.chunk(2, -1)[1], 12, 6, 6),
    "gated linear unit": (functional.glu, 12, 6, 6),
    "equal thirds": (lambda x: sum(x.chunk(3, -1)), 12, 4, 4),
    "concatenated": (lambda x: torch.cat([x, x.relu()], -1), 12, 24, 12),
    "stacked": (lambda x: torch.stack([x, -x]).sum(0), 12, 12, 12),
    "repeated": (lambda x: x.repeat(1, 1, 2), 12, 24, 12),
    "interleaved": (lambda x: x.repeat_interleave(2, -1), 12, 24, 12),
    "expanded": (lambda x: x.unsqueeze(1).expand(-1, 2, -1, -1).mean(1), 12, 12, 12),
    "first position": (lambda x: x[:, 0], 12, 12, 12),
    "some positions": (lambda x: x[:, 1:5:2], 12, 12, 12),
    "picked positions": (lambda x: x[torch.arange(3), torch.tensor([6, 0, 2])], 12, 12, 12),
    "turned positions": (lambda x: x.flip(1).roll(2, 1), 12, 12, 12),
    "padded positions": (lambda x: functional.pad(x, (0, 0, 1, 1)), 12, 12, 12),
    "softmax over positions": (lambda x: x.softmax(1), 12, 12, 12),
    "mean over positions": (lambda x: x.mean(1), 12, 12, 12),
    "greatest over positions": (lambda x: x.amax(1), 12, 12, 12),
    "pooled positions": (lambda x: functional.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2), 12, 12, 12),
    "resized positions": (lambda x: functional.interpolate(x.mT, scale_factor=2).mT, 12, 12, 12),
    "blocks of three": (lambda x: x.unflatten(-1, (-1, 3)).cumsum(-1).flatten(-2), 12, 12, 4),
}
PINNED = {
    "softmax": (lambda x: x.softmax(-1), 12, "softmax goes along it"),
    "greatest": (lambda x: x.amax(-1, keepdim=True) + x, 12, "amax goes over it"),
    "cumulated": (lambda x: x.cumsum(-1), 12, "cumsum goes along it"),
    "one index": (lambda x: x + x[..., :1] + x[..., 2].unsqueeze(-1), 12, "one index of it is taken"),
    "padded": (lambda x: functional.pad(x, (0, 1)), 13, "it is padded"),
    "mixed with rows": (lambda x: x.reshape(7, 3, 12), 12, "reshape mixes it with its neighbours"),
    "multiplied": (lambda x: x @ x.mT, 7, "two activations are multiplied along it"),
    "weighted": (lambda x: torch.bmm(torch.ones(3, 2, 7), x), 12, "activations are multiplied with each other"),
    "three factors": (
        lambda x: torch.einsum("bpi,bpi,bpi->bpi", x, x, x),
        12,
        "it goes into einsum, which has no rule",
    ),
    "blocks": (lambda x: x.unflatten(-1, (4, 3)).cumsum(-1).flatten(-2), 12, "without one of its units, RuntimeError"),
    "constant": (lambda x: x + torch.arange(12.0), 12, "it meets a dimension that stays as it is"),
    "triangle": (lambda x: torch.cdist(x, x), 7, "it goes into cdist, which has no rule"),
    "halves": (lambda x: torch.cat([x[..., :5].relu(), x[..., 5:]], -1), 12, "without one of its units, output"),
}


def only(between, width, read):
    torch.manual_seed(0)
    return alive(Around(between, width, read)), vectors()


@pytest.mark.parametrize("name", FREE)
def test_units_pass(name):
    between, width, read, units = FREE[name]
    module, inputs = only(between, width, read)
    groups = find_groups(module, inputs).groups
    assert [group.units for group in groups] == [units]
    assert [part.indices.shape for part in groups[0].parts if part.tensor == "a.weight"] == [(units, width // units)]
    cut_in_half(module, inputs)


@pytest.mark.parametrize("name", PINNED)
def test_units_stay_with_a_reason(name):
    between, read, reason = PINNED[name]
    found = find_groups(*only(between, 12, read))
    assert found.groups == ()
    assert dict(found.skipped)["a"].startswith(reason)


def test_a_mean_over_the_units_is_a_norm():
    def unit(x):
        return x / x.pow(2).mean(-1, keepdim=True).sqrt()

    (group,) = find_groups(*only(unit, 12, 12)).groups
    assert (group.units, group.through_norm) == (12, True)
