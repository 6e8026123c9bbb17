"""What stands around attention in exports, out of the way of its recognition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optkit.passes._fusion.apply import shaped
from optkit.passes._fusion.masks import known
from optkit.passes._ir import add_constant, constant

if TYPE_CHECKING:
    import onnx_ir as ir

SLICES_OF_SHAPES = 15
"""Opset from which Shape takes a start and an end."""


def settle_sizes(model: ir.Model) -> None:
    """``Gather(Shape(x), 3) -> 8`` where that dimension of x is known, and what is computed from it."""
    import onnx_ir as ir
    from onnxscript.optimizer import fold_constants

    settled = 0
    for node in list(model.graph):
        source = node.inputs[0].producer() if node.op_type == "Gather" and node.inputs[0] is not None else None
        if source is None or source.op_type != "Shape" or source.attributes or not source.inputs[0].shape:
            continue
        index, shape = constant(node.inputs[1]), source.inputs[0].shape
        size = shape[int(index)] if index is not None and index.ndim == 0 and int(index) < len(shape) else None
        if isinstance(size, int) and not node.outputs[0].is_graph_output():
            held = add_constant(model.graph, f"{node.outputs[0].name}_settled", np.array(size, np.int64))
            ir.convenience.replace_all_uses_with(node.outputs[0], held)
            settled += 1
    if settled:
        fold_constants(model)


def free_transposes(model: ir.Model) -> None:
    """``Shape(Transpose(x)) -> Gather(Shape(x), axes)``, in place.

    Exporters read sizes from heads that are transposed already, as in T5. Those transposes, done again in the opposite
    direction for onnxruntime's attention, would stay.
    """
    import onnx_ir as ir

    for node in list(model.graph):
        source = node.inputs[0].producer() if node.op_type == "Shape" and node.inputs[0] is not None else None
        if source is None or source.op_type != "Transpose" or "perm" not in source.attributes:
            continue
        start, end = (node.attributes.get(name) for name in ("start", "end"))
        axes = source.attributes["perm"].as_ints()[start and start.as_int() : end and end.as_int()]
        picked = add_constant(model.graph, f"{node.outputs[0].name}_axes", np.array(axes, np.int64))
        whole = ir.node("Shape", [source.inputs[0]])
        gather = ir.node("Gather", [whole.outputs[0], picked], attributes={"axis": 0}, name=node.name)
        model.graph.insert_before(node, [whole, gather])
        ir.convenience.replace_all_uses_with(node.outputs[0], gather.outputs[0], replace_graph_outputs=True)
        model.graph.remove(node, safe=True)


def slice_shapes(model: ir.Model) -> None:
    """``Shape(x, start=1, end=2) -> Gather(Shape(x), [1])`` where the opset has no such Shape: onnxscript writes it."""
    import onnx_ir as ir

    if model.opset_imports.get("", SLICES_OF_SHAPES) >= SLICES_OF_SHAPES:
        return
    for node in list(model.graph):
        if node.op_type != "Shape" or not node.attributes:
            continue
        start, end = (node.attributes[name].as_int() for name in ("start", "end"))
        picked = add_constant(model.graph, f"{node.outputs[0].name}_axes", np.arange(start, end))
        whole = ir.node("Shape", [node.inputs[0]])
        part = ir.node("Gather", [whole.outputs[0], picked], attributes={"axis": 0})
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [whole, part], node.outputs, part.outputs)


def read_sizes_before_layers(model: ir.Model) -> None:
    """``Shape(Add(MatMul(x, weights), bias)) -> Shape(x)`` where the last size is not read, as for a mask of one row.

    Nothing but attention then needs the layer's result.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)
    for node in list(model.graph):
        rows = _before_layer(node.inputs[0]) if node.op_type == "Shape" else None
        if rows is not None and not _reads_last(node, len(rows.shape or ())):
            node.replace_input_with(0, rows)


def _before_layer(value: ir.Value | None) -> ir.Value | None:
    """x of ``Add(MatMul(x, weights), bias)``, or of the product alone, with constants that leave its dimensions."""
    node = None if value is None else value.producer()
    if node is not None and node.op_type == "Add":
        held = [constant(each) for each in node.inputs]
        plain = [each for each, array in zip(node.inputs, held, strict=True) if array is None]
        flat = all(array is None or array.ndim <= 1 for array in held)
        node = plain[0].producer() if len(plain) == 1 and plain[0] is not None and flat else None
    weights = constant(node.inputs[1]) if node is not None and node.op_type == "MatMul" else None
    return node.inputs[0] if node is not None and weights is not None and weights.ndim == 2 else None


def _reads_last(node: ir.Node, rank: int) -> bool:
    """Whether somebody may want the last of the sizes that a Shape gives."""
    if node.attributes:
        start, end = (node.attributes.get_int(name, -1) for name in ("start", "end"))
        return not 0 <= start < end < rank
    if node.outputs[0].is_graph_output():
        return True
    readers = [use.node for use in node.outputs[0].uses()]
    held = [constant(each.inputs[1]) if each.op_type == "Gather" else None for each in readers]
    return any(axes is None or (axes % max(rank, 1) == rank - 1).any() for axes in held)


