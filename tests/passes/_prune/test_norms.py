"""Batch norms after pruning, against statistics by hand."""

import numpy as np
import torch
from torch import nn

from optkit.passes._prune.norms import measure_again
from tests.helpers import normal


def net(scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 16, 4)).eval()
    module[0].weight.data *= scale
    return module


def batches(count: int = 3):
    return [{"input": torch.from_numpy(normal(8, 2, 4, 4, seed=seed))} for seed in range(count)]


def test_statistics_that_do_not_fit_are_measured_anew():
    original, changed = net(), net(3.0)
    flows = [original[0](batch["input"]).detach() for batch in batches()]
    original[1].running_mean.copy_(torch.stack([each.mean((0, 2, 3)) for each in flows]).mean(0))
    original[1].running_var.copy_(torch.stack([each.var((0, 2, 3)) for each in flows]).mean(0))
    told = measure_again(changed, original, batches)
    assert "measured anew" in told
    wide = [3 * each for each in flows]
    np.testing.assert_allclose(
        changed[1].running_mean, torch.stack([w.mean((0, 2, 3)) for w in wide]).mean(0), atol=1e-6
    )
    np.testing.assert_allclose(changed[1].running_var, torch.stack([w.var((0, 2, 3)) for w in wide]).mean(0), rtol=1e-5)
    torch.testing.assert_close(changed(batches()[0]["input"]), original(batches()[0]["input"]), rtol=1e-3, atol=1e-3)
    assert not changed[1].training and changed[1].momentum == original[1].momentum


def test_statistics_stay_where_new_ones_bring_nothing_nearer():
    original, same = net(), net()
    before = {name: value.clone() for name, value in same.state_dict().items()}
    assert measure_again(same, original, batches) == ""
    assert all(torch.equal(value, before[name]) for name, value in same.state_dict().items())
    assert not same.training and same[1].momentum == 0.1


def test_nothing_is_done_without_batch_norms():
    plain = nn.Sequential(nn.Linear(2, 2))
    assert measure_again(plain, plain, list) == ""
