"""Numbers that modules keep about their own width: those of torch's layers, and those of the modules around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optkit.model.surgery import Value
from optkit.passes._prune.units import Count, Group

if TYPE_CHECKING:
    from torch import nn

_PLAIN: dict[str, dict[str, tuple[str, ...]]] = {
    "Linear": {"weight": ("out_features", "in_features")},
    "Conv1D": {"weight": ("nx", "nf")},
    "Embedding": {"weight": ("num_embeddings", "embedding_dim")},
    "EmbeddingBag": {"weight": ("num_embeddings", "embedding_dim")},
    "PReLU": {"weight": ("num_parameters",)},
    **{f"{kind}{rank}d": {"weight": ("num_features",), "running_mean": ("num_features",)}
       for kind in ("BatchNorm", "InstanceNorm") for rank in (1, 2, 3)},
}  # fmt: skip
"""Class -> tensor -> the attribute that counts each of its dimensions."""

_LAYERS = (*_PLAIN, "LayerNorm", "RMSNorm", "GroupNorm", "MultiheadAttention")


def layer_attrs(owner: nn.Module, tensor: str, dim: int, size: int) -> dict[str, Value]:
    """What to set on torch's own layers where one dimension of one of their tensors has ``size`` indices left."""
    from torch import nn

    kind = type(owner).__name__
    if isinstance(owner, nn.modules.conv._ConvNd):
        return _convolution(owner, dim, size) if tensor == "weight" else {}
    if isinstance(owner, nn.LayerNorm | nn.RMSNorm) and tensor == "weight":
        return {"normalized_shape": [size if axis == dim else old for axis, old in enumerate(owner.normalized_shape)]}
    if isinstance(owner, nn.GroupNorm) and tensor == "weight":
        return {"num_channels": size, "num_groups": size * owner.num_groups // owner.num_channels}
    kind = next((each.__name__ for each in type(owner).__mro__ if each.__name__ in _PLAIN), kind)
    names = _PLAIN.get(kind, {}).get(tensor, ())
    return {names[dim]: size} if dim < len(names) and hasattr(owner, names[dim]) else {}


def _convolution(layer: Any, dim: int, size: int) -> dict[str, Value]:
    names = ("in_channels", "out_channels") if layer.transposed else ("out_channels", "in_channels")
    if layer.groups == 1:
        return {names[dim]: size} if dim < 2 else {}
    groups = size * layer.groups // layer.weight.shape[0]
    return {names[0]: size, names[1]: groups * layer.weight.shape[1], "groups": groups}


def candidates(module: nn.Module, group: Group, sizes: Mapping[int, int]) -> tuple[Count, ...]:
    """Ints of the modules around a group's layers that may count its units.

    Args:
        sizes: sizes of the dimensions that the units lie in -> indices of one unit.
    """
    tensors = dict(module.named_parameters(remove_duplicate=False))
    own = {(part.tensor, part.dim) for part in group.parts}
    others = {
        int(size)
        for name in {part.tensor for part in group.parts if part.tensor in tensors}
        for axis, size in enumerate(tensors[name].shape)
        if (name, axis) not in own
    }
    return tuple(
        Count(path, attribute, value, sizes[value], doubtful=value in others)
        for path, part in _around(module, group)
        for attribute, value in vars(part).items()
        if type(value) is int and value in sizes and not attribute.startswith("_")
    )


def _around(module: nn.Module, group: Group) -> list[tuple[str, nn.Module]]:
    """Modules that hold the group's layers, up to one above what they have in common, and those without weights."""
    owners = [part.tensor.rpartition(".")[0] for part in group.parts]
    top = common(owners)
    above = top.rpartition(".")[0]
    found = {name: part for name, part in module.named_modules() if _between(name, owners, above)}
    inside = module.get_submodule(top).named_modules(prefix=top)
    found |= {name: part for name, part in inside if not list(part.parameters())}
    return [(name, part) for name, part in found.items() if not _is_layer(part)]


def _between(name: str, owners: list[str], above: str) -> bool:
    return under(name, above) and any(under(owner, name) for owner in owners)


def under(name: str, above: str) -> bool:
    """Whether a dotted name is another one or lies below it."""
    return not above or name == above or name.startswith(f"{above}.")


def common(names: list[str]) -> str:
    """The longest dotted name that all of these lie under."""
    split = [name.split(".") for name in names]
    same = 0
    while all(len(each) > same and each[same] == split[0][same] for each in split):
        same += 1
    return ".".join(split[0][:same])


def _is_layer(part: nn.Module) -> bool:
    """Torch's own layers, whose attributes are known."""
    from torch import nn

    known = any(each.__name__ in _LAYERS for each in type(part).__mro__)
    return known or isinstance(part, nn.modules.conv._ConvNd)
