"""Parameters and multiplications against counts by hand."""

import pytest
import torch
from torch import nn

from optkit.model.model import Model
from optkit.model.signature import Signature, TensorSpec
from optkit.passes._torch_cost import Cost, cost, sample_inputs
from tests.helpers import MemoryData, normal


def test_a_convolution_and_a_linear_layer():
    module = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(3 * 5 * 5, 4))
    found = cost(module, {"input": torch.ones(6, 2, 5, 5)}, samples=6)
    assert found == Cost(parameters=3 * 2 * 9 + 3 + 75 * 4 + 4, macs=3 * 2 * 9 * 25 + 75 * 4)


def test_tied_weights_count_once_and_stay_trainable():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.words.weight

        def forward(self, ids):
            return self.head(self.words(ids) @ self.words.weight[:4, :].T)

    module = Tied()
    assert cost(module, {"ids": torch.ones(1, 3, dtype=torch.int64)}) == Cost(28, 3 * 16 + 3 * 28)
    assert module.head.weight.requires_grad


def test_layers_may_take_views_of_trainable_weights():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.layer = nn.Parameter(torch.ones(1, 4)), nn.Linear(4, 5, bias=False)

        def forward(self, x):
            return self.layer(x) + self.layer(self.token.expand(2, 4))

    assert cost(Token(), {"x": torch.ones(2, 4)}, samples=2) == Cost(4 + 20, 2 * 20)


@pytest.mark.parametrize(("axes", "samples"), [(("batch", 4), 8), ((4, "batch"), 4)])
def test_samples_are_counted_along_their_axis(axes, samples):
    signature = Signature((TensorSpec("x", "float32", axes),))
    model = Model(path=None, form="torch", kind="weights", signature=signature)
    inputs, found = sample_inputs(model, MemoryData("sample", {"x": normal(8, 4)}))
    assert (inputs["x"].shape, found) == ((8, 4), samples)


def test_in_words():
    assert Cost(55_202, 97_500).told(Cost(4_650_000, 1_200)) == (
        "parameters 4.65 M -> 55.2 k, MACs per sample 1.2 k -> 97.5 k"
    )
