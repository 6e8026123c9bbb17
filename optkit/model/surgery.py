"""Changes of a torch module's structure as plain data, replayed on the untrained module before its weights are loaded.

slice      keep some indices of one dimension of one tensor    [64, 32, 3, 3] -> [40, 32, 3, 3]
drop       keep some members of a ModuleList or Sequential     layers 0..5 -> layers 0, 2, 5
replace    a module by one that does nothing                   BatchNorm -> Identity
factorize  one linear or convolution by two of a lower rank    y = W x -> y = U (V x)
set        attributes alone, which every operation may set too
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from optkit.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

Value = bool | int | float | str | None | list[int] | list[str]
"""What an attribute may be set to."""

_NAME = re.compile(r"[A-Za-z]\w*|\d+")
"""One part of a dotted path; names that begin with an underscore are Python's own or private, and stay as they are."""


class _Operation(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    module: str
    """Dotted name of a submodule; empty = the whole."""
    attrs: dict[str, Value] = Field(default_factory=dict)
    """Dotted path from that module -> value: ``{out_channels: 40}``, ``{config.num_hidden_layers: 3}``. Each must exist
    already."""


class Slice(_Operation):
    """Keep some indices of one dimension of one parameter or buffer."""

    op: Literal["slice"] = "slice"
    tensor: str
    """Its name within the module: ``weight``."""
    dim: int = Field(ge=0)
    keep: list[int] = Field(min_length=1)
    """Indices, ascending."""


class Drop(_Operation):
    """Keep some members of a ModuleList or Sequential; the others are gone, those behind move up, but keep names that
    are no numbers."""

    op: Literal["drop"] = "drop"
    keep: list[Annotated[int, Field(ge=0)]]
    """Indices, ascending."""


class Replace(_Operation):
    """Put a module that gives back its first input in the place of one."""

    op: Literal["replace"] = "replace"
    by: Literal["identity"] = "identity"


class Factorize(_Operation):
    """Two layers of a lower rank in the place of one: a Sequential of a narrow one without bias, and a wide one.

    Linear(n, m) -> Linear(n, rank, bias=False), Linear(rank, m); Conv(n, m, k) -> Conv(n, rank, k, bias=False),
    Conv(rank, m, 1). transformers' Conv1D becomes two Linears.
    """

    op: Literal["factorize"] = "factorize"
    rank: int = Field(ge=1)


class Set(_Operation):
    """Set attributes alone."""

    op: Literal["set"] = "set"


Operation = Slice | Drop | Replace | Factorize | Set
_OPERATIONS = TypeAdapter(list[Annotated[Operation, Field(discriminator="op")]])


def parse_surgery(plain: Any) -> list[Operation]:
    """Operations from plain data.

    Raises:
        ModelError: something else stands there.
    """
    try:
        return _OPERATIONS.validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ModelError(f"The surgery of this model cannot be read: {where}: {first['msg']}.") from error


def plain_surgery(operations: Sequence[Operation]) -> list[dict[str, Any]]:
    """Operations as plain data, without what they leave at its default."""
    return [{"op": each.op, **each.model_dump(mode="json", exclude_defaults=True)} for each in operations]


def operate(module: nn.Module, operations: Sequence[Operation]) -> nn.Module:
    """Change the module in place, in this order. Tied parameters are one tensor: name one, and all of them change.

    Returns:
        the module: another one where an operation replaced the whole.

    Raises:
        ModelError: the module has not what an operation names.
    """
    for operation in operations:
        part = _find(module, operation.module)
        if isinstance(operation, Slice):
            _slice(module, part, operation)
        elif isinstance(operation, Drop):
            _drop(part, operation)
        elif isinstance(operation, Replace | Factorize):
            made = _identity() if isinstance(operation, Replace) else _factorized(part, operation)
            module = _put(module, operation.module, made)
            part = made
        for path, value in operation.attrs.items():
            _set(part, path, value, operation)
    return module


def _find(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        raise _misfit(f"there is no module '{name}'") from error


def _misfit(what: str) -> ModelError:
    return ModelError(
        f"The changes that passes made do not fit the module any more: {what}.",
        expected="the code that built the module when they were made",
        fix="run the recipe again from the original model",
    )


def _slice(root: nn.Module, part: nn.Module, operation: Slice) -> None:
    import torch
    from torch import nn

    old = getattr(part, operation.tensor, None)
    if not isinstance(old, torch.Tensor) or old.dim() <= operation.dim:
        raise _misfit(f"'{operation.module}' has no tensor '{operation.tensor}' with {operation.dim + 1} dimensions")
    if max(operation.keep) >= old.shape[operation.dim] or min(operation.keep) < 0:
        raise _misfit(f"'{operation.module}.{operation.tensor}' is too small for the indices that are kept")
    kept = old.detach().index_select(operation.dim, torch.tensor(operation.keep, device=old.device)).contiguous()
    new = nn.Parameter(kept, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else kept
    holders = _holders(root, old)
    if not holders:
        raise _misfit(f"'{operation.module}.{operation.tensor}' is computed, and neither a parameter nor a buffer")
    for holder, name in holders:
        setattr(holder, name, new)


def _holders(root: nn.Module, tensor: Tensor) -> list[tuple[nn.Module, str]]:
    """Every (module, name) under which a tensor is registered."""
    return [
        (part, name)
        for part in root.modules()
        for own in (part._parameters, part._buffers)
        for name, value in own.items()
        if value is tensor
    ]


def _drop(part: nn.Module, operation: Drop) -> None:
    from torch import nn

    if not isinstance(part, nn.ModuleList | nn.Sequential):
        raise _misfit(f"'{operation.module}' is a {type(part).__name__}, which is no list of layers")
    if operation.keep and max(operation.keep) >= len(part):
        raise _misfit(f"'{operation.module}' has only {len(part)} layers")
    members = list(part._modules.items())
    kept = [members[index] for index in operation.keep]
    numbered = all(name.isdecimal() for name, _ in members)
    part._modules.clear()
    part._modules.update({str(place) if numbered else name: each for place, (name, each) in enumerate(kept)})


def _identity() -> nn.Module:
    from torch import nn

    class First(nn.Identity):  # type: ignore[misc]  # torch is not followed by mypy
        """Gives back its first input, whatever else it is given."""

        def forward(self, first: Any, *_: Any, **__: Any) -> Any:
            return first

    return First()


def _factorized(part: nn.Module, operation: Factorize) -> nn.Module:
    import torch
    from torch import nn

    rank, weight = operation.rank, getattr(part, "weight", None)
    if not isinstance(weight, torch.Tensor):
        raise _misfit(f"'{operation.module}' is a {type(part).__name__} without a weight")
    if rank > max(len(weight), weight.numel() // max(1, len(weight))):
        raise _misfit(f"'{operation.module}' is too small for a rank of {rank}")
    kind: Mapping[str, Any] = {"dtype": weight.dtype, "device": weight.device}
    bias = getattr(part, "bias", None) is not None
    if isinstance(part, nn.Linear):
        sizes = part.in_features, part.out_features
    elif type(part).__name__ == "Conv1D" and weight.dim() == 2:
        sizes = weight.shape[0], weight.shape[1]
    elif isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) and part.groups == 1:
        same = {"padding": part.padding, "dilation": part.dilation, "padding_mode": part.padding_mode}
        plain = next(each for each in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(part, each))
        narrow = plain(part.in_channels, rank, part.kernel_size, part.stride, bias=False, **same, **kind)
        return nn.Sequential(narrow, plain(rank, part.out_channels, 1, bias=bias, **kind))
    else:
        raise _misfit(f"'{operation.module}' is a {type(part).__name__}, which has no factors")
    return nn.Sequential(nn.Linear(sizes[0], rank, bias=False, **kind), nn.Linear(rank, sizes[1], bias=bias, **kind))


def _put(root: nn.Module, name: str, made: nn.Module) -> nn.Module:
    if not name:
        return made
    parent, _, last = name.rpartition(".")
    _find(root, parent)._modules[last] = made
    return root


def _set(part: nn.Module, path: str, value: Value, operation: Operation) -> None:
    *way, last = path.split(".")
    holder: Any = part
    for step in way:
        holder = getattr(holder, step, None) if _NAME.fullmatch(step) else None
    if holder is None or not _NAME.fullmatch(last) or not hasattr(holder, last):
        raise _misfit(f"'{operation.module}' has no attribute '{path}'")
    old = getattr(holder, last)
    setattr(holder, last, tuple(value) if isinstance(value, list) and isinstance(old, tuple) else value)
