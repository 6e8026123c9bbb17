"""How units pass operators that compute: table operator -> rule. Those that only move data are in ``moves``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optkit.passes._prune.flow import Call, Result, Rule, Value, normed, plain, stay, staying
from optkit.passes._prune.products import PRODUCTS


def elementwise(call: Call) -> Result:
    """Operands broadcast; the same index of a dimension is the same unit in all of them."""
    return call.flow.broadcast(call.tensors(), call.shape)


def first_alone(call: Call) -> Result:
    """The result lies as the first tensor does."""
    return [tuple(map(plain, call.tensors()[0]))] * len(call.shapes)


def same(call: Call) -> Result:
    """The first tensor itself: copies and casts."""
    return call.tensors()[0]


def batch_norm(call: Call) -> Result:
    """Scale and shift of each channel alone."""
    x = call["input"]
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call.get(name):
            call.flow.unite(x[1], call[name][0])
    return [tuple(map(plain, x)), *map(staying, call.shapes[1:])]


def layer_norm(call: Call) -> Result:
    """Normalized over the last dimensions, then scaled and shifted."""
    x = call["input"]
    last = x[len(x) - len(call["normalized_shape"]) :]
    normed(call.flow, last)
    for weight in (call.get("weight"), call.get("bias")):
        for dim, other in zip(last, weight or (), strict=False):
            call.flow.unite(dim, other)
    return [tuple(map(plain, x)), *map(staying, call.shapes[1:])]


def group_norm(call: Call) -> Result:
    """The channels of one group of the norm are one unit."""
    flow, x = call.flow, call.get("input")
    channels, groups = x[1].atoms, int(call.get("num_groups", "group"))
    flow.atoms.unite(np.repeat(channels.reshape(groups, -1)[:, 0], len(channels) // groups), channels)
    for weight in (call["weight"], call["bias"]):
        if weight:
            flow.unite(x[1], weight[0])
    return [tuple(map(plain, x)), *map(staying, call.shapes[1:])]


def prelu(call: Call) -> Result:
    """One slope for all, or one for each channel."""
    x, (slope,) = call["self"], call["weight"]
    if len(slope) == len(x[1]):
        call.flow.unite(x[1], slope)
    return tuple(map(plain, x))


def mean(call: Call) -> Result:
    """Sums, means and norms over some dimensions: possible with fewer units, and another number."""
    x = call.tensors()[0]
    axes = call.axes(len(x))
    normed(call.flow, [x[axis] for axis in axes])
    return _reduced(call, x, axes)


def selecting(call: Call) -> Result:
    """Extremes and the like over some dimensions: these stay."""
    x = call.tensors()[0]
    axes = call.axes(len(x))
    call.flow.pin([x[axis] for axis in axes], f"{call.operator} goes over it")
    return _reduced(call, x, axes)


def _reduced(call: Call, x: Value, axes: Sequence[int]) -> Result:
    if call.get("keepdim"):
        out = tuple(stay(1) if axis in axes else plain(dim) for axis, dim in enumerate(x))
    else:
        out = tuple(plain(dim) for axis, dim in enumerate(x) if axis not in axes)
    return [out] * len(call.shapes)


def along(call: Call) -> Result:
    """The shape stays, and every element depends on all of one dimension: softmax, cumsum, sort."""
    x = call.tensors()[0]
    call.flow.pin([x[axis] for axis in call.axes(len(x))], f"{call.operator} goes along it")
    out = tuple(map(plain, x))
    return [out if len(shape) == len(x) else staying(shape) for shape in call.shapes]


def spatial(call: Call) -> Result:
    """Pooling and resizing: batch and channels pass, the rest is pixels."""
    x = call.tensors()[0]
    moved = next(rank for rank in (3, 2, 1) if f"{rank}d" in call.operator)
    call.flow.pin(x[len(x) - moved :], "it is an image's extent")
    kept = tuple(map(plain, x[: len(x) - moved]))
    return [(*kept, *staying(shape[len(x) - moved :])) for shape in call.shapes]


_POOLS = [f"{kind}_pool{rank}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for rank in (1, 2, 3)]
_POOLS += [f"{kind}_pool{rank}d_with_indices" for kind in ("max", "adaptive_max") for rank in (2, 3)]
_RESIZES = [f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "bilinear2d", "bicubic2d", "nearest3d")]
_PADS = [f"{kind}_pad{rank}d" for kind in ("reflection", "replication") for rank in (1, 2, 3)]
_DROPOUTS = ["dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"]

_TABLE: list[tuple[Rule, list[str]]] = [
    (batch_norm, ["batch_norm", "instance_norm", "_native_batch_norm_legit_no_training", "native_batch_norm"]),
    (layer_norm, ["layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm"]),
    (group_norm, ["group_norm", "native_group_norm"]),
    (prelu, ["prelu", "_prelu_kernel"]),
    (mean, ["sum", "mean", "var", "std", "norm", "linalg_vector_norm"]),
    (selecting, ["amax", "amin", "max", "min", "argmax", "argmin", "prod", "logsumexp", "any", "all", "median"]),
    (along, ["softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "sort", "argsort"]),
    (spatial, [*_POOLS, *_RESIZES, *_PADS]),
    (same, ["to", "_to_copy", "contiguous", "clone", "alias", "detach", "lift_fresh_copy", "type_as", *_DROPOUTS]),
    (first_alone, ["zeros_like", "ones_like", "full_like", "hardswish", "hardtanh", "native_dropout", "triu", "tril"]),
    (elementwise, ["where", "rsub", "float_power", "copy", "square"]),
]
RULES: dict[str, Rule] = {**PRODUCTS, **{name: rule for rule, names in _TABLE for name in names}}
