"""Cut one unit of each group and look whether the module still computes the same: finds the attributes to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from optkit.errors import ModelError
from optkit.model.surgery import operate
from optkit.passes._prune.attrs import candidates, common
from optkit.passes._prune.cut import difference, shallow_copy, surgery
from optkit.passes._prune.units import Count, Group

if TYPE_CHECKING:
    from torch import Tensor, nn

Sizes = Mapping[int, int]
"""Sizes of dimensions that a group's units lie in -> indices of one unit."""


def settle(
    module: nn.Module, groups: Sequence[Group], sizes: Sequence[Sizes], inputs: Mapping[str, Tensor]
) -> tuple[list[Group], list[tuple[str, str]]]:
    """The groups that can be cut, with their ``counts``, and why the others cannot be: (name, reason).

    First all at once and no attribute changed, which is enough for many modules; else one of each kind of layer, with
    the subsets of attributes that are likely, of which only those that are needed stay.
    """
    wide = [replace(g, counts=candidates(module, g, size)) for g, size in zip(groups, sizes, strict=True)]
    plain = [group for group in wide if not group.through_norm]
    settled, skipped = _settle(module, plain, inputs)
    for group in wide:
        if group.through_norm:
            found, reasons = _settle(module, [group], inputs)
            settled, skipped = [*settled, *found], [*skipped, *reasons]
    order = {group.name: at for at, group in enumerate(groups)}
    return sorted(settled, key=lambda group: order[group.name]), skipped


def _settle(
    module: nn.Module, groups: Sequence[Group], inputs: Mapping[str, Tensor]
) -> tuple[list[Group], list[tuple[str, str]]]:
    plain = [_with(group, ()) for group in groups]
    if not groups or not _problem(module, plain, inputs):
        return plain, []
    known: dict[object, tuple[set[str] | None, str]] = {}
    settled, skipped = [], []
    for group in groups:
        pattern = _pattern(module, group)
        if pattern not in known:
            known[pattern] = _subset(module, group, inputs)
        names, reason = known[pattern]
        if names is None:
            skipped.append((group.name, reason))
        else:
            settled.append(_with(group, [each for each in group.counts if _relative(group, each) in names]))
    if settled and _problem(module, settled, inputs):
        return _one_by_one(module, settled, inputs, skipped)
    return settled, skipped


def _with(group: Group, counts: Sequence[Count]) -> Group:
    return replace(group, counts=tuple(counts))


def _one_by_one(
    module: nn.Module, groups: Sequence[Group], inputs: Mapping[str, Tensor], skipped: list[tuple[str, str]]
) -> tuple[list[Group], list[tuple[str, str]]]:
    settled: list[Group] = []
    for group in groups:
        if problem := _problem(module, [*settled, group], inputs):
            skipped = [*skipped, (group.name, problem)]
        else:
            settled.append(group)
    return settled, skipped


def _subset(module: nn.Module, group: Group, inputs: Mapping[str, Tensor]) -> tuple[set[str] | None, str]:
    """The attributes that have to change with a group, or None and what happens without a unit of it."""
    first = ""
    for counts in _subsets(group.counts):
        problem = _problem(module, [_with(group, counts)], inputs)
        if not problem:
            return {_relative(group, each) for each in _least(module, group, counts, inputs)}, ""
        first = first or problem
    return None, f"without one of its units, {first}"


def _subsets(counts: tuple[Count, ...]) -> Iterator[tuple[Count, ...]]:
    """The likely ones: none, those that can mean nothing else, all, those about heads, each alone, all but one."""
    yield ()
    yield tuple(each for each in counts if not each.doubtful)
    yield counts
    yield tuple(each for each in counts if "head" in each.attribute and "dim" not in each.attribute)
    yield from ((each,) for each in counts)
    yield from (tuple(each for each in counts if each is not one) for one in counts)


def _least(
    module: nn.Module, group: Group, counts: tuple[Count, ...], inputs: Mapping[str, Tensor]
) -> tuple[Count, ...]:
    """Without those that may as well stay: a number may only happen to be the same."""
    for one in counts:
        fewer = tuple(each for each in counts if each is not one)
        if not _problem(module, [_with(group, fewer)], inputs):
            counts = fewer
    return counts


def _problem(module: nn.Module, groups: Sequence[Group], inputs: Mapping[str, Tensor]) -> str:
    kept = [(group, np.delete(np.arange(group.units), group.units // 3)) for group in groups]
    try:
        changed = operate(shallow_copy(module), surgery(module, kept))
    except ModelError as error:
        return error.message
    return difference(module, changed, kept, inputs)


def _relative(group: Group, count: Count) -> str:
    top = _top(group)
    return f"{count.module.removeprefix(top)}:{count.attribute}" if count.module else f"/:{count.attribute}"


def _top(group: Group) -> str:
    return common([part.tensor.rpartition(".")[0] for part in group.parts])


def _pattern(module: nn.Module, group: Group) -> object:
    """The same for groups that lie in layers of the same structure."""
    top = _top(group)
    parts = tuple((part.tensor.removeprefix(top), part.dim, part.indices.shape, part.size) for part in group.parts)
    counts = tuple((_relative(group, each), each.value, each.per_unit) for each in group.counts)
    return type(module.get_submodule(top)), parts, counts
