"""Simplification of ONNX graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from optkit.model.model import Form, Model
from optkit.passes._base import Context, Outcome, Pass, PassKind

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx import ModelProto

SLIM_BELOW = 1_000_000_000
"""Bytes of weights up to which onnxslim is used. A model of 3 GB: 8.9 GB of memory with it, .1 GB without."""


class Simplify(Pass):
    """Remove what an ONNX graph computes twice, in vain or always the same.

    onnxslim folds constants, batch normalizations and pairs of layout operators; onnx-ir then drops identities,
    repeated expressions, repeated weights and dead nodes: ``Identity(x) -> x``,
    ``BatchNormalization(Conv(x)) -> Conv(x)``, ``Shape -> Gather -> Concat`` of fixed sizes ``-> constant``.
    Inputs and outputs keep names, dtypes and shapes.
    """

    forms: ClassVar[Mapping[Form, Form]] = {"onnx": "onnx"}
    kind: ClassVar[PassKind] = "exact"
    for_speed: ClassVar[bool] = False

    fold_below_mb: float = Field(default=16.0, ge=0)
    """Constants larger than this, MB, are not computed in advance: a folded Transpose or Expand stores its result."""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Simplify, and say for every type of node how many there were and are."""
        from optkit.passes._fusion.fold import is_random
        from optkit.passes._ir import count_changes, frozen_inputs, load_ir, op_counts, save_ir, weight_bytes

        graph = load_ir(model.path)
        frozen = frozen_inputs(graph)
        before = _counts(graph, op_counts(graph))
        notes: list[str] = []
        if is_random(graph):
            notes.append("the graph draws random numbers: without onnxslim, which makes one of two draws")
        elif weight_bytes(graph) <= SLIM_BELOW:
            graph, notes = self._slim(model, graph)
        else:
            notes.append(
                "more than 1 GB of weights: onnx-ir's clean-ups only, without onnxslim, which needs 3 times that"
            )
        _clean(graph)
        after = _counts(graph, op_counts(graph))
        changes = count_changes(before, after)
        if not changes:
            return Outcome(model, 0, notes=[*notes, "the graph is as simple as it can be made"])
        path = ctx.workdir / "model.onnx"
        save_ir(graph, path)
        made = model.derive(path, "onnx", self.sentence())
        return Outcome(made, _removed(before, after), changes=changes, notes=[*notes, *frozen])

    def _slim(self, model: Model, graph: ir.Model) -> tuple[ir.Model, list[str]]:
        """What onnxslim makes of the file, with the inputs and outputs it had."""
        import onnx_ir as ir
        import onnxslim

        from optkit.model.onnx_file import load_onnx

        proto = load_onnx(model.path)
        held = {tensor.name for tensor in proto.graph.initializer}
        inputs = [value for value in proto.graph.input if value.name not in held]
        outputs = list(proto.graph.output)
        try:
            slim: ModelProto = onnxslim.slim(proto, size_threshold=max(1, int(self.fold_below_mb * 2**20)))
        except Exception as error:  # noqa: BLE001  it runs models and patterns, and raises whatever those raise
            return graph, [f"onnxslim failed ({type(error).__name__}: {error}); only onnx-ir's clean-ups were done"]
        # It drops inputs that nothing reads, and may rename dynamic dimensions: both are the caller's.
        del slim.graph.input[:], slim.graph.output[:]
        slim.graph.input.extend(inputs)
        slim.graph.output.extend(outputs)
        made = ir.from_proto(slim)
        if torn := _torn(made):
            return graph, [f"onnxslim lost where '{torn}' comes from; only onnx-ir's clean-ups were done"]
        return made, []


def _torn(model: ir.Model) -> str:
    """Name of a tensor that is read and that nothing gives; empty where there is none."""
    for node in model.graph.all_nodes():
        for value in node.inputs:
            if value is not None and not (value.producer() or value.is_graph_input() or value.is_initializer()):
                return str(value.name)
    return ""


def _clean(model: ir.Model) -> None:
    from onnx_ir.passes import common

    from optkit.passes._fusion.fold import merge_repeated

    _drop_identities(model)
    for clean in (
        common.LiftConstantsToInitializersPass(),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateHashedInitializersPass(),
        merge_repeated,
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
    ):
        clean(model)


def _drop_identities(model: ir.Model) -> None:
    """``Identity(x) -> x``. onnx-ir's own pass fails on a subgraph that gives out a value from around it.

    It also renames an output of the graph whose copy is an output too; here such copies stay.
    """
    import onnx_ir as ir

    for node in list(model.graph.all_nodes()):
        value, copy = (node.inputs[0], node.outputs[0]) if node.op_type == "Identity" else (None, None)
        if value is None or copy is None or node.graph is None:
            continue
        if copy.is_graph_output():
            source = value.producer()
            if source is None or source.graph is not node.graph or value.is_graph_output():
                continue
            value.name, value.type = copy.name, value.type or copy.type
        ir.convenience.replace_all_uses_with(copy, value, replace_graph_outputs=True)
        node.graph.remove(node, safe=True)


def _counts(model: ir.Model, ops: Counter[str]) -> Counter[str]:
    initializers = sum(len(graph.initializers) for graph in model.graphs())
    return ops + Counter({"initializers": initializers})


def _removed(before: Counter[str], after: Counter[str]) -> int:
    """Nodes and initializers that are gone; at least 1, as a rewrite may also put as many in their place."""
    return max(1, sum((before - after).values()))
