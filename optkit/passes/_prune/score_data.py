"""Scores from what a module does with calibration data: how far outputs move, and what flows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from optkit.data.dataset import take
from optkit.errors import PassError
from optkit.passes._prune.units import Group, Part

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from optkit.passes._base import Context

Inputs = Mapping[str, "Tensor"]

SAMPLES = 128
"""Calibration samples looked at, at most."""
PIECE = 8
"""Samples in one gradient: the more gradients, the less chance there is in the scores."""
DRAWS = 2
"""Gradients of each piece, with other signs."""

NOT_READ = "no layer that reads it with weights was seen to run"


def calibration(ctx: Context, samples: int = SAMPLES) -> Iterator[dict[str, Tensor]]:
    """Inputs by name of at most so many calibration samples without padding, ``PIECE`` or fewer at a time.

    A model with a fixed batch gets whole batches.
    """
    from optkit.model.torch_call import to_tensor
    from optkit.passes._quant.unpadded import unpadded

    signature = ctx.original.signature
    axes = signature.batch_axes()
    length = signature.fixed_batch() or PIECE
    for arrays, size in unpadded(ctx.batches("calibration"), signature, samples):
        for start in range(0, size, length):
            some = {name: take(array, axes.get(name), slice(start, start + length)) for name, array in arrays.items()}
            yield {name: to_tensor(name, array, signature.input(name).dtype) for name, array in some.items()}


def parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """All of them by all their names."""
    return dict(module.named_parameters(remove_duplicate=False))


def along(values: Tensor, dim: int) -> Tensor:
    """[size of ``dim``]: the sum over all other dimensions."""
    others = [other for other in range(values.dim()) if other != dim]
    return values.sum(others) if others else values


def by_unit(values: Tensor, part: Part) -> Tensor:
    """[units]: the sum of what belongs to each, of values in the shape of the part's tensor."""
    return _gathered(along(values, part.dim), part)


def _gathered(vector: Tensor, part: Part) -> Tensor:
    import torch

    return vector[torch.from_numpy(part.indices)].sum(1)


def _readers(groups: Sequence[Group], weights: Mapping[str, Tensor]) -> dict[str, list[Part]]:
    """Group name -> the weights that read it."""
    return {
        group.name: [part for part in group.parts if part.role == "in" and part.tensor in weights] for group in groups
    }


def taylor(module: nn.Module, groups: Sequence[Group], data: Iterable[Inputs], seed: int) -> dict[str, Tensor | str]:
    """(Sum of w dy/dw over the weights that read a unit)^2, of all outputs y, added up over the data."""
    import torch

    weights = parameters(module)
    readers = _readers(groups, weights)
    used = {part.tensor: weights[part.tensor] for parts in readers.values() for part in parts}
    totals: dict[str, Tensor] = {}
    for slopes in _slopes(module, used, data, torch.Generator().manual_seed(seed)) if used else ():
        moved = {name: (used[name].detach() * slope).float() for name, slope in slopes.items()}
        for name, parts in readers.items():
            found = [by_unit(moved[part.tensor], part) for part in parts if part.tensor in moved]
            if found:
                totals[name] = totals.get(name, 0) + sum(found[1:], found[0]) ** 2
    return {group.name: totals.get(group.name, NOT_READ) for group in groups}


def _slopes(
    module: nn.Module, weights: Mapping[str, nn.Parameter], data: Iterable[Inputs], signs: Generator
) -> Iterator[dict[str, Tensor]]:
    """Weight name -> gradient of the outputs' sum with random signs, each output relative to its spread.

    The mean of its square is the sum of the squared gradients of all elements, as their products cancel.
    """
    import torch

    from optkit.model.torch_call import call_module

    spread: dict[str, float] = {}
    with _learning(list(weights.values())):
        for inputs in data:
            outputs = {k: v for k, v in call_module(module, inputs).items() if v.is_floating_point()}
            if not any(each.requires_grad for each in outputs.values()):
                raise PassError(
                    "The criterion taylor finds no output that weights move: they are integers, or forward runs without"
                    " gradients.",
                    expected="a float output, and a forward that gradients can pass",
                    fix="criterion: activation or magnitude",
                )
            spread = spread or {name: float(each.detach().std(unbiased=False)) or 1.0 for name, each in outputs.items()}
            for draw in range(DRAWS):
                total = sum(
                    (value * (torch.randint(0, 2, value.shape, generator=signs) * 2 - 1)).sum() / spread[name]
                    for name, value in outputs.items()
                )
                again = draw + 1 < DRAWS
                found = torch.autograd.grad(total, list(weights.values()), retain_graph=again, allow_unused=True)
                yield {name: slope for name, slope in zip(weights, found, strict=True) if slope is not None}


@contextmanager
def _learning(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Gradients are wanted of these, also where they are frozen."""
    import torch

    before = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for weight, wanted in zip(weights, before, strict=True):
            weight.requires_grad_(wanted)


def activation(module: nn.Module, groups: Sequence[Group], data: Iterable[Inputs]) -> dict[str, Tensor | str]:
    """Mean absolute activation where a unit is read, times the norm of the weights that read it."""
    weights = parameters(module)
    readers = _readers(groups, weights)
    layers = dict.fromkeys(_layer(part) for parts in readers.values() for part in parts)
    seen = _mean_inputs(module, list(layers), data)
    flows: dict[str, Tensor | str] = {}
    for name, parts in readers.items():
        norms = [(part, along(weights[part.tensor].detach().float() ** 2, part.dim).sqrt()) for part in parts]
        fits = [(part, norm) for part, norm in norms if len(seen.get(_layer(part), ())) == len(norm)]
        found = [_gathered(seen[_layer(part)] * norm, part) for part, norm in fits]
        flows[name] = sum(found[1:], found[0]) if found else NOT_READ
    return flows


def _layer(part: Part) -> str:
    return part.tensor.rpartition(".")[0]


def _mean_inputs(module: nn.Module, layers: Sequence[str], data: Iterable[Inputs]) -> dict[str, Tensor]:
    """Layer -> mean absolute value of each channel of its first input, added up over the data."""
    import torch

    from optkit.model.torch_call import run_module

    totals: dict[str, Tensor] = {}

    def watch(name: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], torch.Tensor) and args[0].dim() > 1:
            axis = 1 if isinstance(layer, torch.nn.modules.conv._ConvNd) else args[0].dim() - 1
            value = args[0].detach().float().abs()
            totals[name] = along(value, axis) * (value.shape[axis] / value.numel()) + totals.get(name, 0)

    hooks = [module.get_submodule(name).register_forward_pre_hook(partial(watch, name)) for name in layers]
    try:
        with torch.no_grad():
            for inputs in data:
                run_module(module, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return totals
