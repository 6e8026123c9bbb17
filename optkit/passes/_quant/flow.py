"""Where integers flow in a graph: what of the nodes that could be quantized is worth it, at given precisions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from optkit.passes._quant.layered import FLOAT
from optkit.passes._quant.operators import ABSORBED, FOLLOWING, KNOWN, LINEAR, OPERANDS, SENSITIVE, WEIGHTED, refusal
from optkit.passes._quant.select import EXCLUDED, excluded

if TYPE_CHECKING:
    import onnx_ir as ir

Held = dict["ir.Node", str]
"""Nodes that compute on integers -> their precision."""


@dataclass(frozen=True)
class Candidates:
    """What could be quantized in a graph."""

    names: list[str] = field(default_factory=list)
    """Of nodes, in the graph's order."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Nodes that a user might miss among them, with the reason."""


def candidates(
    graph: ir.Graph, ops: Collection[str], include: Collection[str] = (), exclude: Collection[str] = ()
) -> Candidates:
    """The nodes (every one has a name) of ``ops``, of those the ones that ``include`` matches, without ``exclude``."""
    found = Candidates()
    for node in graph:
        reason = _reason(node, ops, include, exclude)
        if not reason:
            found.names.append(node.name or "")
        elif reason == EXCLUDED or node.op_type in WEIGHTED:
            found.skipped.append((node.name or "", reason))
    return found


def _reason(node: ir.Node, ops: Collection[str], include: Collection[str], exclude: Collection[str]) -> str:
    name = node.name or ""
    if node.domain not in ("", "ai.onnx") or node.op_type not in KNOWN:
        return f"it is not ONNX's own {node.op_type}"
    if node.op_type not in ops:
        return f"{node.op_type} is not among the operators to quantize here"
    if excluded(name, exclude):
        return EXCLUDED
    return refusal(node) if not include or excluded(name, include) else "it is not included"


class Flow:
    """Which of the nodes ``names`` compute on integers.

    Weighted layers do. Other operators do where it saves converting: most of what they take comes in integers, and
    somebody takes their result in integers. What only feeds Softmax or a normalization stays in float, where it is
    exact and costs nothing. ``forced`` nodes do in any case.

    Args:
        graph: with a name for every node.
        names: nodes that could be quantized.
        elements: how many values a tensor has in a batch; tensors without are no activations in float32.
        forced: take all of them, whether they are worth it or not.
    """

    def __init__(
        self, graph: ir.Graph, names: Collection[str], elements: Mapping[str, int], *, forced: bool = False
    ) -> None:
        wanted = set(names)
        self._elements = elements
        self._forced = forced
        self._nodes = [node for node in graph if node.name in wanted and any(map(self._size, _taken(node)))]

    def held(self, levels: Mapping[str, str], default: str) -> tuple[Held, list[tuple[str, str]]]:
        """Nodes on integers when layers have these precisions, and (name, reason) of candidates that are not."""
        held: Held = dict.fromkeys(self._nodes, default)
        for node in self._nodes:
            held[node] = self._level(node, held, levels, default)
        held = {node: level for node, level in held.items() if level != FLOAT}
        left: list[tuple[str, str]] = []
        while dropped := [(node, reason) for node in held if (reason := self._loss(node, held))]:
            for node, _ in dropped:
                del held[node]
            left += [(node.name or "", reason) for node, reason in dropped]
        return held, left

    def layers(self, held: Held) -> dict[str, str]:
        """Label -> output tensor of the nodes that have a precision of their own, of all that are held."""
        found = {}
        for node in held:
            if not self._follows(node, held):
                output = node.outputs[0]
                absorber = absorbed_by(output, held)
                found[node.name or ""] = (absorber.outputs[0] if absorber else output).name or ""
        return found

    def _level(self, node: ir.Node, held: Held, levels: Mapping[str, str], default: str) -> str:
        """The level of whoever rounds its input, for nodes that have no precision of their own."""
        if self._follows(node, held):
            producer = _producer(node)
            assert producer is not None  # it follows it
            return held[producer]
        return levels.get(node.name or "", default)

    def _follows(self, node: ir.Node, held: Mapping[ir.Node, str]) -> bool:
        producer = _producer(node)
        if producer is None or producer not in held or producer.op_type in LINEAR:
            return False
        return node.op_type in FOLLOWING or absorbed_by(producer.outputs[0], held) is node

    def _loss(self, node: ir.Node, held: Held) -> str:
        """Why integers are a loss for this node; empty where they are not."""
        if node.op_type in WEIGHTED or self._forced:
            return ""
        arriving = [self._size(value) for value in node.inputs if value is not None and self._size(value)]
        rounded = [self._size(value) for value in node.inputs if value is not None and gives_integers(value, held)]
        if 2 * sum(rounded) <= sum(arriving):
            return "its input is float"
        if any(wants_integers(value, held) for value in node.outputs):
            return ""
        if node.op_type in FOLLOWING or self._follows(node, held):
            return ""
        kinds = sorted({user.op_type for value in node.outputs for user in value.consumers()})
        sensitive = [kind for kind in kinds if kind in SENSITIVE]
        return f"it feeds {', '.join(sensitive or kinds) or 'an output'}, in float"

    def _size(self, value: ir.Value | None) -> int:
        return self._elements.get(value.name or "", 0) if value is not None else 0


def _taken(node: ir.Node) -> Sequence[ir.Value | None]:
    """The inputs that are to be quantized, where they are activations."""
    return list(node.inputs) if node.op_type in OPERANDS else list(node.inputs[:1])


def _producer(node: ir.Node) -> ir.Node | None:
    return node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None


def gives_integers(value: ir.Value, held: Mapping[ir.Node, str]) -> bool:
    """Whether the tensor is rounded where it is made."""
    producer = value.producer()
    return producer in held and producer.op_type not in LINEAR


def wants_integers(value: ir.Value, held: Mapping[ir.Node, str]) -> bool:
    """Whether somebody computes on the tensor's integers, and does not only move them along."""
    return any(
        user in held
        and (
            any(wants_integers(output, held) for output in user.outputs)
            if user.op_type in FOLLOWING or user.op_type in ABSORBED
            else user.inputs[0] is value or user.op_type not in WEIGHTED
        )
        for user in value.consumers()
    )


def absorbed_by(value: ir.Value, held: Mapping[ir.Node, str]) -> ir.Node | None:
    """The Relu or Clip that alone takes the tensor, and at whose result it is rounded instead."""
    producer, users = value.producer(), list(value.consumers())
    if producer is None or producer.op_type in FOLLOWING or producer.op_type in LINEAR or value.is_graph_output():
        return None
    return users[0] if len(users) == 1 and users[0] in held and users[0].op_type in ABSORBED else None
