"""Attention maps: found, compared, and refused where there are none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from optkit.errors import PassError
from optkit.model.load_torch import load_module
from optkit.passes._train.attention import attention_loss, eager, find_maps, map_of
from tests.passes.test_drop_layers import IDS, MASK, family

INPUTS = {"input_ids": torch.from_numpy(IDS), "attention_mask": torch.from_numpy(MASK)}
LAYERS = ["encoder.layer.0", "encoder.layer.2"]


def test_maps_of_a_bert_are_those_it_gives_as_attentions() -> None:
    module = load_module(family("bert")[0])
    was = module.config._attn_implementation
    with eager(module):
        found = find_maps("teacher", module, INPUTS, LAYERS)
        seen = {}
        for name in found.values():
            part = module.get_submodule(name)
            part.register_forward_hook(lambda _, __, output, name=name: seen.update({name: map_of(output)}))
        told = module(**INPUTS, output_attentions=True).attentions
    for layer, index in zip(LAYERS, (0, 2), strict=True):
        assert found[layer].startswith(f"{layer}.attention")
        torch.testing.assert_close(seen[found[layer]], told[index], rtol=0, atol=0)
    assert module.config._attn_implementation == was


def test_a_model_without_maps_is_refused() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3)))
    with eager(module), pytest.raises(PassError, match="in the student: its layer 1 gives none"):
        find_maps("student", module, {"input": torch.ones(1, 3)}, ["1"])
    with pytest.raises(PassError, match="no layers were found"):
        find_maps("student", module, {"input": torch.ones(1, 3)}, [])


def test_the_divergence_of_two_maps() -> None:
    mine = {"a": torch.tensor([0.5, 0.5]).expand(1, 2, 2, 2)}
    theirs = {"b": torch.tensor([0.75, 0.25]).expand(1, 2, 2, 2)}
    by_hand = 0.75 * torch.tensor(0.75 / 0.5).log() + 0.25 * torch.tensor(0.25 / 0.5).log()
    found = attention_loss({"a": "b"}, mine, theirs, None)
    torch.testing.assert_close(found, by_hand, rtol=1e-5, atol=0)
    assert float(attention_loss({"a": "a"}, mine, mine, None)) == 0


def test_other_numbers_of_heads_are_averaged_and_masked_rows_left_out() -> None:
    one = torch.softmax(torch.rand(1, 2, 3, 3), -1)
    mean = one.mean(1, keepdim=True)
    assert float(attention_loss({"a": "b"}, {"a": one}, {"b": mean}, None)) == pytest.approx(0, abs=1e-6)
    bent = mean.clone()
    bent[0, 0, 2] = torch.tensor([1.0, 0.0, 0.0])
    masked = attention_loss({"a": "b"}, {"a": bent}, {"b": mean}, torch.tensor([[1, 1, 0]]))
    assert float(masked) == pytest.approx(0, abs=1e-6)
    assert float(attention_loss({"a": "b"}, {"a": bent}, {"b": mean}, None)) > 0.1


def test_maps_of_other_sizes_are_refused() -> None:
    with pytest.raises(PassError, match="differ in size"):
        attention_loss({"a": "b"}, {"a": torch.rand(1, 1, 2, 2)}, {"b": torch.rand(1, 1, 3, 3)}, None)
