"""Steps that only reorder, reshape, repeat or retype a tensor, where they cancel, are one, or are not needed.

``simplify`` removes most of them. Here are those that are left of it, or come from other fusions, and sizes that are
computed although they could be read off.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from optkit.passes._fusion.family import Fired
from optkit.passes._ir import add_constant, constant, node_label

if TYPE_CHECKING:
    import onnx_ir as ir

OPPOSITE = {"Squeeze": "Unsqueeze", "Unsqueeze": "Squeeze"}
BROADCASTING = {"Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod"}
BROADCASTING |= {"Mul", "Or", "Pow", "Sub", "Sum", "Where", "Xor"}
"""Operators that repeat their inputs by themselves."""
RULES = ["no_op_cast", "no_op_expand", "no_op_transpose", "reshape_reshape", "transpose_transpose"]
RULES += ["unsqueeze_unsqueeze", "squeeze_reshape_1d", "collapse_slice", "collapse_slice2"]
"""onnxscript's own. Its rules for Cast of Cast, and Expand before other operators, are not exact in all cases."""


def fuse_layout(model: ir.Model) -> Fired:
    """``Transpose(Transpose(x)) -> Transpose(x)``, ``Add(Expand(x), y) -> Add(x, y)`` and others like them.

    ``Reshape(x, Concat(Gather(Shape(x), 0), ...)) -> Reshape(x, [0, 0, 12, 32])`` where that is the same for all sizes.
    """
    from onnxscript.optimizer import remove_unused_nodes

    count = 0
    while True:
        found = int(_rules().apply_to_model(model))
        _drop_identities(model)
        found += sum(_is_needed(node) and (_bypass(node) or _shorten(node)) for node in list(model.graph.all_nodes()))
        settled, refused = _settle_sizes(model)
        remove_unused_nodes(model)
        count += found + settled
        if not found + settled:
            return Fired(count, refused)


@cache
def _rules() -> Any:
    from onnxscript.rewriter import RewriteRuleSet
    from onnxscript.rewriter.rules import common

    return RewriteRuleSet([getattr(common, f"{name}_rule") for name in RULES])


def _drop_identities(model: ir.Model) -> None:
    """What onnxscript's rules leave; not those that give out a value under a name of its own."""
    import onnx_ir as ir

    for node in list(model.graph.all_nodes()):
        if node.op_type == "Identity" and node.inputs[0] is not None and not node.outputs[0].is_graph_output():
            ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])


def _is_needed(node: ir.Node) -> bool:
    return any(value.uses() or value.is_graph_output() for value in node.outputs)


def _bypass(node: ir.Node) -> bool:
    """Let everybody read what the node's result is equal to."""
    import onnx_ir as ir

    source = None if node.outputs[0].is_graph_output() else _equal(node)
    if source is None:
        return False
    ir.convenience.replace_all_uses_with(node.outputs[0], source)
    return True


def _equal(node: ir.Node) -> ir.Value | None:
    """``Squeeze(Unsqueeze(x, axes), axes) -> x`` and the other way; ``Reshape(x, sizes) -> x`` for x of those sizes."""
    from onnxscript.rewriter._ir_utils import same_shape

    value = node.inputs[0] if node.inputs else None
    if node.op_type in ("Expand", "Reshape") and value is not None and same_shape(value.shape, node.outputs[0].shape):
        return value
    source = None if value is None else value.producer()
    if source is None or source.op_type != OPPOSITE.get(node.op_type):
        return None
    axes = _axes(node)
    return source.inputs[0] if axes is not None and axes == _axes(source) else None


def _axes(node: ir.Node) -> list[int] | None:
    """Sorted, as they are written: both of a pair count them in the tensor that has them."""
    held = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if held is None else sorted(held.ravel().tolist())


def _shorten(node: ir.Node) -> bool:
    """Let the node read an earlier tensor from which it makes the same."""
    if node.op_type == "Cast":
        return _skip_wider_cast(node)
    if node.op_type == "Reshape":
        return _skip_reshape(node)
    return node.op_type in BROADCASTING and any(_skip_expand(node, index) for index in range(len(node.inputs)))


