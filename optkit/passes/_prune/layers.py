"""Lists of layers that could go: where a module keeps them, and hooks that watch or bypass them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optkit.model.torch_call import call_module

if TYPE_CHECKING:
    from torch import Tensor, nn

Call = Callable[[str, "Tensor", "Tensor"], None]
"""(name of a layer, what it takes, what it gives), on every call."""


@dataclass(frozen=True)
class LayerList:
    """A ModuleList or Sequential of layers of one class."""

    path: str
    """Dotted name."""
    count: int
    names: tuple[str, ...]
    """Dotted name of each layer."""
    parameters: int
    """Of the layers that could go."""
    bound: Mapping[int, str] = field(default_factory=dict)
    """Layers that have to stay -> why."""


def find_lists(module: nn.Module, inputs: Mapping[str, Tensor]) -> list[LayerList]:
    """Every list with a layer that can go, the one with the most parameters that could go first; the module runs once.

    A layer can go where its output has the shape of its input, and where it holds no parameter that the others of its
    list have not (T5's first layer has the relative positions for all).
    """
    lists = dict(_lists_of_one_class(module))
    shapes: dict[str, bool] = {}

    def note(name: str, taken: Tensor, given: Tensor) -> None:
        same = (taken.shape, taken.dtype) == (given.shape, given.dtype)
        shapes[name] = same and shapes.get(name, True)

    names = {path: member_names(module, path) for path in lists}
    with watched(module, [name for each in names.values() for name in each], note):
        outputs(module, inputs)
    found = [_described(path, names[path], layers, shapes) for path, layers in lists.items()]
    return sorted(
        (each for each in found if len(each.bound) < each.count), key=lambda each: (-each.parameters, -each.count)
    )


def member_names(module: nn.Module, path: str) -> tuple[str, ...]:
    """Dotted names of the members of a list, which a Sequential may call as it likes."""
    return tuple(f"{path}.{key}" for key in module.get_submodule(path)._modules)


def _lists_of_one_class(module: nn.Module) -> Iterator[tuple[str, Sequence[nn.Module]]]:
    from torch import nn

    for path, part in module.named_modules():
        alike = isinstance(part, nn.ModuleList | nn.Sequential) and len({type(each) for each in part}) == 1
        if path and alike and len(part) > 1 and any(True for _ in part.parameters()):
            yield path, list(part)


def _described(path: str, names: tuple[str, ...], layers: Sequence[nn.Module], shapes: Mapping[str, bool]) -> LayerList:
    owned = [frozenset(name for name, _ in layer.named_parameters()) for layer in layers]
    usual = Counter(owned).most_common(1)[0][0]
    bound = {}
    for index, own in enumerate(owned):
        if not shapes.get(names[index], False):
            bound[index] = "its output has another shape than its input"
        elif own > usual:
            bound[index] = f"the other layers use its {min(own - usual)}"
    loose = [layer for index, layer in enumerate(layers) if index not in bound]
    size = sum(each.numel() for layer in loose for each in layer.parameters())
    return LayerList(path, len(layers), names, size, bound)


def outputs(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the module gives, by name, without gradients."""
    import torch

    with torch.no_grad():
        return call_module(module, inputs)


@contextmanager
def watched(module: nn.Module, names: Sequence[str], call: Call) -> Iterator[None]:
    """Within, ``call`` is told of every call of these layers."""

    def hook(name: str) -> Callable[..., None]:
        def tell(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            taken, given = _taken(args, kwargs), _first(output)
            if taken is not None and given is not None:
                call(name, taken, given)

        return tell

    with _hooked(module, {name: hook(name) for name in names}):
        yield


@contextmanager
def bypassed(module: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Within, these layers give back what they take."""

    def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        return _with_first(output, _taken(args, kwargs))

    with _hooked(module, dict.fromkeys(names, hook)):
        yield


@contextmanager
def _hooked(module: nn.Module, hooks: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    handles = [module.get_submodule(name).register_forward_hook(hook, with_kwargs=True) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _taken(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    return _first([*args, kwargs.get("hidden_states"), *kwargs.values()])


def _first(value: Any) -> Tensor | None:
    """The first tensor of an output, or of its parts."""
    from torch import Tensor

    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else [value]
    return next((each for each in parts if isinstance(each, Tensor)), None)


def _with_first(output: Any, first: Tensor | None) -> Any:
    if isinstance(output, dict):
        return type(output)(**{**output, next(iter(output)): first})
    return (first, *output[1:]) if isinstance(output, tuple | list) else first