def read_sizes_before(model: ir.Model) -> None:
    """``Shape(SDPA(q, k, v)) -> Shape(q)``, where q is what is split into heads: [B, S, ..] -> B, heads, S, D.

    The TorchScript exporter reads the batch's size behind attention. onnxscript's rules then leave the heads apart.
    """
    for node in list(model.graph):
        heads = node.inputs[0] if node.op_type == "Shape" else None
        source = heads.producer() if heads is not None else None
        if source is not None and source.op_type == "Where" and source.inputs[2] is not None:
            source = source.inputs[2].producer()
        if heads is not None and source is not None and source.op_type == "SDPA" and not node.attributes:
            _read_sizes_of(source, heads, node, model.graph)


def _read_sizes_of(attention: ir.Node, heads: ir.Value, reader: ir.Node, graph: ir.Graph) -> None:
    import onnx_ir as ir

    rows, (batch, count, tokens, size) = _before_heads(attention.inputs[0]), heads.shape or (None,) * 4
    if rows is None or rows.shape is None or not known(rows) or not known(heads) or not isinstance(size, int):
        return
    if len(rows.shape) != 3 or [batch, tokens] != list(rows.shape[:2]):
        return
    numbers = {"first": 0, "count": count, "second": 1, "size": size}
    held = {
        name: add_constant(graph, f"{reader.outputs[0].name}_{name}", np.array([number], np.int64))
        for name, number in numbers.items()
    }
    whole = ir.node("Shape", [rows])
    picked = [ir.node("Gather", [whole.outputs[0], held[name]], attributes={"axis": 0}) for name in ("first", "second")]
    inputs = [picked[0].outputs[0], held["count"], picked[1].outputs[0], held["size"]]
    sizes = ir.node("Concat", inputs, attributes={"axis": 0}, name=reader.name)
    graph.insert_before(reader, [whole, *picked, sizes])
    ir.convenience.replace_all_uses_with(reader.outputs[0], sizes.outputs[0], replace_graph_outputs=True)
    graph.remove(reader, safe=True)


def _before_heads(heads: ir.Value | None) -> ir.Value | None:
    """What heads were projected from, through ``Transpose(Reshape(Add(MatMul(x, weights), bias)))``."""
    for kind, needed in (("Transpose", True), ("Reshape", True), ("Add", False), ("MatMul", False)):
        node = None if heads is None else heads.producer()
        if node is not None and node.op_type == kind:
            computed = [each for each in node.inputs if each is not None and each.producer() is not None]
            heads = computed[0] if computed else node.inputs[0]
        elif needed:
            return None
    return heads


def drop_idle_reshapes(model: ir.Model) -> None:
    """``Reshape(Reshape(x, ..), shape of x) -> x`` and ``Reshape(x, shape of x) -> x``, as exports have it."""
    import onnx_ir as ir

    for node in list(model.graph):
        source, same = (node if node.op_type == "Reshape" else None), None
        while source is not None and source.op_type == "Reshape" and known(source.inputs[0]):
            before = source.inputs[0]
            same = before if before is not None and before.shape == node.outputs[0].shape else same
            source = before.producer() if before is not None else None
        if same is not None and known(node.outputs[0]) and not node.outputs[0].is_graph_output():
            ir.convenience.replace_all_uses_with(node.outputs[0], same)
            model.graph.remove(node, safe=True)


def drop_idle_expands(model: ir.Model) -> None:
    """``MultiHeadAttention(q, k, v, mask=Expand(x, size)) -> MultiHeadAttention(q, k, v, mask=x)`` for x of that size.

    onnxscript puts them in for masks of one row. In T5, whose masks have a plane for each head, they copied as much as
    the rest of attention took.
    """
    for node in model.graph:
        source = node.inputs[5].producer() if node.op_type == "MultiHeadAttention" and _has_mask(node) else None
        if source is None or source.op_type != "Expand":
            continue
        mask, grown = source.inputs[0], source.outputs[0]
        if mask is not None and known(mask) and mask.shape == grown.shape:
            node.replace_input_with(5, mask)


def _has_mask(node: ir.Node) -> bool:
    return len(node.inputs) > 5 and node.inputs[5] is not None


def keep_flattening_apart(model: ir.Model) -> None:
    """``Reshape(heads, [-1, D]) -> Reshape(Reshape(heads, [0, 0, -1]), [-1, D])`` after attention.

    onnxscript takes any Reshape behind the heads for the one that joins them, and drops it: a model that goes on with
    rows of [batch * seq, D], as GPT-2 does, would get [batch, seq, D] and could not be opened.
    """
    import onnx_ir as ir

    for node in list(model.graph):
        heads, rows = (node.inputs[0], node.outputs[0]) if node.op_type == "Reshape" else (None, None)
        source = heads.producer() if heads is not None else None
        if heads is None or source is None or source.op_type != "Transpose" or rows is None or rows.shape is None:
            continue
        if heads.shape is not None and len(heads.shape) == 4 and len(rows.shape) == 2:
            shape = add_constant(model.graph, f"{rows.name}_joined_shape", np.array([0, 0, -1], np.int64))
            join = ir.node("Reshape", [heads, shape], name=f"{node.name}_join")
            batch, tokens, count, size = heads.shape
            wide = count * size if isinstance(count, int) and isinstance(size, int) else None
            shaped(join.outputs[0], [batch, tokens, wide], heads).name = f"{rows.name}_joined"
            model.graph.insert_before(node, join)
            node.replace_input_with(0, join.outputs[0])
