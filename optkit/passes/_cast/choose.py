"""Which nodes can compute in a 16-bit type: watched on a sample, refused with a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optkit.passes._cast.half import FLOAT32_OPS, MASKING, Half
from optkit.passes._cast.slots import Slots, find_slots, is_float32
from optkit.passes._quant.select import EXCLUDED, excluded

if TYPE_CHECKING:
    import onnx_ir as ir

    from optkit.model.model import Model
    from optkit.passes._base import Context

Entries = list[tuple[str, str]]

SAFETY = 4.0
"""Values seen on a few samples must stay below the type's largest by this factor."""
ROUNDING = 0.01
"""Root mean square of a weight's rounding errors over that of the weight, at most. Normal numbers round to .0003
(float16) and .0016 (bfloat16) of their size; what float16 cannot hold near 0 rounds to more, or to nothing."""


@dataclass
class Seen:
    """What one float32 tensor held on the sample."""

    peak: float = 0.0
    """Largest absolute value below ``MASKING``."""
    masks: bool = False
    """Whether there were values beyond."""

    def update(self, values: NDArray[np.float32]) -> None:
        """Take note of more values."""
        sizes = np.abs(values)
        inside = sizes < MASKING
        self.peak = max(self.peak, float(sizes.max(initial=0.0, where=inside)))
        self.masks |= bool(not inside.all())


def watch(graph: ir.Model, model: Model, ctx: Context) -> dict[str, Seen]:
    """Every float32 tensor of the main graph that is computed or given, with what it held on the sample.

    Args:
        graph: the graph of ``model``; its tensors get their types.
        model: is run, with all these tensors as outputs.
        ctx: runs it.
    """
    import onnx_ir as ir
    from onnx_ir.passes.common import ShapeInferencePass

    from optkit.passes._ir import quiet

    with quiet():
        ShapeInferencePass(check_type=False, strict_mode=False)(graph)
    values = {value.name or "": value for node in graph.graph for value in node.outputs if value.name}
    inner = [name for name, value in values.items() if value.dtype in (None, ir.DataType.FLOAT) and _is_tensor(value)]
    if not inner:
        return {}
    values |= {value.name or "": value for value in graph.graph.inputs}
    data, found = ctx.batches("sample"), dict[str, Seen]()
    for batch, outputs in zip(data.batches(), ctx.run(model, data, outputs=inner), strict=True):
        for name, array in (batch.inputs | outputs).items():
            if array.dtype == np.float32 and name in values:
                values[name].dtype = ir.DataType.FLOAT
                found.setdefault(name, Seen()).update(array.astype(np.float32, copy=False))
    return found


def _is_tensor(value: ir.Value) -> bool:
    import onnx_ir as ir

    return value.type is None or isinstance(value.type, ir.TensorType)


def choose(
    model: ir.Model, seen: Mapping[str, Seen], half: Half, exclude: Sequence[str]
) -> tuple[dict[ir.Node, Slots], Entries]:
    """The nodes that can compute in ``half``, and the others that give float32, with the reason."""
    from optkit.passes._ir import node_label

    chosen: dict[ir.Node, Slots] = {}
    skipped: Entries = []
    for node in (node for node in model.graph if any(map(is_float32, node.outputs))):
        slots = find_slots(node, model.opset_imports.get(node.domain, 1))
        if reason := EXCLUDED if excluded(node_label(node), exclude) else _refusal(node, slots, seen, half):
            skipped.append((node_label(node), reason))
        elif slots is not None and slots.outputs:
            chosen[node] = slots
    return chosen, skipped


def _refusal(node: ir.Node, slots: Slots | None, seen: Mapping[str, Seen], half: Half) -> str:
    """Empty, or why the node stays in float32."""
    if _holds_graph(node):
        return "it holds a subgraph, whose values cannot be watched"
    if slots is None:
        return f"the operator {node.domain}.{node.op_type} is not known"
    if not slots.outputs:
        return ""
    if node.op_type in FLOAT32_OPS:
        return f"{node.op_type} {FLOAT32_OPS[node.op_type]}"
    if f"tensor({half.name})" not in slots.allowed:
        return f"{node.op_type} takes no {half.name} at this opset"
    problems = (_misfit(value, seen, half) for value in slots.values(node))
    return next(filter(None, problems), "")


def _holds_graph(node: ir.Node) -> bool:
    import onnx_ir as ir

    return any(each.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for each in node.attributes.values())


def _misfit(value: ir.Value, seen: Mapping[str, Seen], half: Half) -> str:
    """Empty, or why ``half`` does not hold the tensor."""
    if value.const_value is not None:
        return _weight_misfit(value.name or "", value.const_value.numpy(), half)
    peak = seen.get(value.name or "", Seen()).peak
    if peak * SAFETY > half.largest:
        return f"'{value.name}' reaches {peak:.3g}; {half.name} ends at {half.largest:.3g}"
    if 0 < peak < half.smallest:
        return f"'{value.name}' stays below {half.smallest:.1g}, where {half.name} loses digits"
    return ""


def _weight_misfit(name: str, weight: NDArray[np.float32], half: Half) -> str:
    sizes = np.abs(weight)
    peak = float(sizes.max(initial=0.0, where=sizes < MASKING))
    if peak > half.largest:
        return f"the weight '{name}' reaches {peak:.3g}; {half.name} ends at {half.largest:.3g}"
    kept = np.where(sizes < MASKING, weight, 0)
    error = np.linalg.norm(half.round(kept).astype(np.float32) - kept) / (np.linalg.norm(kept) or 1.0)
    return f"rounding to {half.name} changes the weight '{name}' by {error:.0%}" if error > ROUNDING else ""
