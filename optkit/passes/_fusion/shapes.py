"""Shapes of every tensor in a graph, with dynamic dimensions as expressions of the inputs' names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx import ModelProto, ValueInfoProto

SMALL = 1024
"""Initializers of up to so many bytes may be sizes that a shape comes from; values of larger ones are left out."""

Shape = tuple[int | str | None, ...]


def know_shapes(model: ir.Model) -> None:
    """Symbolic shapes can take a minute on convolutional graphs, and only attention is recognized by them."""
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass()(model)
    if any(node.op_type == "Softmax" for node in model.graph):
        infer_symbolic_shapes(model)


def infer_symbolic_shapes(model: ir.Model) -> None:
    """Give inner tensors their shapes, in place, as far as they can be known: ``[batch, 12, seq, 32]``.

    onnx's own inference makes up a new name for every dimension that went through a Slice, Expand or Reshape, and no
    fusion then recognizes that a query and its key have as many heads. onnxruntime's computes with expressions.

    It takes two dimensions that meet in an addition for equal. Where it would do so with two dimensions of the inputs,
    whose names say that they may differ, the model is left as it is.
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
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    # Its public function writes what it has into the current folder where it cannot infer everything.
    inference = SymbolicShapeInference(int_max=2**31 - 1, auto_merge=True, guess_output_rank=False, verbose=0)
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
