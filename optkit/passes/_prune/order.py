"""What goes first: all prunable units of a model in one row, in chunks that leave whole multiples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from optkit.passes._prune.score import Scores
from optkit.passes._prune.target import Counted
from optkit.passes._prune.units import Group, Part
from optkit.passes._torch_cost import counted

if TYPE_CHECKING:
    from torch import Tensor, nn

Kept = dict[str, list[int]]
"""Group name -> the units that stay, ascending; groups that lose none are left out."""


@dataclass(frozen=True)
class Room:
    """How far groups may shrink."""

    min_share: float
    multiple: int
    whole: Mapping[str, int]
    """Group name -> units that it had before any pruning."""

    def sizes(self, group: Group) -> list[int]:
        """Sizes that it can have, from what it has now downwards."""
        step = self.multiple if group.kind != "heads" and group.units >= self.multiple else 1
        least = math.ceil(max(1.0, self.min_share * self.whole.get(group.name, group.units)) / step) * step
        first = (group.units - 1) // step * step
        return [group.units, *range(first, least - 1, -step)]

    def too_small(self, groups: Iterable[Group]) -> list[tuple[str, str]]:
        """(group, reason) of those that cannot shrink."""
        reason = "its {} {} are as few as min_share and multiple allow"
        return [(g.name, reason.format(g.units, g.kind)) for g in groups if len(self.sizes(g)) == 1]


@dataclass(frozen=True)
class Chunk:
    """Units of one group that go together."""

    group: str
    units: tuple[int, ...]
    rank: float
    """What is lowest goes first."""


def in_order(
    groups: Sequence[Group], scores: Mapping[str, Scores], room: Room, unit_costs: Mapping[str, float] | None = None
) -> list[Chunk]:
    """All chunks, the first to go first; within a group what matters least goes first.

    Args:
        groups: those to prune.
        scores: of each.
        room: how far they may shrink.
        unit_costs: of one unit of each group, where scores of several groups compare: then what matters least for what
            it costs goes first; groups whose units cost nothing last. Else units count relative to their group's mean.
    """
    chunks: list[Chunk] = []
    for group in groups:
        found = scores[group.name]
        cost = unit_costs[group.name] if unit_costs is not None else float(found.mean()) or 1.0
        for units in _chunks(group, found, room):
            rank = float(found[list(units)].mean()) / cost if cost else math.inf
            chunks.append(Chunk(group.name, units, rank))
    return sorted(chunks, key=lambda chunk: chunk.rank)


def evenly(groups: Sequence[Group], scores: Mapping[str, Scores], room: Room) -> list[Chunk]:
    """As ``in_order``, but so that all groups lose the same share."""
    chunks = []
    for group in groups:
        whole, left = room.whole.get(group.name, group.units), group.units
        for units in _chunks(group, scores[group.name], room):
            left -= len(units)
            chunks.append(Chunk(group.name, units, 1 - left / whole))
    return sorted(chunks, key=lambda chunk: chunk.rank)


def _chunks(group: Group, scores: Scores, room: Room) -> Iterable[tuple[int, ...]]:
    order = np.argsort(scores, kind="stable").tolist()
    sizes = room.sizes(group)
    ends = [group.units - size for size in sizes]
    return [tuple(order[start:end]) for start, end in pairwise(ends)]


def kept_without(groups: Sequence[Group], gone: Iterable[Chunk]) -> Kept:
    """What stays when these chunks are gone."""
    lost: dict[str, set[int]] = {}
    for chunk in gone:
        lost.setdefault(chunk.group, set()).update(chunk.units)
    return {
        group.name: [unit for unit in range(group.units) if unit not in lost[group.name]]
        for group in groups
        if group.name in lost
    }


def unit_costs(
    module: nn.Module, groups: Sequence[Group], inputs: Mapping[str, Tensor], what: Counted
) -> dict[str, float]:
    """Group name -> about what one unit costs: elements of its slices, for MACs times how often each is used."""
    from optkit.passes._prune.score_data import parameters

    weights = parameters(module)
    uses = _uses(module, inputs) if what == "macs" else {}

    def of(part: Part) -> float:
        weight = weights.get(part.tensor)
        if weight is None:
            return 0.0
        used = 1.0 if what == "parameters" else uses.get(part.tensor.rpartition(".")[0], 0.0) * (weight.dim() > 1)
        return float(used * weight.numel() / weight.shape[part.dim] * part.indices.shape[1])

    return {group.name: sum(map(of, group.parts)) for group in groups}


def _uses(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, float]:
    """Layer -> multiplications for each element of its own weights, on these inputs."""
    flops = counted(module, inputs).get_flop_counts()
    macs = {name.partition(".")[2]: sum(by.values()) / 2 for name, by in flops.items()}
    sizes = {
        name: sum(weight.numel() for weight in layer.parameters(recurse=False) if weight.dim() > 1)
        for name, layer in module.named_modules()
    }
    return {name: macs[name] / size for name, size in sizes.items() if size and name in macs}
