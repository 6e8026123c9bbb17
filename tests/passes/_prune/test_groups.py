"""Groups of small networks, exactly; and that half of all units can go without any other number changing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from optkit.errors import PassError
from optkit.passes._prune.groups import find_groups
from sample_models.models import digits_cnn, reviews_transformer
from tests.passes._prune.nets import (
    Dense,
    Grouped,
    Inverted,
    Letters,
    Multihead,
    Packed,
    Recurrent,
    Residual,
    Tied,
    Twice,
    alive,
    cut_in_half,
    drawn,
    image,
    tokens,
    vectors,
)

DIGITS = {"image": image(8, 1)["x"]}


def reviews():
    ids = tokens()["input_ids"]
    return {"input_ids": ids, "attention_mask": (torch.arange(7) < torch.tensor([[7], [5], [3]])).long()}


def listed(found):
    return {group.name: (group.kind, group.units, group.through_norm) for group in found.groups}


def test_digits_cnn_channels_own_the_pixels_that_the_linear_layer_reads():
    found = find_groups(alive(digits_cnn()), DIGITS)
    assert listed(found) == {
        "features.0": ("channels", 16, False),
        "features.3": ("channels", 32, False),
        "classifier.1": ("features", 96, False),
    }
    assert found.skipped == (("classifier.4", "it reaches an output of the model"),)
    second = found.groups[1]
    assert drawn(second) == {
        "features.3.weight.0": (1, "out"),
        "features.3.bias.0": (1, "along"),
        "features.4.weight.0": (1, "along"),
        "features.4.bias.0": (1, "along"),
        "features.4.running_mean.0": (1, "along"),
        "features.4.running_var.0": (1, "along"),
        "classifier.1.weight.1": (16, "in"),
    }
    pixels = next(part for part in second.parts if part.role == "in")
    assert pixels.indices.tolist() == [list(range(16 * unit, 16 * unit + 16)) for unit in range(32)]
    assert pixels.size == 512


def test_layers_that_a_residual_adds_are_one_group():
    found = find_groups(alive(Residual()), image())
    assert listed(found) == {"stem.0, b.0": ("channels", 8, False), "a.0": ("channels", 12, False)}
    roles = drawn(found.groups[0])
    assert {name for name, (_, role) in roles.items() if role == "out"} == {"stem.0.weight.0", "b.0.weight.0"}
    assert {name for name, (_, role) in roles.items() if role == "in"} == {"a.0.weight.1", "fc.weight.1"}


def test_depthwise_convolution_goes_along():
    found = find_groups(alive(Inverted()), image())
    assert listed(found) == {
        "stem.0, project": ("channels", 8, False),
        "expand.0, excite": ("channels", 16, False),
        "squeeze": ("channels", 4, False),
    }
    wide = drawn(found.groups[1])
    assert wide["depth.0.weight.0"] == (1, "along")
    assert wide["project.weight.1"] == wide["squeeze.weight.1"] == (1, "in")
    assert "depth.0.weight.1" not in wide


def test_concatenated_layers_are_groups_of_their_own():
    found = find_groups(alive(Dense()), image())
    assert listed(found) == {
        "a": ("channels", 4, False),
        "b": ("channels", 6, False),
        "c": ("channels", 5, False),
    }
    read = {part.tensor: part.indices for part in found.groups[1].parts}
    assert read["c.weight"].ravel().tolist() == [4, 5, 6, 7, 8, 9]
    assert read["norm.running_var"].ravel().tolist() == [4, 5, 6, 7, 8, 9]
    assert read["fc.weight"].shape == (6, 16)
    assert read["fc.weight"][0, 0] == 4 * 16


def test_groups_of_a_grouped_convolution_go_as_a_whole():
    found = find_groups(alive(Grouped()), image())
    assert listed(found) == {"a.0": ("channels", 3, False), "up": ("channels", 6, False)}
    assert drawn(found.groups[0]) == {
        "a.0.weight.0": (4, "out"),
        **{f"a.1.{name}.0": (4, "along") for name in ("weight", "bias", "running_mean", "running_var")},
        "g.0.weight.0": (6, "along"),
        **{f"g.1.{name}.0": (6, "along") for name in ("weight", "bias", "running_mean", "running_var")},
        "norm.weight.0": (6, "along"),
        "norm.bias.0": (6, "along"),
        "up.weight.0": (6, "in"),
    }


def test_a_layer_called_twice_reads_what_it_makes():
    found = find_groups(alive(Twice()), vectors())
    assert listed(found) == {"first, shared": ("features", 8, False)}
    assert drawn(found.groups[0])["shared.weight.0"] == (1, "out")
    assert drawn(found.groups[0])["shared.weight.1"] == (1, "in")


def test_tied_weights_are_one_part_with_both_names():
    found = find_groups(alive(Tied()), tokens())
    assert listed(found) == {"words, outer": ("features", 8, False), "inner": ("features", 6, False)}
    tied = [part for part in found.groups[0].parts if "words.weight" in part.names]
    assert [(part.names, part.dim, part.role) for part in tied] == [(("words.weight", "head.weight"), 1, "in")]


def test_packed_heads_with_a_head_size_like_their_number():
    found = find_groups(alive(Packed()), vectors())
    assert listed(found) == {"first, mix": ("features", 16, True), "heads": ("heads", 4, False)}
    heads = found.groups[1]
    assert drawn(heads) == {"qkv.weight.0": (12, "out"), "qkv.bias.0": (12, "along"), "mix.weight.1": (4, "in")}
    assert heads.parts[0].indices[1].tolist() == [4, 5, 6, 7, 20, 21, 22, 23, 36, 37, 38, 39]
    assert [(count.attribute, count.value, count.per_unit) for count in heads.counts] == [("heads", 4, 1)]


def test_heads_by_einsum():
    found = find_groups(alive(Letters()), vectors())
    assert listed(found) == {"heads": ("heads", 4, False)}
    assert drawn(found.groups[0]) == {
        **{f"{name}.weight.0": (3, "out") for name in ("query", "key", "value")},
        **{f"{name}.bias.0": (3, "along") for name in ("query", "key", "value")},
        "last.0": (1, "in"),
    }


def test_reviews_transformer():
    found = find_groups(alive(reviews_transformer()), reviews())
    assert listed(found) == {
        "words": ("features", 32, False),
        "widen and 5 more": ("features", 64, True),
        "layers.0.attention heads": ("heads", 4, False),
        "layers.0.inner": ("features", 128, False),
        "layers.1.attention heads": ("heads", 4, False),
        "layers.1.inner": ("features", 128, False),
    }
    assert found.skipped == (("classifier", "it reaches an output of the model"),)
    counts = [(each.module, each.attribute, each.per_unit) for each in found.groups[2].counts]
    assert counts == [("layers.0.attention", "heads", 1)]


def test_layers_around_what_cannot_change_are_skipped_with_the_reason():
    found = find_groups(alive(Multihead()), vectors())
    assert listed(found) == {"inner": ("features", 16, False)}
    fixed = "nn.MultiheadAttention checks its own width"
    assert dict(found.skipped) == {
        "first": fixed,
        "attention": fixed,
        "attention.out_proj": fixed,
        "last": "it reaches an output of the model",
    }


def test_an_operator_without_a_rule_pins_what_goes_in_and_is_named():
    found = find_groups(alive(Recurrent()), vectors())
    assert listed(found) == {"inner": ("features", 10, False)}
    assert ("first", "it goes into lstm, which has no rule") in found.skipped


NETS = {
    "digits": (digits_cnn, DIGITS),
    "reviews": (reviews_transformer, reviews()),
    "residual": (Residual, image()),
    "inverted": (Inverted, image()),
    "dense": (Dense, image()),
    "grouped": (Grouped, image()),
    "twice": (Twice, vectors()),
    "tied": (Tied, tokens()),
    "packed": (Packed, vectors()),
    "letters": (Letters, vectors()),
    "multihead": (Multihead, vectors()),
    "encoder": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 12, batch_first=True), 2), None),
}


@pytest.mark.parametrize("name", NETS)
def test_half_of_all_units_can_go_twice(name):
    build, inputs = NETS[name]
    module = alive(build())
    inputs = inputs or {"src": vectors(6)["x"]}
    changed = cut_in_half(module, inputs)
    again = cut_in_half(changed, inputs)
    sizes = [sum(weight.numel() for weight in each.parameters()) for each in (module, changed, again)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_sizes_that_coincide_are_not_taken_for_each_other():
    module = alive(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)))
    found = find_groups(module, {"input": torch.ones(3, 3, 3)})
    assert {group.name: list(drawn(group)) for group in found.groups} == {
        "0": ["0.weight.0", "0.bias.0", "2.weight.1"],
        "2": ["2.weight.0", "2.bias.0", "4.weight.1"],
    }


def test_a_forward_that_cannot_be_exported_is_refused():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 2)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else x

    with pytest.raises(PassError, match=r"torch\.export fails on it"):
        find_groups(Branches(), vectors())


def test_the_module_stays_as_it_is():
    module = alive(digits_cnn()).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    find_groups(module, DIGITS)
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
