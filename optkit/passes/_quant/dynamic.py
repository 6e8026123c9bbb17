"""Dynamic int8: which nodes of a model have an integer form, and the model with some of them in it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Literal

from optkit.passes._ir import derived, inline, node_label, raise_opset
from optkit.passes._quant.attention import ATTENTION
from optkit.passes._quant.integer import Parts, Refusal, Rounding
from optkit.passes._quant.layered import Built
from optkit.passes._quant.linear import LINEAR
from optkit.passes._quant.lstm import LSTM, fold_weights

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from optkit.model.model import Model

DynamicOp = Literal["MatMul", "Gemm", "Conv", "LSTM", "Attention"]
KINDS = {
    ("", "MatMul"): LINEAR,
    ("", "Gemm"): LINEAR,
    ("", "Conv"): LINEAR,
    ("", "LSTM"): LSTM,
    ("com.microsoft", "Attention"): ATTENTION,
}
"""(domain, type) of the operators that have an integer form."""
NO_KERNEL = {("", "GRU"), ("", "RNN")}
OPSET = 11
"""Where DynamicQuantizeLinear begins."""
BATCH_NOTE = (
    "a sample's answer now depends on its batch: activations get one scale per tensor at run time"
    " (optkit check --batch-invariance measures it)"
)
INT8 = "int8"
NARROW_NOTE = "weights use 7 bits: no VNNI here"


@dataclass
class Found:
    """The nodes of a model that could be quantized."""

    layers: dict[str, str] = field(default_factory=dict)
    """Label -> its output tensor; for a node in a subgraph, that of the node of the main graph around it."""
    at: dict[int, str] = field(default_factory=dict)
    """Place among all nodes, as ``every_node`` counts them -> label."""
    skipped: list[tuple[str, str]] = field(default_factory=list)


def every_node(graph: ir.Graph, outer: ir.Node | None = None) -> Iterator[tuple[ir.Node, ir.Node]]:
    """(node, the node of the main graph that it is or lies in)."""
    import onnx_ir as ir

    for node in graph:
        yield node, outer or node
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from every_node(attribute.as_graph(), outer or node)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for body in attribute.as_graphs():
                    yield from every_node(body, outer or node)


def prepare(model: ir.Model) -> tuple[ir.Model, bool]:
    """The model with every node in sight, and whether inner tensors may have other names now."""
    other = bool(model.functions) or model.opset_imports.get("", OPSET) < OPSET
    prepared = raise_opset(inline(model), OPSET)
    fold_weights(prepared)
    return prepared, other


def find(model: ir.Model, refusal: Callable[[ir.Node, str], str]) -> Found:
    """The nodes that have an integer form; ``refusal`` gives the reason against one of that label, or nothing."""
    found, taken = Found(), set[str]()
    for place, (node, outer) in enumerate(every_node(model.graph)):
        kind = (node.domain, node.op_type)
        if kind not in KINDS and kind not in NO_KERNEL:
            continue
        label = _label(node, taken)
        taken.add(label)
        try:
            reason = refusal(node, label)
            if not reason:
                KINDS[kind].check(node)
        except Refusal as refused:
            reason = str(refused)
        if reason:
            found.skipped.append((label, reason))
        else:
            found.layers[label] = next(str(output.name) for output in outer.outputs if output.name)
            found.at[place] = label
    return found


def _label(node: ir.Node, taken: Collection[str]) -> str:
    """What the node is called in reports and in ``exclude``; nodes of If branches often share a name."""
    label = node_label(node)
    if label in taken:
        label = f"{label} -> {node.outputs[0].name}"
    return next(free for number in count(1) if (free := f"{label} ({number})" if number > 1 else label) not in taken)


@dataclass(frozen=True)
class Builder:
    """Makes models of one prepared graph, each with other layers in integers."""

    source: Model
    graph: ir.Model
    """Stays as it is."""
    found: Found
    rounding: Rounding
    workdir: Path
    sentence: str
    number: Iterator[int] = field(default_factory=count)

    def __call__(self, levels: Mapping[str, str]) -> Built:
        """The model with every layer in int8 that has no level or the level int8; see ``Layered.build``."""
        made = self.graph.clone()
        parts = Parts(made, self.rounding)
        changes = []
        for place, (node, _) in enumerate(list(every_node(made.graph))):
            label = self.found.at.get(place)
            if label is not None and levels.get(label, INT8) == INT8:
                changes.append((label, KINDS[node.domain, node.op_type].rewrite(node, parts)))
        model = derived(self.source, made, self.workdir / f"int8-{next(self.number)}", self.sentence)
        notes = [BATCH_NOTE, *([NARROW_NOTE] if self.rounding.reduce_range else [])]
        return Built(model, changes, notes if changes else [])
