"""How much every unit of a group matters, by four criteria."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from optkit.passes._prune.score_data import Inputs, activation, by_unit, parameters, taylor
from optkit.passes._prune.units import Group, Part

if TYPE_CHECKING:
    from torch import Tensor, nn

Criterion = Literal["taylor", "magnitude", "activation", "bn-scale"]
Scores = NDArray[np.float64]
"""[units]; what matters most is highest."""

FROM_DATA = ("taylor", "activation")
"""Criteria that look at calibration data."""
ABSOLUTE = ("taylor",)
"""Criteria whose scores are in one unit in the whole model; those of others only compare units of one group."""

NO_WEIGHTS = "it has no weights with two or more dimensions"
NO_NORM = "no batch normalization goes with it"
NOT_FINITE = "its scores are not finite"


def scores(
    criterion: Criterion, module: nn.Module, groups: Sequence[Group], data: Iterable[Inputs] = (), seed: int = 0
) -> tuple[dict[str, Scores], list[tuple[str, str]]]:
    """Score every unit of every group by its weights, or by what the module does with ``data``, some samples each.

    taylor: how far the outputs move, squared and to first order, if the unit is left out: (sum of w dy/dw over the
        weights that read it)^2, summed over the outputs y (Molchanov et al. 2019, "Importance Estimation for Neural
        Network Pruning"; of the outputs in the place of a loss, so that no labels are needed and nothing vanishes
        where training has converged).
    magnitude: norm of the unit's slices of all weights that make or read it (Li et al. 2017, "Pruning Filters for
        Efficient ConvNets"; Fang et al. 2023, "DepGraph"), those of each tensor relative to their mean.
    activation: mean absolute activation where the unit is read, times the norm of the weights that read it (Hu et al.
        2016, "Network Trimming"; Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models").
    bn-scale: absolute scale of the batch normalization behind it (Liu et al. 2017, "Learning Efficient Convolutional
        Networks through Network Slimming").

    Returns:
        group name -> scores; and (group name, reason) for every group that the criterion says nothing about.
    """
    by: dict[Criterion, Callable[[], dict[str, Tensor | str]]] = {
        "taylor": partial(taylor, module, groups, data, seed),
        "magnitude": partial(_magnitude, module, groups),
        "activation": partial(activation, module, groups, data),
        "bn-scale": partial(_bn_scale, module, groups),
    }
    found: dict[str, Scores] = {}
    skipped: list[tuple[str, str]] = []
    for name, values in by[criterion]().items():
        if isinstance(values, str):
            skipped.append((name, values))
        elif not values.isfinite().all():
            skipped.append((name, NOT_FINITE))
        else:
            found[name] = values.double().numpy()
    return found, skipped


def _magnitude(module: nn.Module, groups: Sequence[Group]) -> dict[str, Tensor | str]:
    import torch

    weights = parameters(module)

    def norms(group: Group) -> Tensor | str:
        parts = [part for part in group.parts if part.tensor in weights and weights[part.tensor].dim() > 1]
        squares = [by_unit(weights[part.tensor].detach().float() ** 2, part) for part in parts]
        relative = [each / each.mean() for each in squares if each.mean() > 0]
        return torch.stack(relative).mean(0).sqrt() if relative else NO_WEIGHTS

    return {group.name: norms(group) for group in groups}


def _bn_scale(module: nn.Module, groups: Sequence[Group]) -> dict[str, Tensor | str]:
    weights = parameters(module)

    def scale(group: Group) -> Tensor | str:
        found = [by_unit(weights[part.tensor].detach().abs(), part) for part in group.parts if _is_scale(module, part)]
        return sum(found[1:], found[0]) if found else NO_NORM

    return {group.name: scale(group) for group in groups}


def _is_scale(module: nn.Module, part: Part) -> bool:
    from torch.nn.modules.batchnorm import _BatchNorm

    layer, _, name = part.tensor.rpartition(".")
    return name == "weight" and isinstance(module.get_submodule(layer), _BatchNorm)
