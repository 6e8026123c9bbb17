"""What can be taken out of a module: units that go as a whole, where they lie, and the numbers that count them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Role = Literal["out", "in", "along"]
Kind = Literal["channels", "features", "heads"]


@dataclass(frozen=True)
class Part:
    """Where the units of a group lie in one dimension of one tensor."""

    tensor: str
    """Its name as in the state_dict: ``features.0.weight``; of a tied one the first name."""
    dim: int
    indices: NDArray[np.int64]
    """[units, width]: unit u owns these indices of the dimension, ascending."""
    role: Role
    """``out`` makes the units, ``in`` reads them, ``along`` goes with them (bias, norm, depthwise convolution)."""
    names: tuple[str, ...] = ()
    """All names of the tensor, ``tensor`` the first of them."""
    size: int = 0
    """Of the whole dimension, before anything is cut."""


@dataclass(frozen=True)
class Count:
    """An int attribute of a module that counts units, and that ``forward`` reads."""

    module: str
    attribute: str
    value: int
    per_unit: int
    """How much one unit adds to it: 1 for ``num_heads``, the size of a head for ``embed_dim``."""
    doubtful: bool = False
    """Another dimension of the same tensors has this size too."""


@dataclass(frozen=True)
class Group:
    """Units each of which can be taken out alone, in all of these tensors at once."""

    name: str
    """For people, by the layers that make the units: ``features.0``, ``encoder.layer.0.attention heads``."""
    kind: Kind
    units: int
    parts: tuple[Part, ...]
    through_norm: bool
    """The units pass a mean over themselves (layer norm, RMS norm): the others see it when one goes."""
    counts: tuple[Count, ...] = field(default=())
    """Attributes to change with them, beside those of torch's own layers."""


@dataclass(frozen=True)
class Found:
    """What can be cut, and which layers cannot be and why."""

    groups: tuple[Group, ...]
    skipped: tuple[tuple[str, str], ...]
    """(layer, reason)."""
