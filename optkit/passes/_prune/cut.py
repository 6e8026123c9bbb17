"""Take units out of a module, as surgery, and prove that the rest computes what it did."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optkit.errors import PassError
from optkit.model.load_torch import first_line
from optkit.model.surgery import Operation, Set, Slice, Value, operate
from optkit.model.torch_call import call_module
from optkit.passes._prune.attrs import layer_attrs
from optkit.passes._prune.units import Group, Part

if TYPE_CHECKING:
    from torch import Tensor, nn

Kept = Sequence[tuple[Group, NDArray[np.int64]]]
"""Groups, and the units of each that are kept, ascending."""


def cut(module: nn.Module, kept: Kept, inputs: Mapping[str, Tensor]) -> list[Operation]:
    """The surgery that keeps these units: slices of tensors, and the attributes that ``forward`` reads.

    ``module`` itself stays as it is; a copy of it, changed, has run on ``inputs``.

    Raises:
        PassError: a group would be empty, or the changed module does not run.
    """
    for group, keep in kept:
        if not len(keep):
            raise PassError(f"All {group.units} units of {group.name} would be cut; at least one has to stay.")
    operations = surgery(module, kept)
    changed = operate(shallow_copy(module), operations)
    if isinstance(problem := outputs(changed, inputs), str):
        raise PassError(f"The module does not run without the units that were cut: {problem}.")
    return operations


def verify(module: nn.Module, changed: nn.Module, kept: Kept, inputs: Mapping[str, Tensor]) -> None:
    """Check that the cut module computes what the whole one does where nothing reads the units that were cut.

    With groups that pass a norm the numbers must differ; then only shapes are compared, and that all is finite.

    Raises:
        PassError: it does not run, or gives other outputs.
    """
    if problem := difference(module, changed, kept, inputs):
        names = ", ".join(group.name for group, _ in kept[:8])
        raise PassError(
            f"The module without the units that were cut from {names} is not the same module: {problem}.",
            expected="the outputs of the module with these units set to zero where they are read",
            fix="leave these layers out",
        )


def difference(module: nn.Module, changed: nn.Module, kept: Kept, inputs: Mapping[str, Tensor]) -> str:
    """Empty, or in what the cut module differs from the masked one; see ``verify``."""
    exact = not any(group.through_norm for group, _ in kept)
    whole = outputs(masked(module, kept) if exact else module, inputs)
    rest = outputs(changed, inputs)
    if isinstance(whole, str) or isinstance(rest, str):
        return whole if isinstance(whole, str) else str(rest)
    for name, tensor in whole.items():
        if name not in rest or rest[name].shape != tensor.shape:
            return f"output '{name}' has another shape"
        if problem := _unlike(tensor, rest[name], exact):
            return f"output '{name}' {problem}"
    return ""


def _unlike(one: Tensor, other: Tensor, exact: bool) -> str:
    import torch

    if not one.is_floating_point():
        return ""
    if one.isfinite().all() and not other.isfinite().all():
        return "is not finite"
    tolerance = max(1e-4, 4 * torch.finfo(one.dtype).eps)
    finite = one[one.isfinite()].double()
    scale = float(finite.abs().max()) if finite.numel() else 1.0
    same = torch.isclose(one.double(), other.double(), rtol=0, atol=tolerance * max(scale, 1e-6), equal_nan=True)
    error = float((one - other)[~same].abs().max()) if not same.all() else 0.0
    return f"differs by {error:.3g}, where the largest number is {scale:.3g}" if exact and error else ""


def outputs(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor] | str:
    """What the module gives, or why it does not run."""
    import torch

    try:
        with torch.no_grad():
            return call_module(module, inputs)
    except Exception as error:  # noqa: BLE001 - user code runs in there, and what it raises is told
        return first_line(error)


def surgery(module: nn.Module, kept: Kept) -> list[Operation]:
    """The operations alone, without running anything."""
    operations: list[Operation] = []
    for part, keep in left(kept):
        size = len(keep)
        for name in part.names:
            path, _, tensor = name.rpartition(".")
            attrs = layer_attrs(module.get_submodule(path), tensor, part.dim, size)
            if name == part.tensor:
                indices = [int(index) for index in keep]
                operations.append(Slice(module=path, tensor=tensor, dim=part.dim, keep=indices, attrs=attrs))
            elif attrs:
                operations.append(Set(module=path, attrs=attrs))
    return [*operations, *_counted(kept)]


def left(kept: Kept) -> Iterable[tuple[Part, NDArray[np.int64]]]:
    """Each dimension of each tensor once, with the indices that no group loses."""
    parts: dict[tuple[str, int], Part] = {}
    lost: dict[tuple[str, int], set[int]] = {}
    for group, keep in kept:
        for part in group.parts:
            key = (part.tensor, part.dim)
            parts.setdefault(key, part)
            lost.setdefault(key, set()).update(np.delete(part.indices, keep, axis=0).ravel().tolist())
    for key, part in parts.items():
        if lost[key]:
            yield part, np.setdiff1d(np.arange(part.size), list(lost[key]))


def _counted(kept: Kept) -> list[Operation]:
    values: dict[tuple[str, str], int] = {}
    for group, keep in kept:
        for count in group.counts:
            key = (count.module, count.attribute)
            values[key] = values.get(key, count.value) - (group.units - len(keep)) * count.per_unit
    by_module: dict[str, dict[str, Value]] = {}
    for (path, attribute), value in values.items():
        by_module.setdefault(path, {})[attribute] = value
    return [Set(module=path, attrs=attrs) for path, attrs in by_module.items()]


def masked(module: nn.Module, kept: Kept) -> nn.Module:
    """A copy in which zeros stand where the units that are not kept would be read."""
    import torch

    copied = shallow_copy(module)
    for group, keep in kept:
        for part in (each for each in group.parts if each.role == "in"):
            path, _, name = part.tensor.rpartition(".")
            owner = copied.get_submodule(path)
            lost = np.delete(part.indices, keep, axis=0).ravel()
            zeroed = getattr(owner, name).detach().index_fill(part.dim, torch.from_numpy(lost), 0)
            for each in part.names:
                path, _, last = each.rpartition(".")
                holder = copied.get_submodule(path)
                holder._parameters[last] = torch.nn.Parameter(zeroed, requires_grad=False)
    return copied


def shallow_copy(module: nn.Module) -> nn.Module:
    """A copy of the structure that shares every tensor.

    Raises:
        PassError: something in the module cannot be copied.
    """
    tensors = [*module.parameters(), *module.buffers()]
    try:
        return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    except Exception as error:
        raise PassError(
            f"The module cannot be copied, which pruning needs: {first_line(error)}.",
            expected="a module that copy.deepcopy can copy",
            fix="keep open files, locks and the like out of the module's attributes",
        ) from error
