"""What an ONNX file says about its own quantization: what will multiply integers, and what stands in the way.

Which QuantizeLinear (Q) and DequantizeLinear (DQ) nodes onnxruntime merges with the operator between them on CPUs is
told from the structure, after the selectors of its QDQ transformer; no session is made.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

MULTIPLY = frozenset({"Conv", "MatMul", "Gemm"})
"""Become integer operators where their first two inputs are dequantized and, of Conv, the output is quantized."""

INTEGER = frozenset(
    {"QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger"}
    | {"MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QAttention"}
)
"""Multiply integers as they stand."""

AROUND = frozenset(
    {"Add", "Mul", "Concat", "Where", "Sigmoid", "LeakyRelu", "Softmax", "AveragePool", "GlobalAveragePool", "Split"}
    | {"Gather", "Resize", "Expand", "Tile", "Flatten"}
)
"""Have integer kernels, or take any type, between DQ and Q."""

_THROUGH = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "MaxPool", "Identity"})
"""Q and DQ are moved past them."""
_CLIPS = frozenset({"Relu", "Clip"})
"""Are merged into the Q behind them."""
_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_FIXED = frozenset({_Q, "QLinearConv", "QLinearMatMul", "QGemm"})
"""State the zero point of an activation as their third input."""
_INT8 = 3
"""``onnx.TensorProto.INT8``"""


@dataclass(frozen=True)
class Quantized:
    """What was found in one file."""

    integer: Counter[str] = field(default_factory=Counter)
    """Nodes that will multiply integers, by operator."""
    dynamic_weights: tuple[int, ...] = ()
    """Elements of the weights of each matrix product whose activations are quantized while it runs."""
    activations: int = 0
    """Tensors quantized with a fixed scale, weights not counted."""
    signed: int = 0
    """Those of them that are signed (S8)."""
    stranded: Counter[str] = field(default_factory=Counter)
    """Nodes with quantized weights that multiply floats all the same, by operator."""
    conversions: Counter[str] = field(default_factory=Counter)
    """Q and DQ nodes that remain as work of their own, by the float operator beside them."""
    n_bit: int = 0
    """MatMulNBits nodes: weights of few bits, activations in float."""
    accuracy_level: int = 0
    """The lowest of theirs; from 4 on they multiply int8."""

    @property
    def anything(self) -> bool:
        """Whether the file is quantized at all."""
        return bool(self.integer or self.stranded or self.activations or self.n_bit)


def read_quantized(path: Path) -> Quantized:
    """Look at an ONNX file; external data are not read.

    Raises:
        ModelError: as ``load_structure``.
    """
    from optkit.model.onnx_file import load_structure

    return quantized_of(load_structure(path))


def quantized_of(proto: ModelProto) -> Quantized:
    """What a model says, subgraphs included."""
    graph = _Graph(proto)
    integer = [node for node in graph.nodes if node.op_type in MULTIPLY | INTEGER and graph.is_integer(node)]
    bits = [node for node in graph.nodes if node.op_type == "MatMulNBits"]
    signs = dict(graph.signs())
    return Quantized(
        integer=Counter(node.op_type for node in integer),
        dynamic_weights=tuple(
            graph.elements(node.input[1])
            for node in integer
            if node.op_type in ("MatMulInteger", "DynamicQuantizeMatMul")
        ),
        activations=len(signs),
        signed=sum(signs.values()),
        stranded=Counter(node.op_type for node in graph.nodes if graph.is_stranded(node)),
        conversions=Counter(graph.conversions()),
        n_bit=len(bits),
        accuracy_level=min((_integer(node, "accuracy_level") for node in bits), default=0),
    )


class _Graph:
    """Who makes and who uses a tensor; names are unique across subgraphs."""

    def __init__(self, proto: ModelProto) -> None:
        from optkit.model.onnx_file import walk_graphs

        graphs = list(walk_graphs(proto.graph))
        self.nodes: list[NodeProto] = [node for graph in graphs for node in graph.node]
        self._weights: dict[str, TensorProto] = {each.name: each for graph in graphs for each in graph.initializer}
        self._maker = {name: node for node in self.nodes for name in node.output}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                self._weights[node.output[0]] = node.attribute[0].t

    @cached_property
    def _users(self) -> dict[str, list[NodeProto]]:
        found = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                found[name].append(node)
        return found

    def is_integer(self, node: NodeProto) -> bool:
        """Whether it will work on integers, as it stands or merged with the DQ and Q around it."""
        if node.op_type in INTEGER or node.op_type.startswith("QLinear"):
            return True
        if node.op_type not in MULTIPLY | AROUND:
            return False
        given = [self._is_dequantized(name) for name in node.input]
        if node.op_type in MULTIPLY:
            return all(given[:2]) and (node.op_type != "Conv" or self._is_requantized(node))
        return any(given) and self._is_requantized(node)

    def is_stranded(self, node: NodeProto) -> bool:
        """Whether its weights are quantized (not in blocks, which become MatMulNBits), for nothing."""
        if node.op_type not in MULTIPLY or self.is_integer(node):
            return False
        maker = self._source(node.input[1])
        return maker is not None and self._dequantizes_weight(maker) and not _integer(maker, "block_size")

    def conversions(self) -> Iterator[str]:
        """The float operator beside each Q and DQ of an activation that stays."""
        for node in self.nodes:
            if node.op_type == _DQ and node.input[0] not in self._weights:
                others = (user for user in self._readers(node.output[0]) if user.op_type != _Q)
                yield from (user.op_type for user in others if not self.is_integer(user))
            if node.op_type == _Q and node.input[0] not in self._weights:
                maker = self._before_clip(node)
                if maker is not None and maker.op_type != _DQ and not self.is_integer(maker):
                    yield maker.op_type

    def signs(self) -> Iterator[tuple[str, bool]]:
        """(activation with a fixed scale, whether it is S8)."""
        for node in self.nodes:
            if node.op_type in _FIXED and node.input[0] not in self._weights:
                zero = self._weights.get(node.input[2]) if len(node.input) > 2 else None
                kind = _integer(node, "output_dtype") if zero is None else zero.data_type
                yield node.output[0] if node.op_type == _Q else node.input[0], kind == _INT8

    def elements(self, name: str) -> int:
        """Elements of a weight, 0 where it is none."""
        return math.prod(self._weights[name].dims) if name in self._weights else 0

    def _source(self, name: str) -> NodeProto | None:
        maker = self._maker.get(name)
        while maker is not None and maker.op_type in _THROUGH:
            maker = self._maker.get(maker.input[0])
        return maker

    def _readers(self, name: str) -> Iterator[NodeProto]:
        for user in self._users.get(name, ()):
            if user.op_type in _THROUGH and user.input[0] == name:
                yield from self._readers(user.output[0])
            else:
                yield user

    def _before_clip(self, node: NodeProto) -> NodeProto | None:
        maker = self._source(node.input[0])
        inner = self._source(maker.input[0]) if maker is not None and maker.op_type in _CLIPS else None
        return inner if inner is not None and self.is_integer(inner) else maker

    def _is_dequantized(self, name: str) -> bool:
        maker = self._source(name)
        return maker is not None and maker.op_type == _DQ

    def _dequantizes_weight(self, node: NodeProto) -> bool:
        return node.op_type == _DQ and node.input[0] in self._weights

    def _is_requantized(self, node: NodeProto) -> bool:
        readers = list(self._readers(node.output[0]))
        if len(readers) == 1 and readers[0].op_type in _CLIPS:
            readers = list(self._readers(readers[0].output[0]))
        return bool(readers) and all(reader.op_type == _Q for reader in readers)


def _integer(node: NodeProto, name: str) -> int:
    """An integer attribute, 0 where it is not set."""
    return next((int(each.i) for each in node.attribute if each.name == name), 0)
