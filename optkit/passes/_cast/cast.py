"""float32 graphs computed in a 16-bit type, but for the nodes whose values it does not hold."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from optkit.passes._base import Outcome, Pass
from optkit.passes._cast.half import Half
from optkit.passes._quant.select import unused

if TYPE_CHECKING:
    import onnx_ir as ir

    from optkit.model.model import Model
    from optkit.passes._base import Context
    from optkit.passes._cast.choose import Seen


def cast_graph(pass_: Pass, model: Model, ctx: Context, half: Half, exclude: Sequence[str]) -> Outcome:
    """The outcome of a pass that computes in ``half`` what it can.

    Which nodes do is told by their operators' schemas, by ``FLOAT32_OPS``, and by the values that come on the split
    ``sample``. Nodes in subgraphs, and those that hold one, stay in float32, as their values cannot be watched.
    """
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    from optkit.passes._cast.choose import choose
    from optkit.passes._cast.rewrite import Rewriter
    from optkit.passes._ir import frozen_inputs, inline, load_ir, node_label, raise_opset, remove_unused, save_ir

    loaded = load_ir(model.path)
    notes, plain = frozen_inputs(loaded), not loaded.functions
    graph = raise_opset(inline(loaded), half.opset)
    seen = _watch(graph, model, ctx, as_it_is=plain and graph is loaded)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    notes += unused(exclude, [node_label(node) for node in graph.graph])
    chosen, skipped = choose(graph, seen, half, exclude)
    if not any(_is_weight(value) for node, slots in chosen.items() for value in slots.values(node)):
        notes.append(f"nothing to cast: no float32 weights that could be {half.name}")
        return Outcome(model, 0, skipped=skipped, notes=notes)
    Rewriter(graph, chosen, seen, half).rewrite()
    remove_unused(graph)
    path = ctx.workdir / "model.onnx"
    save_ir(graph, path)
    counts = Counter(node.op_type for node in chosen).most_common()
    changes = [(kind, f"{count} in {half.name}") for kind, count in counts]
    notes.append(f"{len(skipped)} nodes stay in float32; values were watched on {_data(ctx)}")
    return Outcome(model.derive(path, "onnx", pass_.sentence()), len(chosen), changes, skipped, notes)


def _watch(graph: ir.Model, model: Model, ctx: Context, *, as_it_is: bool) -> dict[str, Seen]:
    """What the tensors of ``graph`` hold; a graph that is no longer the model's file becomes one for that."""
    from optkit.passes._cast.choose import watch
    from optkit.passes._ir import written

    if as_it_is:
        return watch(graph, model, ctx)
    folder = ctx.workdir / "watched"
    seen = watch(graph, written(model, graph, folder), ctx)
    shutil.rmtree(folder)
    return seen


def _is_weight(value: ir.Value) -> bool:
    return value.is_initializer() and value.const_value is not None and value.const_value.size > 1


def _data(ctx: Context) -> str:
    data = ctx.batches("sample")
    return f"{data.count} {'synthetic samples, which show little' if data.synthetic else f'samples of {data.source}'}"
