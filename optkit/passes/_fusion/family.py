"""What a family of fusions is: rewrites that belong together, are chosen together, and are timed together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import onnx_ir as ir

Device = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Fired:
    """What a family did to a graph."""

    count: int = 0
    """How many places it rewrote."""
    refused: tuple[tuple[str, str], ...] = ()
    """(where, reason) of places that look alike and were left as they are."""


@dataclass(frozen=True)
class Family:
    """Rewrites of one kind, a file beside this one."""

    name: str
    """As in the recipe: ``families: [attention]``."""
    rewrite: str
    """``before -> after``, one line."""
    apply: Callable[[ir.Model], Fired]
    """Rewrites the graph in place, wherever it finds the form. Inputs and outputs keep name, dtype and shape."""
    devices: frozenset[Device] = frozenset({"cpu", "gpu"})
    """Where it is applied when nothing is measured."""
    why: str = ""
    """Where not, why: what was measured."""
