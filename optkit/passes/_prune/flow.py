"""What flows along the graph of a module: for each dimension of each tensor, an atom for each index."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optkit.passes._prune.atoms import COPIES, HEADS, NORMED, STAY, Atoms, Fold, Ids
from optkit.passes._prune.units import Role

Source = tuple[str, int]
"""A parameter or buffer by name, and one of its dimensions."""


@dataclass(frozen=True, eq=False)
class Dim:
    """One dimension of a tensor."""

    atoms: Ids
    source: Source | None = None
    """Where the tensor is a weight, which dimension of which one."""

    def __len__(self) -> int:
        return len(self.atoms)


Value = tuple[Dim, ...]
"""A tensor."""


def stay(size: int) -> Dim:
    """A dimension that nothing can be cut from."""
    return Dim(np.full(size, STAY, np.int64))


def staying(shape: Sequence[int]) -> Value:
    """A tensor that nothing can be cut from."""
    return tuple(stay(int(size)) for size in shape)


@dataclass
class Flow:
    """All that the rules write to."""

    atoms: Atoms = field(default_factory=Atoms)
    roles: dict[Source, Role] = field(default_factory=dict)
    makers: set[Source] = field(default_factory=set)
    """Dimensions of weights that make a dimension of an activation; they may be read elsewhere."""
    folds: list[Fold] = field(default_factory=list)

    def unite(self, first: Dim, second: Dim) -> None:
        """Both are the same units."""
        self.atoms.unite(first.atoms, second.atoms)

    def pin(self, dims: Sequence[Dim], reason: str) -> None:
        """Nothing is cut from these."""
        for dim in dims:
            self.atoms.pin(dim.atoms, reason)

    def is_weight(self, value: Value) -> bool:
        """Whether a tensor is a parameter or buffer, maybe transposed."""
        return any(dim.source for dim in value)

    def role(self, dim: Dim, role: Role) -> None:
        """Say what a weight's dimension does; reading outweighs making."""
        if dim.source and self.roles.get(dim.source) != "in":
            self.roles[dim.source] = role

    def made_by(self, dim: Dim) -> Dim:
        """The dimension of an activation that this dimension of a weight makes."""
        self.role(dim, "out")
        if dim.source:
            self.makers.add(dim.source)
        return Dim(dim.atoms)

    def contract(self, first: Dim, second: Dim) -> None:
        """Both are summed over together; between activations all of it stays."""
        self.unite(first, second)
        if not (first.source or second.source):
            self.pin([first, second], "two activations are multiplied along it")
        self.role(first, "in")
        self.role(second, "in")

    def broadcast(self, values: Sequence[Value], shape: Sequence[int]) -> Value:
        """The result of an elementwise operator."""
        return tuple(self._same(values, axis - len(shape), int(size)) for axis, size in enumerate(shape))

    def _same(self, values: Sequence[Value], axis: int, size: int) -> Dim:
        dims = [value[axis] for value in values if len(value) >= -axis and len(value[axis]) == size]
        for dim in dims[1:]:
            self.unite(dims[0], dim)
        return Dim(dims[0].atoms) if dims else stay(size)

    def batch(self, values: Sequence[Value], shape: Sequence[int]) -> Value:
        """Leading dimensions of a product of activations."""
        dims = self.broadcast(values, shape)
        for dim in dims:
            self.atoms.mark(dim.atoms[dim.atoms != STAY], HEADS)
        return dims

    def copies(self, size: int) -> Dim:
        """Of one index: units of their own until they meet others."""
        atoms = self.atoms.fresh(size)
        self.atoms.mark(atoms, COPIES)
        return Dim(atoms)

    def split(self, dim: Dim, sizes: Sequence[int]) -> list[Dim]:
        """Take a dimension apart, the last part running fastest."""
        if len(sizes) == 1:
            return [dim]
        if not self.atoms.free(dim.atoms).any():
            return [stay(size) for size in sizes]
        factors = tuple(self.atoms.fresh(size) for size in sizes)
        self.folds.append(Fold(dim.atoms, factors))
        return [Dim(each) for each in factors]

    def merge(self, dims: Sequence[Dim]) -> Dim:
        """Put dimensions together to one."""
        if len(dims) == 1:
            return dims[0]
        size = int(np.prod([len(dim) for dim in dims]))
        if not any((dim.atoms != STAY).any() for dim in dims):
            return stay(size)
        whole = self.atoms.fresh(size)
        self.folds.append(Fold(whole, tuple(dim.atoms for dim in dims)))
        return Dim(whole)


@dataclass(frozen=True)
class Call:
    """One operator with its arguments by the names of its schema."""

    flow: Flow
    operator: str
    arguments: Mapping[str, Any]
    """Tensors as Value, missing ones as None."""
    shapes: tuple[tuple[int, ...], ...]
    """Of the results."""

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, *names: str) -> Any:
        """The first of these arguments that the operator has, or None."""
        return next((self.arguments[name] for name in names if name in self.arguments), None)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the only result."""
        return self.shapes[0]

    def axis(self, rank: int, name: str = "dim") -> int:
        """A dimension counted from the front."""
        return int(self.arguments[name]) % max(rank, 1)

    def axes(self, rank: int, name: str = "dim") -> list[int]:
        """Dimensions counted from the front; all where none is named."""
        given = self.arguments.get(name)
        if given is None or given == []:
            return list(range(rank))
        return [int(each) % max(rank, 1) for each in (given if isinstance(given, list | tuple) else [given])]

    def tensors(self) -> list[Value]:
        """All arguments that are tensors, in order."""
        return [each for given in self.arguments.values() for each in _values(given)]


def is_value(given: Any) -> bool:
    """Whether an argument is a tensor."""
    return isinstance(given, tuple) and all(isinstance(each, Dim) for each in given)


def _values(given: Any) -> list[Value]:
    if is_value(given):
        return [given]
    return [each for each in given if is_value(each)] if isinstance(given, list) else []


Result = Value | list[Value]
Rule = Callable[[Call], Result]
"""What an operator makes of what flows into it."""


def no_rule(call: Call) -> Result:
    """Nothing is known of the operator, or of this form of it: all that goes in stays."""
    for value in call.tensors():
        call.flow.pin(value, f"it goes into {call.operator}, which has no rule")
    return [staying(shape) for shape in call.shapes]


def plain(dim: Dim) -> Dim:
    """The same units, of no weight."""
    return Dim(dim.atoms)


def normed(flow: Flow, dims: Sequence[Dim]) -> None:
    """Their units can go, and what is summed over them is another number then."""
    for dim in dims:
        flow.atoms.mark(dim.atoms[dim.atoms != STAY], NORMED)
