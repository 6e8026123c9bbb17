"""Structural changes as plain data, replayed on small modules."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from optkit.errors import ModelError
from optkit.model.surgery import Drop, Factorize, Replace, Set, Slice, operate, parse_surgery, plain_surgery

X = torch.linspace(-1, 1, 12).reshape(3, 4)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()


NARROW = [
    Slice(module="0", tensor="weight", dim=0, keep=[0, 3, 5], attrs={"out_features": 3}),
    Slice(module="0", tensor="bias", dim=0, keep=[0, 3, 5]),
    Slice(module="2", tensor="weight", dim=1, keep=[0, 3, 5], attrs={"in_features": 3}),
]


def test_slices_equal_the_network_without_those_units():
    whole, cut = net(), operate(net(), NARROW)
    whole[2].weight.data[:, [1, 2, 4]] = 0
    torch.testing.assert_close(cut(X), whole(X))
    assert [tuple(each.shape) for each in cut.parameters()] == [(3, 4), (3,), (2, 3), (2,)]
    assert (cut[0].out_features, cut[2].in_features) == (3, 3)


def test_a_slice_of_a_tied_weight_keeps_the_tie():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.head.weight = self.words.weight

    cut = operate(Tied(), [Slice(module="words", tensor="weight", dim=1, keep=[1, 2])])
    assert cut.head.weight is cut.words.weight
    assert cut.head.weight.shape == (5, 2)


def test_buffers_are_sliced_and_stay_buffers():
    cut = operate(nn.BatchNorm1d(3), [Slice(module="", tensor="running_mean", dim=0, keep=[2])])
    assert cut.running_mean.shape == (1,)
    assert "running_mean" in dict(cut.named_buffers())


@pytest.mark.parametrize("kind", [nn.ModuleList, nn.Sequential])
def test_drop_moves_the_layers_behind_up(kind):
    layers = kind([nn.Linear(1, 1) for _ in range(4)]) if kind is nn.ModuleList else kind(*map(nn.Flatten, range(1, 5)))
    kept = [layers[0], layers[3]]
    cut = operate(layers, [Drop(module="", keep=[0, 3])])
    assert list(cut) == kept
    assert list(cut._modules) == ["0", "1"]


def test_replace_puts_an_identity_there():
    cut = operate(net(), [Replace(module="1")])
    whole = net()
    torch.testing.assert_close(cut(X), whole[2](whole[0](X)))


def test_the_whole_can_be_replaced():
    whole = nn.Sequential(nn.Linear(4, 4))
    assert operate(whole, [Replace(module="")])(X) is X


@pytest.mark.parametrize(
    ("layer", "data"),
    [
        (nn.Linear(4, 6), X),
        (nn.Conv2d(2, 6, 3, stride=2, padding=1), torch.ones(1, 2, 5, 5)),
        (nn.Conv1d(2, 6, 3, bias=False), torch.ones(1, 2, 5)),
    ],
)
def test_factors_of_full_rank_give_the_same(layer, data):
    factors = operate(nn.Sequential(layer), [Factorize(module="0", rank=6)])
    narrow, wide = factors[0]
    narrow.weight.data = layer.weight.data.clone()
    wide.weight.data = torch.eye(6).reshape(wide.weight.shape).contiguous()
    if layer.bias is not None:
        wide.bias.data = layer.bias.data.clone()
    torch.testing.assert_close(factors(data), layer(data))
    assert narrow.bias is None
    assert (wide.bias is None) == (layer.bias is None)


def test_factors_of_a_transformers_conv1d():
    from transformers.pytorch_utils import Conv1D

    factors = operate(nn.Sequential(Conv1D(6, 4)), [Factorize(module="0", rank=2)])
    assert [tuple(each.weight.shape) for each in factors[0]] == [(2, 4), (6, 2)]


def test_attributes_are_set_by_path_and_tuples_stay_tuples():
    layer = nn.Sequential(nn.LayerNorm(4))
    operate(layer, [Set(module="", attrs={"0.normalized_shape": [3]})])
    assert layer[0].normalized_shape == (3,)


@pytest.mark.parametrize(
    ("operation", "text"),
    [
        (Slice(module="7", tensor="weight", dim=0, keep=[0]), "there is no module '7'"),
        (Slice(module="0", tensor="weights", dim=0, keep=[0]), "no tensor 'weights'"),
        (Slice(module="0", tensor="weight", dim=2, keep=[0]), "no tensor 'weight' with 3 dimensions"),
        (Slice(module="0", tensor="weight", dim=0, keep=[6]), "too small"),
        (Drop(module="0", keep=[0]), "a Linear, which is no list of layers"),
        (Drop(module="", keep=[3]), "only 3 layers"),
        (Factorize(module="1", rank=1), "a ReLU without a weight"),
        (Set(module="0", attrs={"heads": 2}), "no attribute 'heads'"),
        (Set(module="0", attrs={"__class__": 2}), "no attribute '__class__'"),
        (Set(module="0", attrs={"_parameters.weight": 2}), "no attribute '_parameters.weight'"),
        (Set(module="0", attrs={"forward.__globals__.x": 2}), "no attribute"),
    ],
)
def test_what_does_not_fit_is_refused(operation, text):
    with pytest.raises(ModelError, match=text):
        operate(net(), [operation])


def test_a_bias_free_layer_has_no_bias_to_slice():
    with pytest.raises(ModelError, match="no tensor 'bias'"):
        operate(nn.Linear(2, 2, bias=False), [Slice(module="", tensor="bias", dim=0, keep=[0])])


def test_plain_data_and_back():
    operations = [
        *NARROW,
        Drop(module="a", keep=[]),
        Replace(module="b"),
        Factorize(module="c", rank=3),
        Set(module=""),
    ]
    assert parse_surgery(plain_surgery(operations)) == operations
    assert plain_surgery([Set(module="x", attrs={"n": 2})]) == [{"op": "set", "module": "x", "attrs": {"n": 2}}]


@pytest.mark.parametrize(
    "plain",
    [[{"op": "exec", "module": ""}], [{"op": "slice", "module": ""}], {"op": "drop"}, [{"op": "drop", "keep": "all"}]],
)
def test_what_is_no_surgery_is_refused(plain):
    with pytest.raises(ModelError, match="cannot be read"):
        parse_surgery(plain)


def test_layers_of_a_named_sequential_keep_their_names():
    layers = nn.Sequential(OrderedDict((f"layer_{index}", nn.Linear(4, 4)) for index in range(3)))
    cut = operate(layers, [Drop(module="", keep=[0, 2])])
    assert list(cut._modules) == ["layer_0", "layer_2"]


def test_factors_of_a_class_with_another_constructor():
    class Same(nn.Conv2d):
        def __init__(self):
            super().__init__(2, 4, 3, padding=1)

    cut = operate(nn.Sequential(Same()), [Factorize(module="0", rank=2)])
    assert cut(torch.ones(1, 2, 5, 5)).shape == (1, 4, 5, 5)


def test_a_computed_tensor_is_not_sliced():
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)))
    with pytest.raises(ModelError, match=r"'0\.weight' is computed"):
        operate(module, [Slice(module="0", tensor="weight", dim=0, keep=[1])])


@pytest.mark.parametrize("rank", [7, 10**15])
def test_factors_are_no_larger_than_the_layer(rank):
    with pytest.raises(ModelError, match=f"'0' is too small for a rank of {rank}"):
        operate(net(), [Factorize(module="0", rank=rank)])
