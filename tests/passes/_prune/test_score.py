"""Scores of units against known answers, and against units that are planted as useless."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optkit.errors import PassError
from optkit.model.signature import Signature, TensorSpec
from optkit.passes._prune.score import FROM_DATA, NO_NORM, NO_WEIGHTS, NOT_FINITE, scores
from optkit.passes._prune.score_data import DRAWS, NOT_READ, calibration
from optkit.passes._prune.units import Group, Part
from tests.helpers import MemoryData, normal

USELESS = (1, 4, 9)


def indices(units: int, width: int = 1) -> np.ndarray:
    return np.arange(units * width).reshape(units, width)


def two_layers() -> tuple[nn.Module, Group]:
    """x[n, 3] -> 5 features -> y[n, 1]."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)).eval()
    parts = (
        Part("0.weight", 0, indices(5), "out"),
        Part("0.bias", 0, indices(5), "along"),
        Part("2.weight", 1, indices(5), "in"),
    )
    return module, Group("0", "features", 5, parts, through_norm=False)


def hidden(module: nn.Module, data: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return module[:2](torch.cat(data))  # type: ignore[index]


def conv_net() -> tuple[nn.Module, Group]:
    """Convolution, batch norm, convolution whose 2 x 2 pixels a linear layer reads: 12 channels in the middle."""
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(2, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 4, 3)
    ).eval()
    with torch.no_grad():
        module[1].weight.uniform_(0.5, 1.5)
        module[1].running_mean.normal_(0, 0.1)
    along = [Part(f"1.{name}", 0, indices(12), "along") for name in ("weight", "bias", "running_mean", "running_var")]
    parts = (Part("0.weight", 0, indices(12), "out"), *along, Part("4.weight", 1, indices(12, 4), "in"))
    return module, Group("0", "channels", 12, parts, through_norm=False)


def plant(module: nn.Module, criterion: str) -> None:
    """Make the channels ``USELESS`` so, as the criterion is able to see it."""
    with torch.no_grad():
        for unit in USELESS:
            if criterion in ("taylor", "activation", "magnitude"):
                module[4].weight[:, 4 * unit : 4 * unit + 4] *= 1e-3  # type: ignore[index]
            if criterion in ("magnitude", "bn-scale"):
                module[0].weight[unit] *= 1e-3  # type: ignore[index]
                module[1].weight[unit] *= 1e-3  # type: ignore[index]


def images(count: int = 6) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [{"input": torch.randn(4, 2, 2, 2, generator=generator)} for _ in range(count)]


@pytest.mark.parametrize("criterion", ["taylor", "magnitude", "activation", "bn-scale"])
def test_planted_useless_channels_are_last(criterion):
    module, group = conv_net()
    plain, _ = scores(criterion, module, [group], images())
    assert set(np.argsort(plain["0"])[:3]) != set(USELESS)
    plant(module, criterion)
    found, skipped = scores(criterion, module, [group], images())
    assert skipped == []
    assert found["0"].shape == (12,) and found["0"].dtype == np.float64
    assert set(np.argsort(found["0"])[:3]) == set(USELESS)
    assert np.sort(found["0"])[3] > 100 * np.sort(found["0"])[2]


def test_taylor_is_the_squared_move_of_the_output():
    module, group = two_layers()
    data = [torch.randn(1, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(7)]
    moves = (hidden(module, data) * module[2].weight.detach()) ** 2  # [n, 5]: what y loses without each unit
    found, _ = scores("taylor", module, [group], [{"input": each} for each in data])
    np.testing.assert_allclose(found["0"], DRAWS * moves.sum(0), rtol=1e-4)


def test_taylor_over_many_outputs_comes_near_the_sum_of_their_squared_moves():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 6)).eval()
    group = two_layers()[1]
    data = [torch.randn(1, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(200)]
    moves = torch.einsum("nu,ku->nku", hidden(module, data), module[2].weight.detach()) ** 2
    found, _ = scores("taylor", module, [group], [{"input": each} for each in data])
    want = moves.sum((0, 1)).numpy()
    np.testing.assert_allclose(found["0"] / found["0"].sum(), want / want.sum(), atol=0.05)


def test_taylor_reads_frozen_weights_and_leaves_them_frozen():
    module, group = two_layers()
    module.requires_grad_(False)
    found, _ = scores("taylor", module, [group], [{"input": torch.ones(3, 3)}])
    assert found["0"].sum() > 0
    assert not any(each.requires_grad or each.grad is not None for each in module.parameters())


def test_taylor_is_the_same_for_the_same_seed():
    module, group = conv_net()
    one, again, other = (scores("taylor", module, [group], images(), seed)[0]["0"] for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_activation_is_the_mean_input_times_the_norm_of_the_reading_weights():
    module, group = two_layers()
    data = [torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    want = hidden(module, data).abs().mean(0) * module[2].weight.detach().abs()[0] * 3
    found, _ = scores("activation", module, [group], [{"input": each} for each in data])
    np.testing.assert_allclose(found["0"], want, rtol=1e-5)
    assert not module[2]._forward_pre_hooks


def test_magnitude_weighs_every_tensor_alike():
    module, group = two_layers()
    with torch.no_grad():
        module[2].weight *= 1000  # of no account: only the differences within a tensor count
    parts = [(module[0].weight.detach() ** 2).sum(1), module[2].weight.detach()[0] ** 2]
    want = sum(each / each.mean() for each in parts) / 2
    found, _ = scores("magnitude", module, [group])
    np.testing.assert_allclose(found["0"] ** 2, want, rtol=1e-5)


def test_bn_scale_is_the_absolute_scale():
    module, group = conv_net()
    with torch.no_grad():
        module[1].weight[2] = -7.0
    found, _ = scores("bn-scale", module, [group])
    np.testing.assert_array_equal(found["0"], module[1].weight.detach().abs().double())


def test_what_a_criterion_says_nothing_about_is_told():
    module, group = two_layers()
    alone = Group("alone", "features", 5, (Part("0.bias", 0, indices(5), "along"),), through_norm=False)
    data = [{"input": torch.ones(2, 3)}]
    reasons = {"taylor": NOT_READ, "magnitude": NO_WEIGHTS, "activation": NOT_READ, "bn-scale": NO_NORM}
    for criterion, reason in reasons.items():
        found, skipped = scores(criterion, module, [alone], data if criterion in FROM_DATA else ())
        assert (found, skipped) == ({}, [("alone", reason)])
    with torch.no_grad():
        module[2].weight[0, 0] = float("nan")
    assert scores("taylor", module, [group], data) == ({}, [("0", NOT_FINITE)])


@pytest.mark.parametrize("last", ["argmax", "detach"])
def test_taylor_needs_outputs_that_weights_move(last: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = two_layers()[0]

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return y.argmax(-1) if last == "argmax" else y.detach()

    group = two_layers()[1]
    parts = tuple(replace(part, tensor=f"inner.{part.tensor}") for part in group.parts)
    with pytest.raises(PassError, match="taylor finds no output that weights move"):
        scores("taylor", Net(), [replace(group, parts=parts)], [{"x": torch.ones(2, 3)}])


def test_a_fixed_batch_comes_whole() -> None:
    signature = Signature((TensorSpec("x", "float32", (3, 2)),))
    data = MemoryData("calibration", {"x": normal(9, 2)}, batch=3)
    ctx: Any = SimpleNamespace(original=SimpleNamespace(signature=signature), batches=lambda split: data)
    assert [tuple(each["x"].shape) for each in calibration(ctx)] == [(3, 2)] * 3
