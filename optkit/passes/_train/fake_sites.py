"""Which modules the layers of a graph come from: by names and values of their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from optkit.passes._train.losses import call

if TYPE_CHECKING:
    from torch import Tensor, nn

    from optkit.data.dataset import Array
    from optkit.passes._quant.planned import PlannedLayer

CLOSE = 1e-4
"""Largest difference, over the greatest weight, between weights in the graph and a module's that are the same."""


@dataclass(frozen=True)
class Site:
    """A module that one layer of the graph comes from."""

    name: str
    module: nn.Module
    layer: PlannedLayer
    norm: nn.Module | None
    """The batch normalization that is folded into it."""


def find_sites(
    module: nn.Module, inputs: Mapping[str, Tensor], layers: Sequence[PlannedLayer]
) -> tuple[list[Site], list[PlannedLayer]]:
    """The modules of the layers, by names and values of weights, and layers that have none; the module runs once."""
    norms = _norms_behind(module, inputs)
    free = {name: part for name, part in module.named_modules() if _kind(part)}
    sites: list[Site] = []
    lost: list[PlannedLayer] = []
    for layer in layers:
        named = layer.weight.removesuffix(".weight")
        names = sorted(free, key=lambda name, named=named: name != named)  # type: ignore[misc]  # stable otherwise
        found = next(
            ((name, norm) for name in names for norm in (norms.get(name), None) if _same(free[name], norm, layer)), None
        )
        if found is None:
            lost.append(layer)
        else:
            sites.append(Site(found[0], free.pop(found[0]), layer, found[1]))
    return sites, lost


def norm_factor(norm: nn.Module) -> Tensor:
    """gamma / sqrt(variance + epsilon), [channels]."""
    factor: Tensor = (norm.running_var + norm.eps).rsqrt()
    return factor if norm.weight is None else norm.weight * factor


def _kind(part: nn.Module) -> bool:
    from torch import nn

    known = isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d)
    return known or (type(part).__name__ == "Conv1D" and part.weight.dim() == 2)


def channels(part: nn.Module) -> int:
    """The axis of output channels in the module's weight."""
    from torch import nn

    return 1 if isinstance(part, nn.ConvTranspose2d) or type(part).__name__ == "Conv1D" else 0


def inputs_of(part: nn.Module) -> int:
    """Channels of its input."""
    return int(part.weight.shape[1 - channels(part)]) * int(getattr(part, "groups", 1))


def is_norm(part: nn.Module) -> bool:
    """Whether it is a batch normalization."""
    from torch import nn

    return isinstance(part, nn.modules.batchnorm._BatchNorm)


def _norms_behind(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """Name of a module -> the batch normalization that takes its output."""
    import torch

    made: dict[int, tuple[str, Any]] = {}
    found: dict[str, nn.Module] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            made[id(output)] = name, output  # held, so that no other tensor gets its id

        return hook

    def look(part: nn.Module, args: tuple[Any, ...]) -> None:
        if args and id(args[0]) in made and part.running_var is not None:
            found[made[id(args[0])][0]] = part

    named = list(module.named_modules())
    handles = [part.register_forward_hook(keep(name)) for name, part in named if _kind(part)]
    handles += [part.register_forward_pre_hook(look) for _, part in named if is_norm(part)]
    try:
        with torch.no_grad():
            call(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _same(part: nn.Module, norm: nn.Module | None, layer: PlannedLayer) -> bool:
    """Whether the graph's weights are the module's, turned or not, with the normalization folded in."""
    import torch

    with torch.no_grad():
        weight = part.weight
        if norm is not None:
            sizes = [-1 if each == channels(part) else 1 for each in range(weight.dim())]
            weight = weight * norm_factor(norm).view(sizes)
        array = weight.numpy()
    turned = [array, array.T] if array.ndim == 2 else [array]
    return any(_close(each, layer.weights) for each in turned)


def _close(one: Array, other: Array) -> bool:
    if one.shape != other.shape:
        return False
    return all(
        np.abs(np.subtract(one[at], other[at])).max() <= CLOSE * np.abs(other).max() for at in (slice(1), slice(None))
    )
