"""The pieces of ``random_graphs``: each keeps the shape of its tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tests.passes.random_graphs import Builder, Value

Piece = Callable[[Builder, Value], Value]
WIDTH, HEADS, SIZE = 8, 2, 4


def run_of(g: Builder, x: Value, pieces: Mapping[str, Piece], count: int) -> Value:
    for _ in range(count):
        way = g.pick(*["plain"] * 4, "residual", "branch")
        piece = pieces[g.pick(*pieces, *(name for name in ("attention", "layer") * 2 if name in pieces))]
        if way == "branch":
            x = branch(g, x, piece)
        elif way == "residual":
            x = g.either("Add", x, piece(g, x))
        else:
            x = piece(g, x)
    return x


def branch(g: Builder, x: Value, piece: Piece) -> Value:
    """``If(c) { piece(x) } else { Relu(x) }``"""
    where = g.pick("input", "constant")
    condition = g.input("if", kind=np.bool_) if where == "input" else g.held(g.pick(True, False), np.bool_)
    graphs = {}
    for name, inner in (("then_branch", piece), ("else_branch", lambda g, x: g.op("Relu", x))):
        with g.subgraph() as frame:
            y = g.op("Identity", inner(g, x))
        graphs[name] = g.graph(frame, name, [], [y])
    return g.op("If", condition, dims=x.dims, **graphs)


# --- of tokens [batch, seq, 8] ----------------------------------------------------------------------------------------


def linear(g: Builder, x: Value, width: int = WIDTH) -> Value:
    y = g.op("MatMul", x, g.weight(int(x.dims[-1]), width), dims=(*x.dims[:-1], width))
    bias = {"vector": (width,), "none": None, "row": (1, 1, width), "one": (1,), "rows": (1, width)}
    shape = bias[g.usual(*bias)]
    return y if shape is None else g.either("Add", y, g.weight(*shape))


def parallel(g: Builder, x: Value) -> Value:
    """Several projections of one tensor."""
    parts = [linear(g, x, g.pick(8, 4)) for _ in range(g.usual(3, 2, 4, 7))]
    joined = g.op("Concat", *parts, dims=(*x.dims[:2], sum(int(part.dims[2]) for part in parts)), axis=-1)
    return linear(g, joined)


def gelu(g: Builder, x: Value) -> Value:
    if g.pick(False, True):
        x = g.either("Add", x, g.weight(*g.usual((WIDTH,), (1, WIDTH), (1,))))
    if g.opset >= 20 and g.rarely() and g.kind == np.float32:
        return g.op("Gelu", x, approximate=g.pick("none", "tanh"))
    half, one = g.held(0.4 if g.rarely() else 0.5), g.held(g.pick([1], 1, 1))
    inner = _of_tanh(g, x) if g.kind == np.float64 or g.pick(False, True) else _of_erf(g, x)
    risen = g.either("Add", inner, one)
    form = g.pick("whole", "risen", "first")
    if form == "whole":
        return g.either("Mul", g.either("Mul", x, risen), half)
    if form == "risen":
        return g.either("Mul", x, g.either("Mul", risen, half))
    return g.either("Mul", g.either("Mul", x, half), risen)


def _of_erf(g: Builder, x: Value) -> Value:
    root = 1.4 if g.rarely() else math.sqrt(2)
    scaled = g.op("Div", x, g.held(root)) if g.pick(True, False) else g.either("Mul", x, g.held(1 / root))
    return g.op("Erf", scaled)


def _of_tanh(g: Builder, x: Value) -> Value:
    cube = g.op("Pow", x, g.held(3)) if g.pick(True, False) else g.either("Mul", x, g.either("Mul", x, x))
    inner = g.either("Add", x, g.either("Mul", cube, g.held(0.05 if g.rarely() else 0.044715)))
    return g.op("Tanh", g.either("Mul", inner, g.held(math.sqrt(2 / math.pi))))


def normalization(g: Builder, x: Value) -> Value:
    kind = g.pick("layer", "rms", "operator")
    if g.pick(False, True):
        x = g.either("Add", x, g.op("Sigmoid", x))
    if g.usual(False, True):
        x = g.either("Add", x, g.weight(*g.usual((WIDTH,), (1, WIDTH), (1,))))
    if kind == "operator" and g.opset >= 17:
        axis = g.usual(-1, 2) if g.dynamic else g.usual(-1, 2, 1)
        shape = (WIDTH,) if axis != 1 else (4, WIDTH)
        rest = [g.weight(*shape)] * g.pick(1, 0)
        return g.op("LayerNormalization", x, g.weight(*shape), *rest, dims=x.dims, axis=axis)
    axis = 1 if g.rarely() else -1
    d = g.op("Sub", x, g.reduced("ReduceMean", x, axis)) if kind != "rms" else x
    square = g.op("Mul", d, d) if g.pick(True, False) else g.op("Pow", d, g.held(2))
    root = g.op("Sqrt", g.either("Add", g.reduced("ReduceMean", square, axis), g.held(g.usual(1e-5, [1e-2]))))
    how = g.pick("div", "reciprocal", "one over")
    if how == "div":
        y = g.op("Div", d, root)
    else:
        inverse = g.op("Reciprocal", root) if how == "reciprocal" else g.op("Div", g.held(1), root)
        y = g.either("Mul", d, inverse)
    shapes = ((WIDTH,), (1, WIDTH), (1,), (1, 1, WIDTH))
    y = g.either("Mul", y, g.weight(*g.usual(*shapes), scale=1.0))
    return g.either("Add", y, g.weight(*g.usual(*shapes))) if g.pick(True, False) else y


def attention(g: Builder, x: Value) -> Value:
    """Two heads of four features; masks by key, query or head; heads that share keys; rotary embedding."""
    scale = g.usual("both", "scores", "divided", "query", "none")
    shared = g.rarely()
    q, k, v = (heads(g, x, shared and part != "q") for part in "qkv")
    if g.usual(False, True):
        f = angles(g, x)
        q, k = rotary(g, q, f), rotary(g, k, f)
    if shared:
        k, v = repeated(g, k), repeated(g, v)
    k = g.turned(k, 0, 1, 3, 2)
    if scale in ("both", "query"):
        q = g.op("Mul", q, g.held(SIZE ** (-0.25 if scale == "both" else -0.5)))
    if scale == "both":
        k = g.op("Mul", k, g.held(SIZE**-0.25))
    scores = g.op("MatMul", q, k, dims=(*q.dims[:3], k.dims[3]))
    if scale == "scores":
        scores = g.op("Mul", scores, g.held(g.usual(SIZE**-0.5, 0.3)))
    elif scale == "divided":
        scores = g.op("Div", scores, g.held(SIZE**0.5))
    scores = masked(g, scores)
    p = g.op("Softmax", scores, dims=scores.dims, axis=g.pick(3, -1, -2) if g.rarely() else -1)
    if g.pick(True, False):
        p = g.op("Where", g.op("IsNaN", p, kind=np.bool_), g.held(g.usual(0, [0], 1)), p)
    found = g.turned(g.op("MatMul", p, v, dims=(*p.dims[:3], v.dims[3])), 0, 2, 1, 3)
    joined = g.shaped(found, *x.dims[:2], WIDTH)
    return linear(g, joined) if g.pick(True, False) else joined


def heads(g: Builder, x: Value, shared: bool) -> Value:
    """[batch, heads, seq, 4]; one head where it is shared."""
    count = 1 if shared else HEADS
    return g.turned(g.shaped(linear(g, x, count * SIZE), *x.dims[:2], count, SIZE), 0, 2, 1, 3)


def repeated(g: Builder, x: Value) -> Value:
    """[batch, 1, seq, 4] -> [batch, 2, seq, 4]"""
    batch, _, seq, size = x.dims
    if g.pick(True, False):
        return g.op("Concat", x, x, dims=(batch, HEADS, seq, size), axis=1)
    more = g.op("Unsqueeze", x, g.ints(2), dims=(batch, 1, 1, seq, size))
    grown = g.op("Expand", more, g.ints(1, 1, HEADS, 1, 1), dims=(batch, 1, HEADS, seq, size))
    return g.shaped(grown, batch, HEADS, seq, size)


def angles(g: Builder, x: Value) -> Value:
    """[1 or batch, seq, 2], by position in the sequence or by a given one."""
    if g.pick(False, True):
        places = g.op("Unsqueeze", g.input("place", *x.dims[:2]), g.ints(2), dims=(*x.dims[:2], 1))
    else:
        whole = g.op("Shape", x, dims=[3], kind=np.int64)
        count = g.op("Gather", whole, g.held(1, np.int64), dims=[], axis=0, kind=np.int64)
        zero, one = g.held(0, np.int64), g.held(1, np.int64)
        numbers = g.op("Range", zero, count, one, dims=[x.dims[1]], kind=np.int64)
        places = g.op("Cast", numbers, dims=[x.dims[1]], to=onnx_type(g.kind))
        places = g.op("Unsqueeze", places, g.ints(0, 2), dims=(1, x.dims[1], 1))
    return g.op("Mul", places, g.held(np.array([1, 0.1]).reshape(1, 1, 2)))


def rotary(g: Builder, x: Value, f: Value) -> Value:
    """``x * cos f + turned x * sin f``"""
    whole = g.op("Concat", f, f, dims=(*f.dims[:2], SIZE), axis=-1)
    cos, sin = (
        g.op("Unsqueeze", g.op(op, whole), g.ints(1), dims=(f.dims[0], 1, *whole.dims[1:])) for op in ("Cos", "Sin")
    )
    half = 1 if g.rarely() else SIZE // 2
    first = g.op("Slice", x, *(g.ints(n) for n in (0, half, 3, 1)), dims=(*x.dims[:3], half))
    second = g.op(
        "Slice", x, *(g.ints(n) for n in (half, g.pick(2**63 - 1, SIZE), 3, 1)), dims=(*x.dims[:3], SIZE - half)
    )
    turned = g.op("Concat", g.op("Neg", second), first, dims=x.dims, axis=-1)
    return g.op("Add", g.op("Mul", x, cos), g.op("Mul", turned, sin))


def masked(g: Builder, scores: Value) -> Value:
    batch, count, seq, _ = scores.dims
    shapes = {
        "key": (batch, 1, 1, seq),
        "none": None,
        "query": (batch, 1, seq, 1),
        "pair": (batch, 1, seq, seq),
        "head": (batch, count, 1, seq),
        "plane": (seq, seq),
        "one key": (1, 1, 1, seq),
        "each": scores.dims,
    }
    for _ in range(2 if g.rarely() else 1):
        shape = shapes[g.usual(*shapes)]
        if shape is not None:
            scores = _with_mask(g, scores, shape)
    return scores


def _with_mask(g: Builder, scores: Value, shape: Any) -> Value:
    far = g.held(np.asarray(g.usual(np.finfo(g.kind).min, -np.inf, -1e4, -3.0), g.kind))
    way = g.usual("where", "given", "chosen", "product", "held")
    if way == "held" and not any(isinstance(dim, str) for dim in shape):
        return g.either("Add", scores, g.weight(*shape))
    if way in ("given", "held"):
        return g.either("Add", scores, g.input("bias", *shape))
    keep = g.input("keep", *shape, kind=np.bool_)
    if g.usual(False, True):
        keep = g.op("Cast", keep, to=7, kind=np.int64)
        keep = g.op("Cast", keep, to=9, kind=np.bool_)
    if g.rarely():
        keep = g.op("And", keep, g.input("keep", *scores.dims, kind=np.bool_), kind=np.bool_)
    if way == "chosen":
        return g.op("Where", keep, scores, far)
    if way == "where":
        return g.either("Add", scores, g.op("Where", keep, g.held(0), far))
    low = g.held(np.finfo(g.kind).min)
    kept = g.op("Cast", keep, to=onnx_type(g.kind))
    return g.either("Add", scores, g.either("Mul", g.op("Sub", g.held(1), kept), low))


def onnx_type(kind: Any) -> int:
    return {"float32": 1, "float16": 10, "float64": 11}[np.dtype(kind).name]


def feed_forward(g: Builder, x: Value) -> Value:
    return linear(g, gelu(g, linear(g, x)))


def layer(g: Builder, x: Value) -> Value:
    """Attention, or another piece, added to what goes into it, and normalized."""
    inner = g.usual(attention, feed_forward, linear)
    before = g.pick(False, True)
    return (
        g.either("Add", x, inner(g, normalization(g, x)))
        if before
        else normalization(g, g.either("Add", x, inner(g, x)))
    )


def batch_norm(g: Builder, x: Value) -> Value:
    """Of the features of all tokens, behind a Gemm."""
    flat = g.op("Reshape", x, g.ints(-1, WIDTH), dims=("rows", WIDTH))
    turned = g.pick(0, 1)
    y = g.op("Gemm", flat, g.weight(WIDTH, WIDTH), g.weight(WIDTH), dims=flat.dims, transB=turned)
    numbers = [g.weight(WIDTH) for _ in range(3)]
    y = g.op("BatchNormalization", y, *numbers, g.held(np.linspace(0.5, 2, WIDTH)), dims=flat.dims)
    return g.op("Reshape", y, g.op("Shape", x, dims=[3], kind=np.int64), dims=x.dims)


def layout(g: Builder, x: Value) -> Value:
    """A way out and a way back, with something between or nothing."""
    way = g.pick("transpose", "reshape", "unsqueeze", "cast", "expand", "slice", "rows", "flat")
    between: Piece = g.pick(lambda g, y: y, lambda g, y: g.op("Relu", y), lambda g, y: g.op("Identity", y))
    if way == "transpose":
        perm = g.pick((1, 0, 2), (0, 2, 1), (1, 2, 0), (2, 0, 1))
        return g.turned(between(g, g.turned(x, *perm)), *(perm.index(axis) for axis in range(3)))
    if way == "reshape":
        y = between(g, g.shaped(x, *x.dims[:2], *g.pick((2, 4), (4, 2), (2, 2, 2))))
        return g.op("Reshape", y, g.sizes(x, *x.dims), dims=x.dims)
    if way == "flat":
        y = between(g, g.op("Reshape", x, g.ints(-1), dims=("all",)))
        return g.op("Reshape", y, g.op("Shape", x, dims=[3], kind=np.int64), dims=x.dims)
    if way == "unsqueeze":
        axis = g.pick(0, 1, 3)
        dims = (*x.dims[:axis], 1, *x.dims[axis:])
        y = between(g, g.op("Unsqueeze", x, g.ints(axis - 4 if g.rarely() else axis), dims=dims))
        return g.op("Squeeze", y, g.ints(axis), dims=x.dims)
    if way == "cast":
        wide = np.dtype("float64" if g.kind == np.float32 else "float32")
        y = g.op("Cast", x, dims=x.dims, to=onnx_type(wide), kind=wide)
        return g.op("Cast", y, dims=x.dims, to=onnx_type(g.kind))
    if way == "expand":
        row = x if g.pick(True, False) else g.weight(1, 1, WIDTH)
        grown = g.op("Expand", row, g.op("Shape", x, dims=[3], kind=np.int64), dims=x.dims)
        return g.either("Mul", x, between(g, grown))
    if way == "rows":
        y = g.op("Slice", x, g.ints(0), g.ints(2**31 - 1), g.ints(1), dims=x.dims)
        return g.op("Concat", between(g, y), dims=x.dims, axis=1)
    first = g.op("Slice", x, g.ints(0), g.ints(4), g.ints(2), dims=(*x.dims[:2], 4))
    second = g.op("Slice", x, g.ints(-4), g.ints(2**63 - 1), g.ints(-1), dims=(*x.dims[:2], 4))
    return g.op("Concat", between(g, first), second, dims=x.dims, axis=2)


def clamps(g: Builder, x: Value) -> Value:
    for _ in range(g.pick(2, 1, 3)):
        if g.pick(True, False):
            x = g.op("Relu", x)
        else:
            low, high = (
                g.held(end) if g.pick(True, False) else None for end in g.pick((-1, 6), (0, 1), (-5, -1), (1, 2))
            )
            x = g.op("Clip", x, low, high, dims=x.dims)
    return x


# --- of images [batch, 2, 6, 6] ---------------------------------------------------------------------------------------


def convolution(g: Builder, x: Value) -> Value:
    """Padding and a step before it, normalization and a step behind it, or none of these."""
    if g.pick(False, True):
        x = step(g, x)
    padded, kernel = g.pick(False, False, True), g.pick(3, 1)
    edge = (kernel - 1) // 2
    if padded:
        x = padding(g, x, edge)
    groups = g.pick(1, 2)
    kind = "Conv" if padded else g.pick("Conv", "Conv", "ConvTranspose")
    weight = g.weight(2, 2 // groups, kernel, kernel)
    pads: dict[str, Any] = {} if padded else {"pads": [edge] * 4}
    if not padded and g.rarely():
        pads = {"auto_pad": "SAME_UPPER"}
    bias = [g.weight(2)] if g.pick(True, False) else []
    y = g.op(kind, x, weight, *bias, dims=(x.dims[0], 2, 6, 6), group=groups, **pads)
    if g.pick(False, True):
        numbers = [g.weight(2) for _ in range(3)]
        y = g.op("BatchNormalization", y, *numbers, g.held([0.5, 2]), dims=y.dims, epsilon=g.pick(1e-5, 0.1))
    return step(g, y) if g.pick(False, True) else y


def padding(g: Builder, x: Value, edge: int) -> Value:
    mode, filled = g.pick("constant", "constant", "reflect", "edge"), g.pick(None, 0, 1)
    number = [] if filled is None or mode != "constant" else [g.held(filled)]
    dims = (*x.dims[:2], 6 + 2 * edge, 6 + 2 * edge)
    return g.op("Pad", x, g.ints(0, 0, edge, edge, 0, 0, edge, edge), *number, dims=dims, mode=mode)


def step(g: Builder, x: Value) -> Value:
    """By one number, one for each channel, or another constant."""
    kind = g.pick("Mul", "Add", "Div", "Sub")
    shape = g.pick((1, 2, 1, 1), (), (2, 1, 1), (1,), (1, 1, 1, 6), (6,))
    by = g.held(np.linspace(0.5, 1.5, math.prod(shape)).reshape(shape))
    return g.op(kind, by, x) if g.rarely() and kind != "Div" else g.op(kind, x, by)


def swish(g: Builder, x: Value) -> Value:
    return g.either("Mul", x, g.op("Sigmoid" if g.pick(True, False) else "HardSigmoid", x))


TOKENS: Mapping[str, Piece] = {
    "linear": linear,
    "layer": layer,
    "attention": attention,
    "feed forward": feed_forward,
    "gelu": gelu,
    "normalization": normalization,
    "parallel": parallel,
    "layout": layout,
    "batch norm": batch_norm,
    "clamps": clamps,
}
IMAGES: Mapping[str, Piece] = {"convolution": convolution, "clamps": clamps, "swish": swish, "step": step}
