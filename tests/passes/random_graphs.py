"""Small random graphs, made of what the families of fuse-graph look for and of its near misses.

A graph is a run of pieces. Each takes a tensor, [batch, seq, 8] or [batch, 2, 6, 6], and gives one of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

Dim = int | str
Dims = tuple[Dim, ...]
SIZES = ({"batch": 2, "seq": 5}, {"batch": 3, "seq": 1})
"""What dynamic dimensions are, in turn."""
FIXED = {"batch": 2, "seq": 4}
"""What they are where they are not dynamic."""
OPSETS = (21, 20, 18, 17, 15, 14, 13)
AXES_AS_INPUT = 18
"""Opset from which ReduceMean and ReduceMax take their axes as an input."""


@dataclass(frozen=True)
class Value:
    """A tensor of the graph; ``kind`` None is the graph's own float type."""

    name: str
    dims: Dims
    kind: Any = None


@dataclass
class Frame:
    """Nodes and weights of a graph or subgraph."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)


class Builder:
    """A graph as it is drawn. Of several things to pick, the first is the simplest."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.draw = draw
        self.opset: int = self.pick(*OPSETS)
        self.kind = np.dtype(self.pick(*["float32"] * 12, "float64", "float16"))
        self.dynamic = self.pick(True, False)
        self.frames = [Frame()]
        self.inputs: list[Value] = []
        self.made: list[Value] = []
        self.count = 0

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def usual(self, first: Any, *others: Any) -> Any:
        """The first in three of four cases."""
        return self.pick(*[first] * 3 * len(others), *others)

    def rarely(self) -> bool:
        return bool(self.draw(st.integers(0, 7)) == 7)

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def size(self, name: str) -> Dim:
        return name if self.dynamic else FIXED[name]

    def input(self, stem: str, *dims: Dim, kind: Any = None) -> Value:
        self.inputs.append(Value(self.name(stem), dims, kind))
        return self.inputs[-1]

    def held(self, array: Any, kind: Any = None) -> Value:
        """A constant, as initializer or as node."""
        array = np.asarray(array, kind or self.kind)
        value = Value(self.name("c"), array.shape, array.dtype)
        if self.rarely():
            tensor = numpy_helper.from_array(array)
            self.frames[-1].nodes.append(helper.make_node("Constant", [], [value.name], value=tensor))
        else:
            self.frames[-1 if self.pick(True, False) else 0].weights[value.name] = array
        return value

    def weight(self, *dims: int, scale: float = 0.3) -> Value:
        """Random; rarely one that another place has too, or with numbers that are almost zero."""
        alike = [(name, held) for frame in self.frames for name, held in frame.weights.items() if held.shape == dims]
        alike = [(name, held) for name, held in alike if held.dtype == self.kind]
        if alike and dims and self.rarely():
            name, held = self.pick(*alike)
            return Value(name, held.shape, held.dtype)
        array = (np.random.default_rng(self.count).standard_normal(dims) * scale).astype(self.kind)
        if dims and self.rarely():
            array.ravel()[:: self.pick(2, 3)] = self.pick(1e-39, 1e-31)
        return self.held(array)

    def ints(self, *numbers: int) -> Value:
        return self.held(numbers, np.int64)

    def op(self, op: str, *inputs: Value | None, dims: Any = None, kind: Any = None, **attributes: Any) -> Value:
        """A node; without ``dims`` an elementwise one."""
        found = broadcast([each for each in inputs if each is not None]) if dims is None else tuple(dims)
        value = Value(self.name(op.lower()[:4]), found, kind)
        names = ["" if each is None else each.name for each in inputs]
        self.frames[-1].nodes.append(helper.make_node(op, names, [value.name], **attributes))
        if len(self.frames) == 1:
            self.made.append(value)
        return value

    def either(self, op: str, a: Value, b: Value) -> Value:
        """In one order of the operands or the other."""
        return self.op(op, a, b) if self.usual(True, False) else self.op(op, b, a)

    def reduced(self, op: str, value: Value, *axes: int) -> Value:
        dims = [1 if axis in axes or axis - len(value.dims) in axes else dim for axis, dim in enumerate(value.dims)]
        if self.opset >= AXES_AS_INPUT:
            return self.op(op, value, self.ints(*axes), dims=dims, keepdims=1)
        return self.op(op, value, dims=dims, keepdims=1, axes=list(axes))

    def turned(self, value: Value, *perm: int) -> Value:
        return self.op("Transpose", value, dims=[value.dims[axis] for axis in perm], perm=list(perm), kind=value.kind)

    def shaped(self, value: Value, *dims: Dim) -> Value:
        """Reshape, with sizes in one of the ways in which exporters state them."""
        return self.op("Reshape", value, self.sizes(value, *dims), dims=dims, kind=value.kind)

    def sizes(self, like: Value, *dims: Dim) -> Value:
        """``dims`` as a tensor; those with a name are dimensions of ``like``."""
        names = [dim for dim in dims if isinstance(dim, str)]
        ways = ["computed"]
        if len(names) <= 1:
            ways.insert(0, "left")
        if all(axis < len(like.dims) and like.dims[axis] == dim for axis, dim in enumerate(dims) if dim in names):
            ways.insert(0, "copied")
        way = self.pick(*ways)
        if way != "computed":
            return self.ints(*(dim if isinstance(dim, int) else 0 if way == "copied" else -1 for dim in dims))
        whole = self.op("Shape", like, dims=[len(like.dims)], kind=np.int64)
        return self.op(
            "Concat", *(self._size(whole, like, dim) for dim in dims), dims=[len(dims)], axis=0, kind=np.int64
        )

    def _size(self, whole: Value, like: Value, dim: Dim) -> Value:
        if dim not in like.dims or self.pick(isinstance(dim, int), False):
            return self.ints(int(dim))
        axis = like.dims.index(dim)
        if self.pick(True, False):
            return self.op("Gather", whole, self.ints(axis), dims=[1], axis=0, kind=np.int64)
        number = self.op("Gather", whole, self.held(axis, np.int64), dims=[], axis=0, kind=np.int64)
        return self.op("Unsqueeze", number, self.ints(0), dims=[1], kind=np.int64)

    @contextmanager
    def subgraph(self) -> Iterator[Frame]:
        self.frames.append(Frame())
        yield self.frames[-1]
        self.frames.pop()

    def graph(self, frame: Frame, name: str, inputs: list[Value], outputs: list[Value]) -> onnx.GraphProto:
        weights = [numpy_helper.from_array(array, name) for name, array in frame.weights.items()]
        return helper.make_graph(
            frame.nodes, name, list(map(self._info, inputs)), list(map(self._info, outputs)), weights
        )

    def _info(self, value: Value) -> onnx.ValueInfoProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(value.kind or self.kind))
        return helper.make_tensor_value_info(value.name, kind, value.dims)

    def model(self, *outputs: Value) -> onnx.ModelProto:
        graph = self.graph(self.frames[0], "random", self.inputs, list(outputs))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def broadcast(values: list[Value]) -> Dims:
    found: list[Dim] = []
    for value in values:
        rank = max(len(found), len(value.dims))
        before, dims = ([1] * (rank - len(each)) + list(each) for each in (found, value.dims))
        found = [b if a == 1 else a for a, b in zip(before, dims, strict=True)]
    return tuple(found)


