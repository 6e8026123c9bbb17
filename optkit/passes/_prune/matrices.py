"""Layers of a torch module that are a matrix, which two of a lower rank can stand for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optkit.model.torch_call import run_module
from optkit.passes._quant.select import EXCLUDED, excluded

if TYPE_CHECKING:
    from torch import Tensor, nn

Inputs = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class Layer:
    """A Linear, transformers' Conv1D or an ungrouped convolution as a matrix [outputs, inputs]."""

    name: str
    inputs: int
    outputs: int
    positions: float
    """Of its output for each sample: multiply-accumulates of one weight."""


def find_layers(
    module: nn.Module, exclude: Sequence[str], inputs: Inputs, samples: int
) -> tuple[list[Layer], list[tuple[str, str]], list[str]]:
    """What can be factorized, what cannot and why, and the names of all that was looked at. The module runs twice."""
    named = {name: part for name, part in module.named_modules() if is_layer(part)}
    reasons = {name: _refusal(module, part) for name, part in named.items()}
    reasons |= {name: EXCLUDED for name in named if excluded(name, exclude)}
    touched = _touched(module, [name for name, reason in reasons.items() if not reason], inputs)
    reasons |= {name: f"'{what}' of it is read from outside, not its output alone" for name, what in touched.items()}
    counts: dict[str, int] = {}
    fit = [name for name, reason in reasons.items() if not reason]
    with _watched(module, fit, counts):
        run(module, inputs)
    reasons |= {name: "it is not called on the data" for name in fit if name not in counts}
    layers = [Layer(name, *_sizes(named[name]), count / samples) for name, count in counts.items()]
    return layers, [(name, reason) for name, reason in reasons.items() if reason], list(named)


def is_layer(part: nn.Module) -> bool:
    """Whether it is a linear layer, a convolution, or GPT-2's Conv1D."""
    from torch import nn

    return isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) or is_conv1d(part)


def is_conv1d(part: nn.Module) -> bool:
    """Whether it is GPT-2's linear layer, whose weight is [inputs, outputs]."""
    weight = getattr(part, "weight", None)
    return type(part).__name__ == "Conv1D" and weight is not None and weight.dim() == 2


def _refusal(module: nn.Module, part: nn.Module) -> str:
    if part._parameters.get("weight") is None:
        return "its weight is computed, as by a parametrization"
    if not _is_plain(part):
        return f"its class {type(part).__name__} or its hooks compute something of their own"
    if getattr(part, "groups", 1) != 1:
        return f"a convolution of {part.groups} groups"
    names = [name for name, each in module.named_modules(remove_duplicate=False) if each is part]
    if len(names) > 1:
        return f"the same layer stands in {len(names)} places"
    others = [name for name, value in module.named_parameters(remove_duplicate=False) if value is part.weight]
    others = [name for name in others if name != f"{names[0]}.weight".lstrip(".")]
    return f"its weight is also '{others[0]}'" if others else ""


def _is_plain(part: nn.Module) -> bool:
    """Whether its output is that of torch's layer alone, which its factors give too."""
    from torch import nn

    kind = next((each for each in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(part, each)), type(part))
    own = [
        name for name in ("forward", "_conv_forward", "__call__") if _of(part, name) is not getattr(kind, name, None)
    ]
    return not own and not part._forward_hooks and not part._forward_pre_hooks


def _of(part: nn.Module, name: str) -> Any:
    return vars(part).get(name, getattr(type(part), name, None))


def matrix(layer: nn.Module) -> Tensor:
    """Its weight as float64[outputs, inputs]."""
    weight = layer.weight.detach().double()
    return weight.T if is_conv1d(layer) else weight.reshape(len(weight), -1)


def _sizes(layer: nn.Module) -> tuple[int, int]:
    outputs, inputs = matrix(layer).shape
    return inputs, outputs


def rows_of(layer: nn.Module, output: Tensor) -> Tensor:
    """The output of a layer as [positions, outputs]."""
    from torch import nn

    if isinstance(layer, nn.Linear) or is_conv1d(layer):
        return output.detach().reshape(-1, output.shape[-1])
    channel = output.dim() - (layer.weight.dim() - 1)  # batches may be missing
    return output.detach().movedim(channel, -1).reshape(-1, output.shape[channel])


@contextmanager
def _watched(module: nn.Module, names: Sequence[str], counts: dict[str, int]) -> Iterator[None]:
    """Within, ``counts`` adds up the rows that each layer gives."""

    def note(name: str, layer: nn.Module, output: Tensor) -> None:
        counts[name] = counts.get(name, 0) + len(rows_of(layer, output))

    handles = [
        module.get_submodule(name).register_forward_hook(lambda layer, _, output, name=name: note(name, layer, output))
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _touched(module: nn.Module, names: Sequence[str], inputs: Inputs) -> dict[str, str]:
    """Layers that are not only called -> what is read of them; the module runs once with stand-ins in their places."""
    from torch import nn

    touched: dict[str, str] = {}

    class StandIn(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
        def __init__(self, name: str, layer: nn.Module) -> None:
            super().__init__()
            self.name, self.layer = name, layer

        def __getattr__(self, attribute: str) -> Any:
            try:
                return super().__getattr__(attribute)
            except AttributeError:
                touched[self.name] = attribute
                return getattr(self.layer, attribute)

        def forward(self, data: Tensor) -> Any:
            return self.layer(data)

    with replaced(module, {name: StandIn(name, module.get_submodule(name)) for name in names if name}):
        run(module, inputs)
    return touched


@contextmanager
def replaced(module: nn.Module, others: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within, these modules stand in the places of those of these names."""
    places = [(module.get_submodule(name.rpartition(".")[0])._modules, name) for name in others]
    before = {name: own[name.rpartition(".")[2]] for own, name in places}
    for own, name in places:
        own[name.rpartition(".")[2]] = others[name]
    try:
        yield
    finally:
        for own, name in places:
            own[name.rpartition(".")[2]] = before[name]


def run(module: nn.Module, inputs: Inputs) -> None:
    """Call the module on one batch, for what its hooks see."""
    import torch

    with torch.no_grad():
        run_module(module, inputs)
