"""How units pass each operator that only moves data: reshapes, transpositions, slices, concatenations."""

from __future__ import annotations

from typing import Any

import numpy as np

from optkit.passes._prune.flow import Call, Dim, Result, Rule, Value, no_rule, stay, staying
from optkit.passes._prune.reshape import reshape


def permute(call: Call) -> Result:
    """Dimensions in another order."""
    x = call["self"]
    return tuple(x[axis] for axis in call.axes(len(x), "dims"))


def movedim(call: Call) -> Result:
    """Some dimensions go to other places, the others keep their order."""
    x = call["self"]
    source, target = (call.axes(len(x), name) for name in ("source", "destination"))
    rest = iter([axis for axis in range(len(x)) if axis not in source])
    moved = dict(zip(target, source, strict=True))
    return tuple(x[moved[at] if at in moved else next(rest)] for at in range(len(x)))


def transpose(call: Call) -> Result:
    """Two dimensions change places."""
    x = call["self"]
    order = list(range(len(x)))
    if len(x) > 1:
        one, other = (call.axis(len(x), n) for n in ("dim0", "dim1")) if call.get("dim0") is not None else (0, 1)
        order[one], order[other] = other, one
    return tuple(x[axis] for axis in order)


def turn(call: Call) -> Result:
    """The last two dimensions change places: ``.mT``, ``.t()``."""
    x = call["self"]
    return (*x[:-2], *reversed(x[-2:]))


def unsqueeze(call: Call) -> Result:
    """A new dimension of size 1."""
    x = call["self"]
    axis = call.axis(len(x) + 1)
    return (*x[:axis], stay(1), *x[axis:])


def squeeze(call: Call) -> Result:
    """Dimensions of size 1 are gone."""
    x = call["self"]
    axes = call.axes(len(x))
    return tuple(dim for axis, dim in enumerate(x) if axis not in axes or len(dim) != 1)


def select(call: Call) -> Result:
    """One index of a dimension."""
    x = call["self"]
    axis = call.axis(len(x))
    call.flow.pin([x[axis]], "one index of it is taken")
    return (*x[:axis], *x[axis + 1 :])


def slice_(call: Call) -> Result:
    """A range of a dimension."""
    x = call["self"]
    axis = call.axis(len(x))
    taken = x[axis].atoms[slice(call["start"], call["end"], call["step"])]
    return x if len(taken) == len(x[axis]) else _with(x, axis, Dim(taken))


def _with(x: Value, axis: int, dim: Dim) -> Value:
    return (*x[:axis], dim, *x[axis + 1 :])


def split(call: Call) -> Result:
    """Pieces of a dimension; where all are of one size, the same index of each is one unit."""
    x = call["self"]
    axis = call.axis(len(x))
    ends = np.cumsum([shape[axis] for shape in call.shapes])[:-1]
    pieces = np.split(x[axis].atoms, ends)
    for piece in pieces[1:]:
        if len({len(each) for each in pieces}) == 1:
            call.flow.atoms.unite(pieces[0], piece)
    return [_with(x, axis, Dim(piece)) for piece in pieces]


def glu(call: Call) -> Result:
    """``a * sigmoid(b)`` of two halves."""
    x = call["self"]
    axis = call.axis(len(x))
    one, other = np.split(x[axis].atoms, 2)
    call.flow.atoms.unite(one, other)
    return _with(x, axis, Dim(one))


def unbind(call: Call) -> Result:
    """Every index of a dimension as a tensor of its own."""
    return [select(call)] * len(call.shapes)  # type: ignore[list-item]


def cat(call: Call) -> Result:
    """Tensors behind each other."""
    values = [value for value in call["tensors"] if len(value) == len(call.shape)]
    axis = call.axis(len(call.shape))
    joined = Dim(np.concatenate([value[axis].atoms for value in values]))
    rest = call.flow.broadcast([_with(value, axis, joined) for value in values], call.shape)
    return _with(rest, axis, joined)


def stack(call: Call) -> Result:
    """Tensors beside each other along a new dimension."""
    axis = call.axis(len(call.shape))
    size = call.shape[axis]
    inner = call.flow.broadcast(call["tensors"], (*call.shape[:axis], *call.shape[axis + 1 :]))
    return (*inner[:axis], stay(size), *inner[axis:])


