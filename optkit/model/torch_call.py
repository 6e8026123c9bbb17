"""How a module is called, and what its inputs and outputs are named: the law that exports and runners share."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optkit.errors import DataError, ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

_CACHES = frozenset({"past_key_values", "cache_params"})
"""Outputs of Hugging Face models that are caches for generation."""


def forward_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the inputs of ``forward``, in order; ``*args`` and ``**kwargs`` are left out.

    Of an export these are the flat inputs: an argument ``x`` that is a pair counts as ``x_0``, ``x_1``.
    """
    if _tree(module) is not None:
        return tuple(node.name for node in module.graph.nodes if node.op == "placeholder")
    schema = getattr(module.forward, "schema", None)
    if schema is not None:
        return tuple(argument.name for argument in schema.arguments if argument.name != "self")
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(module.forward).parameters.values()
    return tuple(each.name for each in parameters if each.kind not in kinds)


def _tree(module: nn.Module) -> Any:
    """How an exported module nests its flat inputs (a pytree spec), or None."""
    codegen = getattr(getattr(module, "graph", None), "_codegen", None)
    return getattr(getattr(codegen, "pytree_info", None), "in_spec", None)


def bind_inputs(
    module: nn.Module, inputs: Mapping[str, Tensor], order: Sequence[str] = ()
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How to call ``forward`` with inputs by name: (positional, keyword) arguments.

    By keyword where ``forward`` has arguments of these names; by position, in ``order``, where it has none of them
    (traced TorchScript calls its arguments as it likes).

    Raises:
        DataError: ``forward`` knows some of the names and not others.
    """
    names = forward_names(module)
    unknown = [name for name in inputs if name not in names]
    if unknown and len(unknown) < len(inputs) and not _takes_any(module):
        raise DataError(
            f"The module's forward has no argument {', '.join(unknown)}.",
            expected="inputs among " + ", ".join(names),
            fix="name the inputs like the arguments of forward, in --signature and in the data",
        )
    placed = tuple(inputs[name] for name in dict.fromkeys([*order, *inputs]) if name in inputs)
    if (tree := _tree(module)) is not None:
        return _unflatten(tree, placed if unknown else tuple(inputs.get(name) for name in names))
    return (placed, {}) if unknown and not _takes_any(module) else ((), dict(inputs))


def run_module(module: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    """Whatever ``forward`` gives for inputs by name."""
    args, kwargs = bind_inputs(module, inputs)
    return module(*args, **kwargs)


def call_module(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs by name for inputs by name."""
    return name_outputs(run_module(module, inputs))


def _unflatten(tree: Any, values: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    from torch.utils._pytree import tree_unflatten

    if len(values) != tree.num_leaves:
        raise DataError(f"The model takes {tree.num_leaves} inputs, and {len(values)} are given.")
    args, kwargs = tree_unflatten(list(values), tree)
    return tuple(args), dict(kwargs)


def _takes_any(module: nn.Module) -> bool:
    if hasattr(module.forward, "schema") or _tree(module) is not None:
        return False
    parameters = inspect.signature(module.forward).parameters.values()
    return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def name_outputs(value: Any) -> dict[str, Tensor]:
    """Give the outputs of a module their lawful names.

    Keys of a dict or ModelOutput, without None and generation caches; ``key_0``, ``key_1`` where a key holds several
    tensors; ``output_0``, ``output_1`` ... for a tensor, tuple or list, nested ones flattened.

    Raises:
        ModelError: something in it is no tensor.
    """
    if isinstance(value, Mapping):
        named: dict[str, Tensor] = {}
        for key, item in value.items():
            tensors = [] if item is None or key in _CACHES else list(_flat(item))
            single = len(tensors) == 1
            named |= {str(key) if single else f"{key}_{index}": each for index, each in enumerate(tensors)}
        return named
    return {f"output_{index}": each for index, each in enumerate(_flat(value))}


def _flat(value: Any) -> Iterator[Tensor]:
    from torch import Tensor

    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, Mapping):
        yield from _flat(list(value.values()))
    elif value is not None:
        raise ModelError(
            f"The module returns a {type(value).__name__}, which is no tensor.",
            expected="a tensor, or a dict, tuple or list of tensors",
            fix="wrap the module so that it returns tensors only",
        )


def to_tensor(name: str, array: NDArray[Any], dtype: str) -> Tensor:
    """The array as a CPU tensor of that dtype name; numpy's own memory where it can be shared and written.

    Raises:
        DataError: torch has no such dtype.
    """
    import torch

    plain = "float32" if dtype == "bfloat16" else dtype
    try:
        tensor = torch.from_numpy(np.require(array, dtype=plain, requirements=["C", "W"]))
    except TypeError as error:
        raise DataError(f"Input '{name}' is {array.dtype}, which torch does not take.") from error
    return tensor.bfloat16() if dtype == "bfloat16" else tensor
