"""Which layers lose accuracy when they are quantized, as facts, a table and lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from pydantic import Field

from optkit.model.manifest import Change, Fact, MeasuredOn, MetricResult, Verdict
from optkit.report.inspect import count
from optkit.report.tables import Table, limit_lines, measured_on, number

TOP = 15
"""Layers that are shown unless somebody says otherwise."""


class LayerEffect(Fact):
    """What quantizing one layer costs, and what it could bring."""

    name: str
    """Of the node, as ``exclude`` takes it."""
    operator: str
    """As it is in float; empty where it is not known."""
    error: float
    """Root mean square of the error of the model's worst output over that of the output itself, with this layer
    quantized; infinite where that becomes NaN or infinite."""
    sqnr_db: float
    """The same as signal to quantization noise ratio."""
    among: int
    """So many layers were quantized together for that: 1 = this one alone, else with its neighbours."""
    drop: float | None = None
    """Of the task metric, with only this layer quantized; positive = worse. null = not measured."""
    parameters: int
    """Elements of its constant inputs."""
    share: float | None = None
    """Of all nodes' time in the float model; null = not timed, or fused into another node."""


class SensitivityFacts(Fact):
    """One ``optkit sensitivity``."""

    model: str
    """Path, as given."""
    recipe: str
    why: str
    """Why this recipe; empty where it was asked for."""
    step: str
    """Id of the step whose layers these are."""
    sentence: str
    """The pass with its options."""
    layers: tuple[LayerEffect, ...]
    """The one that costs most first."""
    skipped: tuple[Change, ...] = ()
    """Layers that the step leaves alone in any case."""
    quantized: Verdict | None
    """On the model with all layers quantized; null where there are none."""
    exclude: tuple[str, ...] = ()
    """The worst layers, for the step's option ``exclude``."""
    measured_on: MeasuredOn
    notes: tuple[str, ...] = ()
    nonfinite: dict[str, str] = Field(default_factory=dict)


def sensitivity_table(facts: SensitivityFacts, top: int = TOP) -> Table:
    """The ``top`` layers that cost most; columns of which nothing is known are left out."""
    columns: dict[str, Callable[[LayerEffect], str]] = {
        "layer": lambda layer: layer.name,
        "operator": lambda layer: layer.operator or "-",
        "output error": _error,
        "SQNR dB": lambda layer: f"{layer.sqnr_db:.1f}" if math.isfinite(layer.sqnr_db) else "-",
        "group of": lambda layer: "-" if layer.among == 1 else str(layer.among),
        _drop_head(facts): lambda layer: "-" if layer.drop is None else f"{layer.drop:.4f}",
        "parameters": lambda layer: count(layer.parameters),
        "time": lambda layer: "-" if layer.share is None else f"{layer.share:.1%}",
    }
    shown = facts.layers[:top]
    cells = {head: [cell(layer) for layer in shown] for head, cell in columns.items()}
    kept = {head: column for head, column in cells.items() if set(column) != {"-"}}
    title = f"Layers of {facts.step}, the most sensitive first"
    return Table(title, tuple(kept), tuple(zip(*kept.values(), strict=True)))


def _drop_head(facts: SensitivityFacts) -> str:
    metrics = facts.quantized.metrics if facts.quantized else ()
    return f"drop of {metrics[0].name}" if metrics else "drop"


def _error(layer: LayerEffect) -> str:
    return f"{layer.error:.2%}" if math.isfinite(layer.error) else "NaN or infinite"


def sensitivity_lines(facts: SensitivityFacts, top: int = TOP) -> Iterator[str]:
    """What the table does not say."""
    hidden = len(facts.layers) - top
    if hidden > 0:
        yield f"{hidden} more {'layer' if hidden == 1 else 'layers'}: --top {len(facts.layers)}, or --json."
    yield _how(facts)
    if facts.why:
        yield f"Recipe {facts.recipe}: {facts.why}."
    yield from facts.notes
    if facts.quantized is None:
        return
    who = "this layer" if len(facts.layers) == 1 else f"all {len(facts.layers)} layers"
    yield f"With {who} quantized ({facts.sentence}):"
    yield from map(_metric_line, facts.quantized.metrics)
    yield from limit_lines(facts.quantized)
    yield measured_on(facts.quantized)


def _how(facts: SensitivityFacts) -> str:
    if not facts.layers:
        return "There is no layer to rank."
    error = "the error is that of the model's worst output, over the size of that output"
    if all(layer.among == 1 for layer in facts.layers):
        return f"Each layer was quantized alone: {error}."
    return f"Layers were quantized alone, or in groups of neighbours where they cost little: {error}."


def _metric_line(metric: MetricResult) -> str:
    return (
        f"{metric.name} {number(metric.original)} -> {number(metric.result)}, drop {metric.drop:.4f} "
        f"(95 % bound {metric.bound:.4f})"
    )
