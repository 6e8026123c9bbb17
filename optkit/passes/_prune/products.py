"""How units pass products with weights and with each other, and look-ups in tables: table operator -> rule."""

from __future__ import annotations

import numpy as np

from optkit.passes._prune.atoms import CHANNELS
from optkit.passes._prune.flow import Call, Dim, Flow, Result, Rule, Value, no_rule, normed, plain, staying


def linear(call: Call) -> Result:
    """``[..., in] x [out, in] + [out] -> [..., out]``."""
    flow, (*lead, last), weight = call.flow, call["input"], call["weight"]
    flow.contract(last, weight[-1])
    if len(weight) == 1:
        return tuple(lead)
    out = flow.made_by(weight[0])
    _add(flow, out, call["bias"])
    return (*map(plain, lead), out)


def _add(flow: Flow, out: Dim, bias: Value | None) -> None:
    if bias and len(bias[-1]) == len(out):
        flow.unite(out, bias[-1])


def matmul(call: Call) -> Result:
    """``[..., n, k] x [..., k, m] -> [..., n, m]``, either a vector."""
    return _product(call.flow, call.get("self"), call.get("other", "mat2", "vec"))


def add_matmul(call: Call) -> Result:
    """``bias + x @ y``."""
    x, y = call.get("mat1", "batch1"), call.get("mat2", "batch2")
    product = _product(call.flow, x, y)
    return call.flow.broadcast([product, call["self"]], call.shape)


def _product(flow: Flow, x: Value, y: Value) -> Value:
    rows, columns = x[-2:-1], y[-1:] if len(y) > 1 else ()
    flow.contract(x[-1], y[-2] if len(y) > 1 else y[-1])
    lead = max(x[:-2], y[:-2], key=len)
    shape = [max(len(a), len(b)) for a, b in zip(*(_padded(each[:-2], len(lead)) for each in (x, y)), strict=True)]
    if flow.is_weight(x) or flow.is_weight(y):
        batch = flow.broadcast([x[:-2], y[:-2]], shape)
        return (*batch, *(flow.made_by(dim) for dim in (*rows, *columns)))
    flow.pin([*rows, *columns], "activations are multiplied with each other")
    return (*flow.batch([x[:-2], y[:-2]], shape), *rows, *columns)


def _padded(dims: Value, rank: int) -> Value:
    return (*staying([1] * (rank - len(dims))), *dims)


def einsum(call: Call) -> Result:
    """A product of two tensors by letters: ``bqhd,bkhd->bhqk``."""
    given, arrow, result = call["equation"].replace(" ", "").partition("->")
    letters = given.split(",")
    if "." in given or not arrow or len(letters) != 2 or any(len(set(own)) < len(own) for own in letters):
        return no_rule(call)
    flow = call.flow
    x, y = (dict(zip(own, value, strict=True)) for own, value in zip(letters, call["tensors"], strict=True))
    weighted = any(flow.is_weight(value) for value in call["tensors"])
    out: dict[str, Dim] = {}
    for letter in {**x, **y}:
        if letter not in x or letter not in y:
            out[letter] = _alone(flow, (x | y)[letter], letter in result, weighted)
        elif letter in result:
            shape = [max(len(x[letter]), len(y[letter]))]
            (out[letter],) = (flow.broadcast if weighted else flow.batch)([(x[letter],), (y[letter],)], shape)
        else:
            flow.contract(x[letter], y[letter])
    return tuple(out[letter] for letter in result)


def _alone(flow: Flow, dim: Dim, kept: bool, weighted: bool) -> Dim:
    """A dimension of only one of two factors."""
    if not kept:
        normed(flow, [dim])
    elif not weighted:
        flow.pin([dim], "activations are multiplied with each other")
    return flow.made_by(dim) if kept else plain(dim)


def attention(call: Call) -> Result:
    """``softmax(q k^T) v``; where heads are grouped, one of k and v goes with all its query heads."""
    flow, mask = call.flow, call["attn_mask"]
    query, key, value = call["query"], call["key"], call["value"]
    flow.pin([each[axis] for each in (query, key, value) for axis in (-1, -2)], "attention multiplies along it")
    heads = len(query[-3]) if len(query) > 2 else 1
    key, value = (_repeated(each, heads) for each in (key, value))
    batch = flow.batch([each[:-2] for each in (query, key, value)], call.shape[:-2])
    if mask is not None:
        flow.broadcast([(*batch, query[-2], key[-2]), mask], (*call.shape[:-1], len(key[-2])))
    return (*batch, query[-2], value[-1])


def _repeated(value: Value, heads: int) -> Value:
    if len(value) < 3 or len(value[-3]) == heads:
        return value
    atoms = np.repeat(value[-3].atoms, heads // len(value[-3]))
    return (*value[:-3], Dim(atoms), *value[-2:])


def convolution(call: Call) -> Result:
    """``[N, in, ...] * [out, in / groups, ...] -> [N, out, ...]``; the groups of a grouped one go as a whole."""
    flow, x, weight = call.flow, call["input"], call["weight"]
    flipped = call.operator.startswith("conv_transpose") or bool(call.get("transposed"))
    at = len(x) - len(weight) + 1
    flow.pin([*x[at + 1 :], *weight[2:]], "it is a kernel's or an image's extent")
    read, made = (weight[0], weight[1]) if flipped else (weight[1], weight[0])
    groups = int(call["groups"])
    flow.atoms.mark(made.atoms, CHANNELS)
    out = _grouped(flow, x[at], weight, groups, flipped) if groups > 1 else flow.made_by(made)
    if groups == 1:
        flow.contract(x[at], read)
    _add(flow, out, call["bias"])
    return (*map(plain, x[:at]), out, *staying(call.shape[at + 1 :]))


def _grouped(flow: Flow, channels: Dim, weight: Value, groups: int, flipped: bool) -> Dim:
    """Inputs and outputs of one group are one unit."""
    flow.pin([weight[1]], "all groups share it")
    unit = channels.atoms.reshape(groups, -1)[:, 0]
    for dim in (channels, weight[0]):
        flow.atoms.unite(np.repeat(unit, len(dim) // groups), dim.atoms)
    return Dim(np.repeat(unit, len(weight[1]))) if flipped else Dim(weight[0].atoms)


def embedding(call: Call) -> Result:
    """``[words, width][...] -> [..., width]``."""
    flow, (words, width) = call.flow, call["weight"]
    flow.pin([words], "it is looked up by index")
    return (*map(plain, call["indices"]), flow.made_by(width))


_CONVOLUTIONS = [f"conv{flip}{rank}d" for flip in ("", "_transpose") for rank in (1, 2, 3)]
_TABLE: list[tuple[Rule, list[str]]] = [
    (linear, ["linear"]),
    (matmul, ["matmul", "mm", "bmm", "mv"]),
    (einsum, ["einsum"]),
    (add_matmul, ["addmm", "baddbmm"]),
    (attention, ["scaled_dot_product_attention"]),
    (convolution, [*_CONVOLUTIONS, "convolution", "_convolution"]),
    (embedding, ["embedding"]),
]
PRODUCTS: dict[str, Rule] = {name: rule for rule, names in _TABLE for name in names}