def _skip_reshape(node: ir.Node) -> bool:
    """``Reshape(Reshape(x, [0, 0, 4, -1]), [0, 0, 32]) -> Reshape(x, [0, 0, 32])``: copied sizes were copied before."""
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    if source is None or source.op_type != "Reshape":
        return False
    first, second = (constant(each.inputs[1]) for each in (source, node))
    if first is None or second is None or any(each.attributes.get_int("allowzero", 0) for each in (source, node)):
        return False
    if any(size == 0 and (axis >= len(first) or first[axis] != 0) for axis, size in enumerate(second)):
        return False
    node.replace_input_with(0, source.inputs[0])
    return True


def _skip_wider_cast(node: ir.Node) -> bool:
    """``Cast(Cast(x)) -> Cast(x)`` where the type between the two holds every value of x."""
    import onnx_ir as ir

    between = node.inputs[0]
    source = None if between is None else between.producer()
    given = source.inputs[0] if source is not None and source.op_type == "Cast" else None
    if between is None or given is None or given.dtype is None or between.dtype is None:
        return False
    if not _survive(given.dtype, between.dtype, ir.DataType(node.attributes.get_int("to", 0))):
        return False
    node.replace_input_with(0, given)
    return True


def _survive(given: ir.DataType, between: ir.DataType, last: ir.DataType) -> bool:
    """Whether the type between makes no difference. NumPy calls int64 -> float64 safe, although it rounds."""
    if any(each.name in ("STRING", "UNDEFINED") for each in (given, between, last)):
        return False
    if given.name in ("INT64", "UINT64") and between.is_floating_point():
        return False
    beyond = given.is_floating_point() and last.is_integer()  # what then comes out is up to the machine
    return not beyond and bool(np.can_cast(given.numpy(), between.numpy(), "safe"))


def _skip_expand(node: ir.Node, index: int) -> bool:
    """``Add(Expand(x), y) -> Add(x, y)`` where both give the same shape."""
    value = node.inputs[index]
    source = None if value is None else value.producer()
    if source is None or source.op_type != "Expand" or source.inputs[0] is None:
        return False
    inputs = [*node.inputs]
    before = _broadcast(inputs)
    inputs[index] = source.inputs[0]
    if before is None or _broadcast(inputs) != before:
        return False
    node.replace_input_with(index, source.inputs[0])
    return True


def _broadcast(values: Sequence[ir.Value | None]) -> list[Any] | None:
    """Shape of the result of an elementwise operator, None where it is not known."""
    shapes = [None if value is None else value.shape for value in values]
    if any(shape is None or shape.has_unknown_dim() for shape in shapes):
        return None
    found: list[Any] = []
    for shape in shapes:
        dims = list(shape or ())
        rank = max(len(dims), len(found))
        pairs = list(zip(*([1] * (rank - len(each)) + each for each in (found, dims)), strict=True))
        if any(1 not in pair and pair[0] != pair[1] for pair in pairs):
            return None
        found = [second if first == 1 else first for first, second in pairs]
    return found


def _settle_sizes(model: ir.Model) -> tuple[int, tuple[tuple[str, str], ...]]:
    """Make constants of computed sizes of Reshape; how many, and where it could not be done."""
    count, refused = 0, []
    for graph in list(model.graphs()):
        for node in graph:
            if node.op_type != "Reshape" or len(node.inputs) < 2 or constant(node.inputs[1]) is not None:
                continue
            if (sizes := _sizes(node.inputs[0], node.outputs[0])) is None:
                refused.append((node_label(node), "its sizes are neither known nor those of its input"))
                continue
            held = add_constant(graph, f"{node.outputs[0].name}_sizes", np.array(sizes, np.int64))
            node.replace_input_with(1, held)
            node.attributes.pop("allowzero", None)
            count += 1
    return count, tuple(refused)


def _sizes(value: ir.Value | None, result: ir.Value) -> list[int] | None:
    """Numbers, 0 for a size that is the input's at the same place, and -1 for one that is left.

    Not 0 and -1 together: where a size is 0 at run time, -1 is then refused.
    """
    if value is None or value.shape is None or result.shape is None or result.is_graph_output() or 0 in result.shape:
        return None
    given = [*value.shape, *[None] * len(result.shape)]
    sizes = [_size(dim, before) for dim, before in zip(result.shape, given, strict=False)]
    return None if sizes.count(-1) > 1 or (-1 in sizes and 0 in sizes) else sizes


def _size(dim: int | ir.SymbolicDim, before: int | ir.SymbolicDim | None) -> int:
    if isinstance(dim, int):
        return dim
    return 0 if dim.value is not None and dim == before else -1
