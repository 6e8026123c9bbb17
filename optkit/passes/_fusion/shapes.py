"""Shapes of every tensor in a graph, with dynamic dimensions as expressions of the inputs' names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx import ModelProto, NodeProto, ValueInfoProto

SMALL = 1024
"""Initializers of up to so many bytes may be sizes that a shape comes from; values of larger ones are left out."""

BROADCASTING = (
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual"),
    *("Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Where", "Xor"),
)
"""Operators whose inputs are broadcast to each other."""

Size = int | str
Shape = tuple[Size | None, ...]


def know_shapes(model: ir.Model) -> None:
    """Symbolic shapes can take a minute on convolutional graphs, and only attention is recognized by them."""
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass()(model)
    if any(node.op_type == "Softmax" for node in model.graph):
        infer_symbolic_shapes(model)


def infer_symbolic_shapes(model: ir.Model) -> None:
    """Give inner tensors their shapes, in place, as far as they can be known: ``[batch, 12, seq, 32]``.

    onnx's own inference makes up a new name for every dimension that went through a Slice, Expand or Reshape, and no
    fusion then recognizes that a query and its key have as many heads. onnxruntime's computes with expressions; see
    ``joined`` for what becomes of two that meet in an addition.
    """
    import onnx_ir as ir

    values = {value.name: value for graph in model.graphs() for node in graph for value in node.outputs}
    for name, shape in _inferred(_without_weights(ir.to_proto(model))).items():
        value = values.get(name)
        if value is None or value.is_graph_output():
            continue
        known = (None,) * len(shape) if value.shape is None else value.shape.dims
        if len(known) == len(shape):
            dims = [old if isinstance(old, int) else new for old, new in zip(known, shape, strict=True)]
            value.shape = ir.Shape(dims)


def _inferred(proto: ModelProto) -> dict[str, Shape]:
    """Name -> shape of inner tensors; empty where they cannot be inferred."""
    # Its public function writes what it has into the current folder where it cannot infer everything.
    inference = _careful()(int_max=2**31 - 1, auto_merge=True, guess_output_rank=False, verbose=0)
    try:
        inference._preprocess(proto)
        while inference.run_:
            inference._infer_impl()
    except Exception:  # noqa: BLE001  it raises anything on graphs that it does not know; fewer are fused then
        return {}
    found: ModelProto = inference.out_mp_
    before, after = ([_shape(value) for value in each.graph.input] for each in (proto, found))
    return (
        {value.name: _shape(value) for value in found.graph.value_info if _is_known(value)} if before == after else {}
    )


@cache
def _careful() -> Any:
    """onnxruntime's inference, which takes dimensions for equal where they have to be: in products, concatenations.

    By itself it also does so where one of them may be 1 when the model runs.
    """
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference, get_shape_from_value_info
    from sympy import Symbol  # type: ignore[import-untyped]  # it has no types

    class Careful(SymbolicShapeInference):  # type: ignore[misc]  # onnxruntime is not followed by mypy
        def _check_merged_dims(self, dims: list[Size], allow_broadcast: bool = True) -> None:
            if not allow_broadcast:
                super()._check_merged_dims(dims, allow_broadcast)

        def _broadcast_shapes(self, *shapes: list[Size]) -> list[Size]:
            rank = max(map(len, shapes))
            ones: list[Size] = [1] * rank
            aligned = zip(*(ones[len(shape) :] + shape for shape in shapes), strict=True)
            return [self._joined(sizes) for sizes in aligned]

        def _joined(self, sizes: Iterable[Size]) -> Size:
            size = joined(sizes)
            if isinstance(size, str) and size not in self.symbolic_dims_:
                self.symbolic_dims_[size] = Symbol(size, integer=True, nonnegative=True)
            return size

        def _onnx_infer_single_node(self, node: NodeProto) -> None:
            super()._onnx_infer_single_node(node)
            value = self.known_vi_.get(node.output[0])
            if node.op_type not in BROADCASTING or value is None or not _is_known(value):
                return
            shapes = [get_shape_from_value_info(self.known_vi_[name]) for name in node.input]
            if all(shape is not None and None not in shape for shape in shapes):
                sizes = self._broadcast_shapes(*shapes)
                for dim, size in zip(value.type.tensor_type.shape.dim, sizes, strict=True):
                    dim.Clear()
                    setattr(dim, "dim_param" if isinstance(size, str) else "dim_value", size)

        def _onnx_infer_subgraph(self, *args: Any, **options: Any) -> Any:
            inner = super()._onnx_infer_subgraph(*args, **options)
            if inner.suggested_merge_ != self.suggested_merge_:
                raise NotImplementedError("a subgraph is inferred by the class this one corrects")
            return inner

    return Careful


def joined(sizes: Iterable[Size]) -> Size:
    """Size of dimensions that meet in an addition; a new name where that cannot be told.

    ``seq, 1 -> seq``; ``seq, 5 -> 5``, as ``seq`` is 1 or 5; ``seq, Min(64, seq) -> seq``, as where one is 1 so is the
    other; ``seq, other -> Broadcast(other|seq)``.
    """
    found = set(sizes) - {1}
    fixed = [size for size in found if isinstance(size, int)]
    if fixed or not found:
        return fixed[0] if fixed else 1
    names = {str(size) for size in found}
    left = {name for name in names if not any(_is_capped(name, other) for other in names)}
    return left.pop() if len(left) == 1 else f"Broadcast({'|'.join(sorted(left))})"


def _is_capped(name: str, other: str) -> bool:
    """Whether it is the other or a number above 1, whichever is less."""
    capped = re.fullmatch(r"Min\((\d+), (.+)\)", name)
    return capped is not None and int(capped[1]) > 1 and capped[2] == other


def _without_weights(proto: ModelProto) -> ModelProto:
    """The same object, with large weights as inputs, of which only name, dtype and shape are known."""
    from onnx import TensorProto
    from onnx.helper import make_tensor_value_info

    held = list(proto.graph.initializer)
    large = [each for each in held if each.ByteSize() > SMALL or each.data_location == TensorProto.EXTERNAL]
    proto.graph.input.extend(make_tensor_value_info(each.name, each.data_type, each.dims) for each in large)
    names = {each.name for each in large}
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(each for each in held if each.name not in names)
    return proto


def _is_known(value: ValueInfoProto) -> bool:
    return bool(value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"))


def _shape(value: ValueInfoProto) -> Shape:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims)
