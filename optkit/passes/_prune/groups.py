"""Which slices of which tensors belong together: the dependency analysis of structured pruning.

Every index of every dimension in the exported graph is an atom; operators unite atoms that can only go together, and
pin those that have to stay. The sets that are left free are the units; sets that lie in the same tensors are a group.

Source of the idea: Fang et al. 2023, "DepGraph: Towards Any Structural Pruning" (groups of coupled layers); this one
works on single indices of the operators' graph instead of on layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optkit.passes._prune.atoms import CHANNELS, HEADS, NORMED
from optkit.passes._prune.attrs import common
from optkit.passes._prune.cut import shallow_copy
from optkit.passes._prune.flow import Source
from optkit.passes._prune.trace import trace
from optkit.passes._prune.trial import settle
from optkit.passes._prune.units import Found, Group, Kind, Part, Role
from optkit.passes._prune.walk import Walked, names_of, walk

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Found", "Group", "Part", "find_groups"]

Roots = Mapping[Source, NDArray[np.int64]]
"""For each dimension of each weight, the unit of each index; 0 where it stays."""


def find_groups(module: nn.Module, inputs: Mapping[str, Tensor]) -> Found:
    """What can be cut from a module.

    Args:
        module: it stays as it is; looked at in eval mode.
        inputs: one batch by name.

    Raises:
        PassError: torch.export cannot follow the module.
    """
    copied = shallow_copy(module).eval()
    walked = walk(copied, trace(copied, inputs))
    groups, sizes, skipped = _collect(copied, walked)
    settled, failed = settle(copied, groups, sizes, inputs)
    return Found(tuple(settled), (*skipped, *failed))


def _collect(module: nn.Module, walked: Walked) -> tuple[list[Group], list[dict[int, int]], list[tuple[str, str]]]:
    roots = _roots(walked)
    members = _members(roots)
    names = names_of(module)
    groups: list[Group] = []
    taken: dict[int, int] = {}
    for units in members:
        parts = _parts(units, roots, walked.flow.roles, names)
        made = any((part.tensor, part.dim) in walked.flow.makers for part in parts)
        if len(units) > 1 and made and any(part.role == "in" for part in parts):
            taken.update(dict.fromkeys(units.tolist(), len(groups)))
            groups.append(_group(walked, units, parts))
    return _distinct(groups), _sizes(walked, groups, taken), _skipped(walked, roots, taken)


def _roots(walked: Walked) -> dict[Source, NDArray[np.int64]]:
    atoms = walked.flow.atoms
    return {
        (name, axis): np.where(atoms.free(dim.atoms), atoms.find(dim.atoms), 0)
        for name, value in walked.weights.items()
        for axis, dim in enumerate(value)
    }


def _members(roots: Roots) -> list[NDArray[np.int64]]:
    """Units by group: those that lie in the same dimensions with as many indices each."""
    places: dict[int, list[tuple[int, int]]] = {}
    for at, each in enumerate(roots.values()):
        units, counts = np.unique(each[each > 0], return_counts=True)
        for unit, count in zip(units.tolist(), counts.tolist(), strict=True):
            places.setdefault(unit, []).append((at, count))
    groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for unit, found in places.items():
        groups.setdefault(tuple(found), []).append(unit)
    return [np.array(units) for units in groups.values()]


def _parts(
    units: NDArray[np.int64], roots: Roots, roles: Mapping[Source, Role], names: Mapping[str, tuple[str, ...]]
) -> tuple[Part, ...]:
    parts = []
    order: NDArray[np.int64] | None = None
    for (tensor, dim), each in roots.items():
        held = np.flatnonzero(np.isin(each, units))
        if not held.size:
            continue
        if order is None:
            order = each[held][np.sort(np.unique(each[held], return_index=True)[1])]
        place = np.argsort(order)
        rank = place[np.searchsorted(order, each[held], sorter=place)]
        indices = held[np.argsort(rank, kind="stable")].reshape(len(units), -1)
        parts.append(Part(tensor, dim, indices, roles.get((tensor, dim), "along"), names[tensor], len(each)))
    return tuple(parts)


def _group(walked: Walked, units: NDArray[np.int64], parts: tuple[Part, ...]) -> Group:
    atoms, makers = walked.flow.atoms, walked.flow.makers
    kind: Kind = "channels" if atoms.marked(units, CHANNELS) else "features"
    name = _joined([_layer(part.tensor) or part.tensor for part in parts if (part.tensor, part.dim) in makers])
    if atoms.marked(units, HEADS):
        kind, name = "heads", f"{common([_layer(part.tensor) for part in parts])} heads".strip()
    return Group(name, kind, len(units), parts, atoms.marked(units, NORMED))


def _joined(makers: Sequence[str]) -> str:
    return ", ".join(makers) if len(makers) < 4 else f"{makers[0]} and {len(makers) - 1} more"


def _layer(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _distinct(groups: Sequence[Group]) -> list[Group]:
    """With names that differ."""
    seen: Counter[str] = Counter()
    named = []
    for group in groups:
        seen[group.name] += 1
        again = f" ({seen[group.name]})" if seen[group.name] > 1 else ""
        named.append(replace(group, name=group.name + again))
    return named


def _sizes(walked: Walked, groups: Sequence[Group], taken: Mapping[int, int]) -> list[dict[int, int]]:
    """For each group: sizes of the dimensions anywhere in the graph that its units lie in -> indices of one unit."""
    sizes: list[dict[int, int]] = [{} for _ in groups]
    for each in {id(dim.atoms): dim.atoms for dim in walked.dims}.values():
        units, counts = np.unique(walked.flow.atoms.find(each), return_counts=True)
        for unit, count in zip(units.tolist(), counts.tolist(), strict=True):
            if unit in taken:
                sizes[taken[unit]].setdefault(len(each), count)
    return sizes


def _skipped(walked: Walked, roots: Roots, taken: Mapping[int, int]) -> list[tuple[str, str]]:
    """Layers that make nothing that can be cut, with the reason."""
    skipped: dict[str, str] = {}
    for (tensor, axis), role in walked.flow.roles.items():
        units = roots[(tensor, axis)]
        if role == "out" and not any(unit in taken for unit in np.unique(units).tolist()):
            dim = walked.weights[tensor][axis]
            reason = walked.flow.atoms.reason(dim.atoms) or "it has a single unit, or nothing reads it"
            skipped.setdefault(_layer(tensor) or tensor, reason)
    return list(skipped.items())
