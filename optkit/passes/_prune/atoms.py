"""Union-find over the indices of all dimensions of all tensors of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
"""One atom for each index of a dimension."""

STAY = 0
"""The atom of indices that nothing can be cut from: batch, positions, pixels, constants."""

NORMED, HEADS, CHANNELS, COPIES = 1, 2, 4, 8
"""Marks: passes a mean over itself; is the batch of a product of activations; belongs to a convolution; repeats one."""

MEETS = "it meets a dimension that stays as it is"
TOGETHER = "it lies within a unit that goes as a whole"


class Atoms:
    """Sets of atoms that must go together; each set may be pinned (with a reason) and carry marks."""

    def __init__(self) -> None:
        self._parent = np.zeros(1024, np.int64)
        self._why = np.zeros(1024, np.int32)
        self._marks = np.zeros(1024, np.uint8)
        self._count = 1
        self._reasons = ["", MEETS]
        self._why[STAY] = 1

    def fresh(self, size: int) -> Ids:
        """So many new atoms, each alone."""
        end = self._count + size
        if end > len(self._parent):
            self._grow(end)
        new = np.arange(self._count, end, dtype=np.int64)
        self._parent[new] = new
        self._count = end
        return new

    def _grow(self, needed: int) -> None:
        more = 2 * max(needed, len(self._parent)) - len(self._parent)
        self._parent = np.append(self._parent, np.zeros(more, np.int64))
        self._why = np.append(self._why, np.zeros(more, np.int32))
        self._marks = np.append(self._marks, np.zeros(more, np.uint8))

    def find(self, atoms: Ids) -> Ids:
        """The root of the set of each atom."""
        roots = self._parent[atoms]
        while ((further := self._parent[roots]) != roots).any():
            roots = further
        self._parent[atoms] = roots
        return roots

    def unite(self, first: Ids, second: Ids) -> None:
        """Put each pair of atoms into one set; what meets STAY is pinned."""
        if first is second:
            return
        self.pin(first[second == STAY], MEETS)
        self.pin(second[first == STAY], MEETS)
        loose = (first != STAY) & (second != STAY)
        one, other = self.find(first[loose]), self.find(second[loose])
        before = np.concatenate([one, other])
        while (apart := one != other).any():
            one, other = one[apart], other[apart]
            np.minimum.at(self._parent, np.maximum(one, other), np.minimum(one, other))
            one, other = self.find(one), self.find(other)
        after = self.find(before)
        np.maximum.at(self._why, after, self._why[before])
        np.bitwise_or.at(self._marks, after, self._marks[before])

    def pin(self, atoms: Ids, reason: str) -> None:
        """Let these sets stay; the first reason of a set is kept."""
        roots = self.find(atoms)
        free = roots[self._why[roots] == 0]
        if not free.size:
            return
        if reason not in self._reasons:
            self._reasons.append(reason)
        self._why[free] = self._reasons.index(reason)

    def mark(self, atoms: Ids, mark: int) -> None:
        """Set a mark on these sets."""
        roots = self.find(atoms)
        self._marks[roots] |= np.uint8(mark)

    def free(self, atoms: Ids) -> NDArray[np.bool_]:
        """Which of them may be cut."""
        return np.asarray(self._why[self.find(atoms)] == 0)

    def marked(self, atoms: Ids, mark: int) -> bool:
        """Whether one of their sets carries the mark."""
        return bool((self._marks[self.find(atoms)] & mark).any())

    def reason(self, atoms: Ids) -> str:
        """Why the first pinned one of them is pinned; empty where all are free."""
        why = self._why[self.find(atoms)]
        return self._reasons[int(why[why > 0][0])] if why.any() else ""


@dataclass(frozen=True)
class Fold:
    """One dimension that a reshape takes apart into several, or the other way round.

    Which of them the units of the whole follow is known only when all pins and marks are: of those that are free, heads
    come first; copies of one index and what passes a norm last; then the larger, then the outer.
    """

    whole: Ids
    """Flat, the last factor running fastest."""
    factors: tuple[Ids, ...]

    def settle(self, atoms: Atoms) -> None:
        """Tie the whole to one factor; the other factors stay."""
        free = [axis for axis, each in enumerate(self.factors) if atoms.free(each).any()]
        if not free:
            atoms.pin(self.whole, MEETS)
            return
        chosen = max(free, key=lambda axis: self._worth(axis, atoms))
        for axis, factor in enumerate(self.factors):
            if axis != chosen:
                atoms.pin(factor, TOGETHER)
        atoms.unite(self.whole, spread(self.factors, chosen))

    def _worth(self, axis: int, atoms: Atoms) -> tuple[bool, bool, bool, int, int]:
        copies, heads, normed = (atoms.marked(self.factors[axis], mark) for mark in (COPIES, HEADS, NORMED))
        return not copies, heads, not normed, len(self.factors[axis]), -axis


def spread(factors: Sequence[Ids], axis: int) -> Ids:
    """For each index of the whole, the atom of one of its factors."""
    shape = [1] * len(factors)
    shape[axis] = -1
    sizes = tuple(len(each) for each in factors)
    return np.ascontiguousarray(np.broadcast_to(factors[axis].reshape(shape), sizes)).ravel()
