"""The float model that static quantization starts from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optkit.model.model import Model
from optkit.passes._base import Context
from optkit.passes._ir import (
    add_constant,
    constant,
    frozen_inputs,
    inline,
    load_ir,
    op_counts,
    quiet,
    raise_opset,
    written,
)

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 13
"""Where QuantizeLinear learns channels."""
FLOAT_FOLDER = "float"
"""Below the workdir, for as long as the pass runs."""


@dataclass(frozen=True)
class Prepared:
    """A float model in which every node has a name of its own and every weight is an initializer."""

    model: Model
    graph: ir.Model
    found: Counter[str]
    """Operators of the model as it was given."""
    notes: list[str]


def prepare(model: Model, ctx: Context) -> Prepared:
    """Write the model at a fit opset, without functions, with pooling where means are taken over pictures."""
    from onnx_ir.passes.common import LiftConstantsToInitializersPass, NameFixPass

    loaded = load_ir(model.path)
    notes, found = frozen_inputs(loaded), op_counts(loaded)
    graph = raise_opset(inline(loaded), OPSET)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    _help_convolutions(graph)
    for node in graph.graph:
        node.name = node.name or f"{node.op_type}_{node.outputs[0].name}"
    NameFixPass()(graph)
    return Prepared(written(model, graph, ctx.workdir / FLOAT_FOLDER), graph, found, [*notes, *_advice(graph)])


def _help_convolutions(model: ir.Model) -> None:
    """GELU in one piece, as a pair inside of it would keep onnxruntime from fusing it; and means as pooling."""
    from onnx_ir.passes.common import ShapeInferencePass

    from optkit.passes._fusion.gelu import fuse_gelu

    kinds = {node.op_type for node in model.graph}
    if "Conv" in kinds and kinds & {"Erf", "Tanh", "ReduceMean"}:
        with quiet():
            ShapeInferencePass()(model)
            fuse_gelu(model)
        pool_means(model)


def pool_means(model: ir.Model) -> int:
    """``ReduceMean(x, axes of height and width) -> GlobalAveragePool(x)``, which has an integer kernel; how many."""
    count = 0
    for node in list(model.graph):
        if _is_pool(node):
            _pool(model, node)
            count += 1
    return count


def _is_pool(node: ir.Node) -> bool:
    value = node.inputs[0] if node.op_type == "ReduceMean" and not node.domain else None
    if value is None or value.shape is None or len(value.shape) != 4:
        return False
    return sorted(axis % 4 for axis in _axes(node)) == [2, 3] and _follows_convolution(value)


def _axes(node: ir.Node) -> list[int]:
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return [int(axis) for axis in (node.attributes.get_ints("axes", ()) if given is None else given.reshape(-1))]


def _follows_convolution(value: ir.Value) -> bool:
    """Anything else is float, and a mean as good as a pool."""
    producer = value.producer()
    if producer is not None and producer.op_type in ("Relu", "Clip") and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return producer is not None and producer.op_type in ("Conv", "Add", "Mul")


def _pool(model: ir.Model, node: ir.Node) -> None:
    import numpy as np
    import onnx_ir as ir

    kept = bool(node.attributes.get_int("keepdims", 1))
    name = node.name or f"{node.op_type}_{node.outputs[0].name}"
    nodes = [ir.node("GlobalAveragePool", [node.inputs[0]], name=name)]
    if not kept:
        axes = add_constant(model.graph, f"{name}_axes", np.array([2, 3]))
        nodes[0].outputs[0].name = f"{name}_pooled"
        nodes.append(ir.node("Squeeze", [nodes[0].outputs[0], axes], name=f"{name}_squeeze"))
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, node.outputs, nodes[-1].outputs)


def _advice(model: ir.Model) -> Iterator[str]:
    norms = 0
    for node in model.graph:
        source = node.inputs[0].producer() if node.op_type == "BatchNormalization" and node.inputs[0] else None
        norms += source is not None and source.op_type == "Conv"
    if norms:
        yield f"{norms} BatchNormalization after Conv stay in float: put simplify before this pass"
