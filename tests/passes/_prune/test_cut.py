"""Surgery from groups, and the proof that what is left is the same network."""

from __future__ import annotations

from dataclasses import replace
from threading import Lock

import numpy as np
import pytest
import torch
from torch import nn

from optkit.errors import PassError
from optkit.model.surgery import Set, Slice, operate
from optkit.passes._prune.cut import cut, masked, shallow_copy, verify
from optkit.passes._prune.groups import Group, find_groups
from sample_models.models import digits_cnn
from tests.passes._prune.nets import Grouped, Packed, Tied, alive, cut_in_half, halved, image, tokens, vectors

DIGITS = {"image": image(8, 1)["x"]}


def first(module, inputs, name):
    return next(group for group in find_groups(module, inputs).groups if group.name == name)


def test_the_operations_of_one_group():
    module = alive(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)))
    group = first(module, {"input": vectors()["x"]}, "0")
    assert cut(module, [(group, np.array([0, 3]))], {"input": vectors()["x"]}) == [
        Slice(module="0", tensor="weight", dim=0, keep=[0, 3], attrs={"out_features": 2}),
        Slice(module="0", tensor="bias", dim=0, keep=[0, 3]),
        Slice(module="2", tensor="weight", dim=1, keep=[0, 3], attrs={"in_features": 2}),
    ]


def test_attributes_of_layers_follow():
    changed = cut_in_half(alive(digits_cnn()), DIGITS)
    features, classifier = changed.features, changed.classifier
    assert [features[0].out_channels, features[1].num_features, features[3].in_channels] == [8, 8, 8]
    assert [features[3].out_channels, features[4].num_features, classifier[1].in_features] == [16, 16, 256]
    assert [classifier[1].out_features, classifier[4].in_features, classifier[4].out_features] == [48, 48, 10]
    assert changed.features[4].running_var.shape == (16,)


def test_attributes_of_grouped_layers_follow():
    changed = cut_in_half(alive(Grouped()), image())
    grouped = changed.g[0]
    assert [grouped.groups, grouped.in_channels, grouped.out_channels] == [4, 8, 12]
    assert [changed.norm.num_groups, changed.norm.num_channels] == [2, 12]
    assert [changed.up.in_channels, changed.up.out_channels] == [12, 3]


def test_a_tie_stays_and_both_layers_know_their_width():
    module = alive(Tied())
    group = first(module, tokens(), "words, outer")
    operations = cut(module, [(group, np.array([1, 2, 5]))], tokens())
    changed = operate(shallow_copy(module), operations)
    assert changed.head.weight is changed.words.weight
    assert (changed.words.embedding_dim, changed.head.in_features, changed.head.weight.shape) == (3, 3, (97, 3))
    assert sum(isinstance(each, Slice) and each.tensor == "weight" and each.dim == 1 for each in operations) == 2


def test_the_number_of_heads_is_set():
    module = alive(Packed())
    group = first(module, vectors(), "heads")
    operations = cut(module, [(group, np.array([0, 2, 3]))], vectors())
    assert operations[-1] == Set(module="", attrs={"heads": 3})


def test_two_groups_in_one_dimension_are_one_slice():
    module = nn.Sequential(nn.Linear(2, 6), nn.Linear(6, 2))
    parts = find_groups(alive(module), {"input": torch.ones(3, 2)}).groups[0].parts

    def half(at):
        return tuple(replace(part, indices=part.indices[at : at + 3]) for part in parts)

    groups = [Group(name, "features", 3, half(at), False) for name, at in (("a", 0), ("b", 3))]
    operations = cut(module, [(groups[0], np.array([0])), (groups[1], np.array([1, 2]))], {"input": torch.ones(3, 2)})
    assert [each.keep for each in operations] == [[0, 4, 5]] * 3


def test_the_module_stays_whole():
    module = alive(digits_cnn())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    cut_in_half(module, DIGITS)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.features[0].out_channels == 16


def test_everything_gone_is_refused():
    module = alive(digits_cnn())
    group = first(module, DIGITS, "features.0")
    with pytest.raises(PassError, match=r"All 16 units of features\.0 would be cut"):
        cut(module, [(group, np.array([], np.int64))], DIGITS)


def test_verify_finds_a_wrong_unit():
    module = alive(digits_cnn())
    kept = halved(find_groups(module, DIGITS))
    other = [(group, np.setdiff1d(np.arange(group.units), keep)) for group, keep in kept]
    changed = operate(shallow_copy(module), cut(module, other, DIGITS))
    with pytest.raises(PassError, match="output 'logits' differs by"):
        verify(module, changed, kept, DIGITS)


def test_verify_finds_another_shape():
    module = alive(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)))
    inputs = {"input": vectors()["x"]}
    kept = [(first(module, inputs, "0"), np.arange(4))]
    changed = operate(shallow_copy(module), [Slice(module="2", tensor="weight", dim=0, keep=[0])])
    changed[2].bias = None
    with pytest.raises(PassError, match="output 'output_0' has another shape"):
        verify(module, changed, kept, inputs)


def test_a_module_that_cannot_be_copied_is_refused():
    module = nn.Linear(2, 2)
    module.guard = Lock()
    with pytest.raises(PassError, match="The module cannot be copied, which pruning needs: TypeError"):
        shallow_copy(module)


def test_masking_zeroes_only_what_is_read():
    module = alive(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)))
    inputs = {"input": vectors()["x"]}
    zeroed = masked(module, [(first(module, inputs, "0"), np.array([0, 3]))])
    torch.testing.assert_close(zeroed[2].weight[:, [1, 2]], torch.zeros(2, 2))
    torch.testing.assert_close(zeroed[2].weight[:, [0, 3]], module[2].weight[:, [0, 3]])
    assert zeroed[0].weight is module[0].weight


def test_a_group_through_a_norm_is_cut_and_only_its_shapes_are_checked():
    module = alive(Packed())
    group = first(module, vectors(), "first, mix")
    kept = [(group, np.arange(0, 16, 2))]
    changed = operate(shallow_copy(module), cut(module, kept, vectors()))
    verify(module, changed, kept, vectors())
    assert changed.norm.normalized_shape == (8,)
    assert changed.qkv.weight.shape == (48, 8)
