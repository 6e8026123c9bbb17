"""Weight-only quantization with calibration data, for groups of layers whose moments fit in memory together."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from optkit.model.model import Model
from optkit.passes._base import Context
from optkit.passes._ir import node_label
from optkit.passes._quant.awq import scale_groups
from optkit.passes._quant.gptq import Compensation, gptq
from optkit.passes._quant.groups import find_groups
from optkit.passes._quant.moments import Moments, few, grouped, measure
from optkit.passes._quant.nbits import Blocks, Grid

if TYPE_CHECKING:
    import onnx_ir as ir

    from optkit.passes._quant.sites import Site


def compensated(
    model: Model, sites: Sequence[Site], grid: Grid, ctx: Context, *, damping: float, order: bool
) -> tuple[dict[Hashable, Blocks], list[str]]:
    """Matrices by gptq under (``Site.key``, grid), and notes. All layers see the inputs that they have in float."""
    readers: dict[Hashable, set[str]] = {}
    for site in sites:
        readers.setdefault(site.key, set()).add(site.data)
    able = [site for site in sites if len(readers[site.key]) == 1 and site.data]
    left = [site.label for site in sites if site not in able]
    notes = [f"rounded without gptq (embeddings, shared weights, branches): {', '.join(left)}"] if left else []
    done: dict[Hashable, Blocks] = {}
    for known in _measured(model, {site.data: site.weights.shape[1] for site in able}, ctx, notes):
        for name, moments in known.items():
            how = Compensation.of(moments.square, damping=damping, order=order)
            for site in able:
                if site.data == name and (site.key, grid) not in done:
                    done[site.key, grid] = gptq(site.weights, grid, how)
    return done, notes


def scaled(model: Model, graph: ir.Model, sites: Sequence[Site], grid: Grid, ctx: Context) -> tuple[list[str], bool]:
    """Scale the groups of layers in ``graph`` as awq does; notes, and whether any was scaled."""
    labels = {site.label for site in sites}
    groups = {str(each.source.name): each for each in find_groups(graph)[0]}
    chosen = {name: each for name, each in groups.items() if labels.issuperset(map(node_label, each.nodes))}
    notes: list[str] = []
    changed = False
    for known in _measured(model, {name: len(group.weights()) for name, group in chosen.items()}, ctx, notes):
        done = scale_groups([chosen[name] for name in known], known, grid)
        notes += [f"awq: {where}: {what}" for where, what in done]
        changed = changed or bool(done)
    return (notes if changed else [*notes, "awq: no layer gains by a scale, so that it is as rtn"]), changed


def _measured(model: Model, widths: Mapping[str, int], ctx: Context, notes: list[str]) -> Iterator[dict[str, Moments]]:
    for names in grouped(widths):
        known = measure(model, {name: widths[name] for name in names}, ctx, ctx.batches("calibration"))
        told = few(list(known.values()))
        if told and told not in notes:
            notes.append(told)
        yield known
