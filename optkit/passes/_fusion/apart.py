"""Additions kept out of normalizations, by a form that onnxruntime's optimizer does not take for its pattern.

Its ``SkipLayerNormFusion`` runs for CPUs as well, where the kernel is slower. The session config entry
``optimization.disable_specified_optimizers`` keeps it off, but has to be given by everybody who opens the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optkit.passes._fusion.family import Fired
from optkit.passes._ir import add_constant, constant, node_label, sole_source

if TYPE_CHECKING:
    import onnx_ir as ir


def keep_apart(model: ir.Model) -> Fired:
    """``LayerNormalization(Add(a, b), s) -> LayerNormalization(Add(a, b), s')`` with ``s`` [D] as ``s'`` [1, D].

    Scales may be anything that broadcasts to the input, and the kernel takes both alike; the fused one wants a vector.
    """
    rows: dict[ir.Value, ir.Value] = {}
    count, refused = 0, []
    for node in model.graph.all_nodes():
        scale = node.inputs[1] if _is_norm(node) and _is_sum(node.inputs[0]) else None
        held = constant(scale)
        if scale is not None and held is None:
            refused.append((node_label(node), "its scale is computed"))
        elif scale is not None and held is not None and held.ndim == 1 and scale.graph is not None:
            if scale not in rows:
                rows[scale] = add_constant(scale.graph, f"{scale.name}_row", held[None])
            node.replace_input_with(1, rows[scale])
            count += 1
    return Fired(count, tuple(refused))


def _is_norm(node: ir.Node) -> bool:
    """Whether it is a LayerNormalization of matrices or more; a vector has no room for a scale of [1, D]."""
    data = node.inputs[0] if (node.domain, node.op_type) == ("", "LayerNormalization") else None
    return data is not None and data.shape is not None and len(data.shape) > 1


def _is_sum(value: ir.Value | None) -> bool:
    """Whether it is an addition that nothing else reads: only then would it be fused."""
    source = sole_source(value)
    return source is not None and source.op_type == "Add"