def expand(call: Call) -> Result:
    """A dimension of size 1 becomes as many as one likes: these are units of their own until they meet others."""
    x = call["self"]
    lead = len(call.shape) - len(x)
    return tuple(
        x[axis - lead] if axis >= lead and len(x[axis - lead]) == size else call.flow.copies(size)
        for axis, size in enumerate(call.shape)
    )


def repeat(call: Call) -> Result:
    """The whole again and again."""
    x = (*staying([1] * (len(call.shape) - len(call["self"]))), *call["self"])
    pairs = zip(x, call.shape, strict=True)
    return tuple(_repeated(call, dim, np.tile(dim.atoms, size // len(dim)), size) for dim, size in pairs)


def repeat_interleave(call: Call) -> Result:
    """Every index several times: grouped heads."""
    x = call["self"]
    if call["dim"] is None:
        return no_rule(call)
    axis = call.axis(len(x))
    size = call.shape[axis]
    return _with(x, axis, _repeated(call, x[axis], np.repeat(x[axis].atoms, size // len(x[axis])), size))


def _repeated(call: Call, dim: Dim, atoms: Any, size: int) -> Dim:
    if len(dim) == size:
        return dim
    return Dim(atoms) if len(dim) > 1 else call.flow.copies(size)


def index(call: Call) -> Result:
    """Tensors of indices pick from some dimensions; the others pass."""
    x, indices = call["self"], call["indices"]
    picked = [axis for axis, each in enumerate(indices) if each is not None]
    call.flow.pin([x[axis] for axis in picked], "it is looked up by index")
    rest = [dim for axis, dim in enumerate(x) if axis not in picked]
    rank = len(call.shape) - len(rest)
    adjacent = picked == list(range(picked[0], picked[-1] + 1))
    at = picked[0] if adjacent else 0
    return (*rest[:at], *staying(call.shape[at : at + rank]), *rest[at:])


def index_select(call: Call) -> Result:
    """Some indices of one dimension."""
    x = call["self"]
    axis = call.axis(len(x))
    call.flow.pin([x[axis]], "it is looked up by index")
    return _with(x, axis, stay(call.shape[axis]))


def turned_round(call: Call) -> Result:
    """Moved along some dimensions: flip, roll; these stay."""
    x = call["self"]
    call.flow.pin([x[axis] for axis in call.axes(len(x), "dims")], f"{call.operator} moves along it")
    return tuple(x)


def pad(call: Call) -> Result:
    """Elements before and behind the last dimensions."""
    x, widths = call["self"], call["pad"]
    moved = [len(x) - 1 - at // 2 for at, width in enumerate(widths) if width]
    call.flow.pin([x[axis] for axis in moved], "it is padded")
    return tuple(stay(size) if axis in moved else x[axis] for axis, size in enumerate(call.shape))


def pixel_shuffle(call: Call) -> Result:
    """``[N, C r r, H, W] -> [N, C, H r, W r]``."""
    flow, x, factor = call.flow, call["self"], int(call["upscale_factor"])
    channels, pixels = flow.split(x[-3], (len(x[-3]) // factor**2, factor**2))
    flow.pin([pixels], "it becomes an image's extent")
    return (*x[:-3], channels, *staying(call.shape[-2:]))


_VIEWS = ["view", "reshape", "flatten", "unflatten", "_unsafe_view", "view_as", "reshape_as", "unsafe_view"]
_TABLE: list[tuple[Rule, list[str]]] = [
    (reshape, _VIEWS),
    (permute, ["permute"]),
    (movedim, ["movedim", "moveaxis"]),
    (transpose, ["transpose", "swapaxes", "t"]),
    (turn, ["mT", "numpy_T", "matrix_H"]),
    (unsqueeze, ["unsqueeze"]),
    (squeeze, ["squeeze"]),
    (select, ["select"]),
    (slice_, ["slice"]),
    (split, ["split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk"]),
    (glu, ["glu"]),
    (unbind, ["unbind"]),
    (cat, ["cat", "concat"]),
    (stack, ["stack"]),
    (expand, ["expand", "expand_as", "broadcast_to"]),
    (repeat, ["repeat"]),
    (repeat_interleave, ["repeat_interleave"]),
    (index, ["index"]),
    (index_select, ["index_select"]),
    (turned_round, ["flip", "roll"]),
    (pad, ["pad", "constant_pad_nd"]),
    (pixel_shuffle, ["pixel_shuffle"]),
]
MOVES: dict[str, Rule] = {name: rule for rule, names in _TABLE for name in names}
