"""Least squares after pruning: where the units that stay tell all of the others, nothing is lost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optkit.model.surgery import operate
from optkit.passes._prune.cut import cut, shallow_copy
from optkit.passes._prune.groups import find_groups
from optkit.passes._prune.norms import output_error
from optkit.passes._prune.refit import take_over
from tests.helpers import normal


class Conv1D(nn.Module):
    """GPT-2's."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, data: Tensor) -> Tensor:
        return data @ self.weight + self.bias


class Doubled(nn.Linear):
    """Not what its matrix says."""

    def forward(self, data: Tensor) -> Tensor:
        return 2 * super().forward(data)


def batches(*shape: int, count: int = 6) -> list[dict[str, Tensor]]:
    return [{"input": torch.from_numpy(normal(8, *shape, seed=seed))} for seed in range(count)]


def repeated(*layers: nn.Module) -> nn.Sequential:
    """The last unit of the first layer is 1 - 2 times its first one."""
    torch.manual_seed(0)
    module = nn.Sequential(*layers).eval()
    with torch.no_grad():
        module[0].weight[-1] = -2 * module[0].weight[0]
        module[0].bias[-1] = 1 - 2 * module[0].bias[0]
    return module


def fitted(module: nn.Module, data: Sequence[dict[str, Tensor]]) -> tuple[nn.Module, float, float, str]:
    """Without the last unit of the first group: the module, its error before and after, and what was told."""
    group = find_groups(module, data[0]).groups[0]
    kept = [(group, np.arange(group.units - 1))]
    changed = operate(shallow_copy(module), cut(module, kept, data[0]))
    before = output_error(changed, module, data)
    told = take_over(module, changed, module, kept, lambda: data, 0)
    return changed, before, output_error(changed, module, data), told


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        (lambda: (nn.Linear(5, 4), nn.Linear(4, 3)), (5,)),
        (lambda: (nn.Linear(5, 4), Conv1D(3, 4)), (7, 5)),
        (lambda: (nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 1, stride=2)), (2, 8, 8)),
        (lambda: (nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3, stride=2)), (2, 8, 8)),
        (lambda: (nn.Conv1d(2, 4, 3), nn.Conv1d(4, 3, 1)), (2, 8)),
        (lambda: (nn.Conv2d(2, 4, 1), nn.Flatten(), nn.Linear(64, 3)), (2, 4, 4)),
    ],
)
def test_what_the_others_tell_is_not_lost(layers, shape):
    whole = repeated(*layers())
    bias = whole[-1].bias.clone()
    changed, before, after, told = fitted(whole, batches(*shape))
    assert before > 0.05 and after < 1e-3 * before
    assert told.startswith("1 layer took over what the pruned units gave, by least squares")
    assert not torch.equal(changed[-1].bias, bias)
    torch.testing.assert_close(whole[-1].bias, bias, rtol=0, atol=0)


def test_the_weights_are_the_known_answer():
    whole = repeated(nn.Linear(5, 4), nn.Linear(4, 3))
    changed, *_ = fitted(whole, batches(5, count=40))
    before = whole[1].weight.detach()
    wanted = before[:, :3].clone()
    wanted[:, 0] -= 2 * before[:, 3]
    torch.testing.assert_close(changed[1].weight.detach(), wanted, rtol=0, atol=0.02)
    torch.testing.assert_close(changed[1].bias.detach(), whole[1].bias + before[:, 3], rtol=0, atol=0.02)


def test_without_a_bias_squares_are_least_about_zero():
    whole = repeated(nn.Linear(5, 4), nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        whole[0].bias[-1] -= 1  # now the last unit is -2 times the first one
    changed, before, after, _ = fitted(whole, batches(5))
    assert after < 1e-3 * before and changed[1].bias is None


def test_what_chance_alone_ties_is_left_alone():
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3)).eval()
    with torch.no_grad():
        whole[0].weight.copy_(torch.eye(64))
    changed, before, after, _ = fitted(whole, batches(64, count=2))
    assert after <= before
    torch.testing.assert_close(changed[1].weight, whole[1].weight[:, :63], rtol=0, atol=0.02)


def test_layers_that_do_something_else_and_too_few_data_change_nothing():
    for layers, data in (
        ((nn.Linear(5, 4), Doubled(4, 3)), batches(5)),
        ((nn.Linear(5, 4), nn.Linear(4, 3)), batches(5, count=1)),
    ):
        whole = repeated(*layers)
        changed, before, after, told = fitted(whole, data)
        assert (told, after) == ("", before)
        assert torch.equal(changed[1].weight, whole[1].weight[:, :3])


class Shared(nn.Module):
    """``b`` reads with its weight twice, ``c`` and ``d`` share a bias, ``e`` gets no rows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(5, 8), *(nn.Linear(8, 6) for _ in range(4)))
        self.c.bias = self.d.bias

    def forward(self, input: Tensor) -> Tensor:
        flow = self.a(input)
        return self.b(flow) @ self.b.weight.sum(1) + (self.c(flow) - self.d(flow) + self.e(flow[:0]).sum()).sum(1)


def test_shared_weights_and_layers_without_rows_are_left_alone():
    torch.manual_seed(0)
    whole, data = Shared().eval(), batches(5)
    group = find_groups(whole, data[0]).groups[0]
    kept = [(group, np.arange(group.units - 1))]
    changed = operate(shallow_copy(whole), cut(whole, kept, data[0]))
    take_over(whole, changed, whole, kept, lambda: data, 0)
    assert changed.c.bias is changed.d.bias


def test_what_brings_nothing_nearer_is_taken_back():
    whole = repeated(nn.Linear(5, 4), nn.Linear(4, 3))
    data = batches(5)
    group = find_groups(whole, data[0]).groups[0]
    kept = [(group, np.arange(3))]
    changed = operate(shallow_copy(whole), cut(whole, kept, data[0]))
    wanted = shallow_copy(changed)
    assert take_over(whole, changed, wanted, kept, lambda: data, 0) == ""
    assert all(torch.equal(one, other) for one, other in zip(changed.parameters(), wanted.parameters(), strict=True))