@dataclass(frozen=True)
class RandomGraph:
    """A model and what it is tried with."""

    model: onnx.ModelProto
    feeds: list[dict[str, np.ndarray[Any, Any]]]

    def __repr__(self) -> str:
        """The graph as text."""
        return "\n" + onnx.printer.to_text(self.model)


@st.composite
def random_graphs(draw: Callable[[Any], Any]) -> RandomGraph:
    from tests.passes.random_pieces import IMAGES, TOKENS, run_of

    g = Builder(draw)
    images = g.kind == np.float32 and g.pick(False, False, True)
    x = g.input("x", g.size("batch"), *((2, 6, 6) if images else (g.size("seq"), 8)))
    y = run_of(g, x, IMAGES if images else TOKENS, draw(st.integers(1, 3)))
    y = g.op("Identity", y) if y in g.inputs else y
    others = draw(st.lists(st.sampled_from(g.made), max_size=2, unique=True)) if g.usual(False, True) else []
    model = g.model(y, *(value for value in others if value != y))
    return RandomGraph(model, [feed(g, number, sizes) for number, sizes in enumerate(SIZES)])


def feed(g: Builder, number: int, sizes: dict[str, int]) -> dict[str, np.ndarray[Any, Any]]:
    """Random inputs; of booleans, all of the first sample are false, and a single one is true first, then false."""
    rng, found = np.random.default_rng(number), {}
    for value in g.inputs:
        dims = [sizes[dim] if isinstance(dim, str) else dim for dim in value.dims]
        if value.kind is not np.bool_:
            found[value.name] = rng.standard_normal(dims).astype(value.kind or g.kind)
        elif dims:
            found[value.name] = rng.random(dims) < 0.6
            found[value.name][0] = False
        else:
            found[value.name] = np.array(number == 0)
    return found
