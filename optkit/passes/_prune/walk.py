"""Carry the units of all weights through the graph of a module."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optkit.passes._prune.flow import Call, Dim, Flow, Rule, Value, no_rule, staying
from optkit.passes._prune.moves import MOVES
from optkit.passes._prune.rules import RULES, elementwise
from optkit.passes._prune.trace import Traced

if TYPE_CHECKING:
    from torch import Tensor, nn

_FILLED = frozenset({"zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty"})
"""Operators whose result has the sizes that ``forward`` asks for: they follow where an attribute says the number."""


@dataclass(frozen=True)
class Walked:
    """The flow, with all folds settled."""

    flow: Flow
    weights: Mapping[str, Value]
    """Parameter or buffer, by its first name."""
    dims: tuple[Dim, ...]
    """Of all tensors of the graph."""


def walk(module: nn.Module, traced: Traced) -> Walked:
    """Apply the rule of every operator; what has none stays, and so do the inputs and outputs of the module."""
    flow = Flow()
    weights = _weights(module, flow)
    first = first_names(module)
    values: dict[Any, Any] = {}
    for node in traced.nodes:
        if node.op == "placeholder":
            name = first.get(traced.tensors.get(node.name, ""), "")
            values[node] = weights[name] if name else _result(node)
        elif node.op == "output":
            flow.pin(_dims(_given(node.args, values)), "it reaches an output of the model")
        elif node.target is operator.getitem:
            values[node] = values[node.args[0]][node.args[1]]
        else:
            values[node] = _apply(node, values, flow)
    for fold in flow.folds:
        fold.settle(flow.atoms)
    return Walked(flow, weights, tuple(_dims(list(values.values()))))


def first_names(module: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer -> the first name of the same tensor."""
    return {name: names[0] for names in _all_names(module).values() for name in names}


def names_of(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """First name of a parameter or buffer -> all its names."""
    return {names[0]: tuple(names) for names in _all_names(module).values()}


def _all_names(module: nn.Module) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name, tensor in tensors_of(module).items():
        names.setdefault(id(tensor), []).append(name)
    return names


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under all its names."""
    named = dict(module.named_parameters(remove_duplicate=False))
    return {**named, **dict(module.named_buffers(remove_duplicate=False))}


def _weights(module: nn.Module, flow: Flow) -> dict[str, Value]:
    first, tensors = first_names(module), tensors_of(module)
    values = {}
    for name in dict.fromkeys(first.values()):
        tensor = tensors[name]
        shape = [int(size) for size in tensor.shape]
        made = tuple(Dim(flow.atoms.fresh(size), (name, axis)) for axis, size in enumerate(shape))
        values[name] = made if tensor.is_floating_point() else staying(shape)
    for owner, reason in _fixed(module).items():
        for name, value in values.items():
            if name.startswith(owner):
                flow.pin(value, reason)
    return values


def _fixed(module: nn.Module) -> dict[str, str]:
    """Prefix of layers that check their own width."""
    from torch import nn

    reason = "nn.MultiheadAttention checks its own width"
    return {f"{name}.": reason for name, part in module.named_modules() if isinstance(part, nn.MultiheadAttention)}


def _apply(node: Any, values: Mapping[Any, Any], flow: Flow) -> Any:
    result = _result(node)
    if node.meta.get("val") is None:
        return result
    many = isinstance(result, list)
    call = Call(flow, _name(node), _arguments(node, values), _shapes(result))
    if call.operator in _FILLED:
        return tuple(Dim(flow.atoms.fresh(size)) for size in call.shape)
    if not any((dim.atoms > 0).any() for value in call.tensors() for dim in value):
        return result
    made = _rule(node)(call)
    made = made if isinstance(made, list) else [made]
    _check(call, made)
    return made if many else made[0]


def _rule(node: Any) -> Rule:
    import torch

    name = _name(node)
    known = RULES.get(name) or MOVES.get(name)
    if known is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return elementwise
    return known or no_rule


def _check(call: Call, made: list[Value]) -> None:
    shapes = tuple(tuple(map(len, value)) for value in made)
    if shapes != call.shapes:
        raise RuntimeError(f"the rule of {call.operator} gives {shapes} instead of {call.shapes}")


def _name(node: Any) -> str:
    """``aten::add_.Tensor`` -> ``add``."""
    schema = getattr(node.target, "_schema", None)
    name = schema.name.split("::")[-1] if schema is not None else str(node.target)
    return name[:-1] if name.endswith("_") and not name.startswith("__") else name


def _arguments(node: Any, values: Mapping[Any, Any]) -> dict[str, Any]:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(index): _given(each, values) for index, each in enumerate([*node.args, *node.kwargs.values()])}
    known = {each.name: each.default_value for each in schema.arguments}
    known.update(zip(known, (_given(each, values) for each in node.args), strict=False))
    return {**known, **{name: _given(each, values) for name, each in node.kwargs.items()}}


def _given(argument: Any, values: Mapping[Any, Any]) -> Any:
    from torch import fx

    if isinstance(argument, fx.Node):
        return values[argument]
    if isinstance(argument, list | tuple):
        return [_given(each, values) for each in argument]
    return argument


def _result(node: Any) -> Any:
    """Of the shape that the node has, and nothing to cut from."""
    meta = node.meta.get("val")
    return [_staying(each) for each in meta] if isinstance(meta, list | tuple) else _staying(meta)


def _staying(meta: Any) -> Value:
    return staying(getattr(meta, "shape", ()))


def _shapes(result: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(len, value)) for value in (result if isinstance(result, list) else [result]))


def _dims(values: Any) -> list[Dim]:
    if isinstance(values, Dim):
        return [values]
    return [dim for each in values for dim in _dims(each)] if isinstance(values, list | tuple) else []
