"""Batch norms of a pruned module: what flows into them is not what it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from optkit.model.torch_call import call_module, run_module
from optkit.passes._train.keeper import batch_norms

if TYPE_CHECKING:
    from torch import Tensor, nn

Inputs = Mapping[str, "Tensor"]


def measure_again(module: nn.Module, original: nn.Module, data: Callable[[], Iterable[Inputs]]) -> str:
    """Take mean and variance of every batch norm from ``data``, where that brings the outputs nearer to the original's.

    Source: Li et al. 2020, "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning" (adaptive batch
    normalization).

    Args:
        module: live, in eval mode; changed in place.
        original: live, what its outputs should be.
        data: batches of calibration samples, inputs by name, again at each call.

    Returns:
        a sentence; empty where nothing was changed.
    """
    norms = [each for each in batch_norms(module) if each.running_mean is not None]
    if not norms:
        return ""
    before = output_error(module, original, data())
    kept = [(each, {name: value.clone() for name, value in each.named_buffers()}, each.momentum) for each in norms]
    _collect(module, norms, data())
    for each, _, momentum in kept:
        each.momentum = momentum
        each.eval()
    after = output_error(module, original, data())
    if after < before:
        return f"batch norms measured anew on calibration data: error of the outputs {before:.3g} -> {after:.3g}"
    for each, buffers, _ in kept:
        each.load_state_dict({**each.state_dict(), **buffers})
    return ""


def _collect(module: nn.Module, norms: list[nn.Module], data: Iterable[Inputs]) -> None:
    """Plain averages over all batches of more than one sample."""
    import torch

    for each in norms:
        each.reset_running_stats()
        each.momentum = None
        each.train()
    with torch.no_grad():
        for inputs in data:
            if all(value.shape[0] > 1 for value in inputs.values() if value.ndim):
                run_module(module, inputs)


def output_error(module: nn.Module, original: nn.Module, data: Iterable[Inputs]) -> float:
    """Squared error of all float outputs over their own square, on all samples."""
    import torch

    error = size = 0.0
    with torch.no_grad():
        for inputs in data:
            wanted, found = call_module(original, inputs), call_module(module, inputs)
            for name, value in wanted.items():
                if value.is_floating_point():
                    error += float((found[name] - value).double().square().sum())
                    size += float(value.double().square().sum())
    return error / max(size, 1e-30)
