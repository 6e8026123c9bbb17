"""What ``optkit inspect`` found out about a model, and as tables."""

from __future__ import annotations

from optkit.model.manifest import Fact
from optkit.model.summary import Layer, Summary
from optkit.report.tables import Table, size


class Fit(Fact):
    """Whether a shipped recipe is worth trying on this model."""

    recipe: str
    fits: bool
    why: str


class Inspection(Fact):
    """A model as its files describe it, what it most likely is, and what can be done with it."""

    summary: Summary
    guess: str
    """What it most likely is."""
    why: str
    """What the guess rests on."""
    refused: str
    """Why the other verbs would not open it as it was given; empty where they would."""
    fix: str
    """What to add, so that they do."""
    recipes: tuple[Fit, ...]


def count(value: int | None) -> str:
    """A number of things as people read it: ``22.7 M``."""
    if value is None:
        return "unknown"
    for unit, scale in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= 10 * scale or (value >= scale and unit != "k"):
            return f"{value / scale:.3g} {unit}"
    return str(value)


def inspection_tables(found: Inspection) -> list[Table]:
    """All of it: the model, its tensors, operators and weights, and the recipes."""
    summary = found.summary
    return [_model(found), _signature(summary), _operators(summary), _weights(summary), _layers(summary), _fits(found)]


def _model(found: Inspection) -> Table:
    summary = found.summary
    opsets = ", ".join(f"{domain} {version}" for domain, version in summary.opsets.items())
    external = ", ".join(f"{file.path} ({size(file.bytes)})" for file in summary.external)
    rows = [
        ("most likely", f"{found.guess} ({found.why})"),
        ("form", f"{summary.form} ({summary.kind})"),
        ("architecture", summary.architecture),
        ("size", size(summary.size_bytes)),
        ("parameters", count(summary.parameters)),
        ("opset", opsets),
        ("IR version", "" if summary.ir_version is None else str(summary.ir_version)),
        ("producer", summary.producer),
        ("external data", external),
        ("dynamic dimensions", ", ".join(summary.dynamic)),
        *(("note", note) for note in summary.notes),
    ]
    return Table(summary.path, ("what", "found"), tuple(row for row in rows if row[1]))


def _signature(summary: Summary) -> Table:
    rows = [("input", text) for text in summary.inputs] + [("output", text) for text in summary.outputs]
    return Table("Inputs and outputs", ("", "tensor"), tuple(rows))


def _operators(summary: Summary) -> Table:
    return Table("Operators", ("operator", "nodes"), tuple((name, str(n)) for name, n in summary.operators.items()))


def _weights(summary: Summary) -> Table:
    rows = [(each.dtype, str(each.tensors), count(each.elements), size(each.bytes)) for each in summary.weights]
    return Table("Weights by dtype", ("dtype", "tensors", "values", "size"), tuple(rows))


def _layers(summary: Summary) -> Table:
    rows = [
        (each.op, each.dtype, str(each.count), count(each.elements), _share(each, summary)) for each in summary.layers
    ]
    return Table("Weights by use (rank 2 and more)", ("operator", "dtype", "weights", "values", "share"), tuple(rows))


def _share(layer: Layer, summary: Summary) -> str:
    return f"{layer.elements / summary.parameters:.1%}" if summary.parameters else "-"


def _fits(found: Inspection) -> Table:
    rows = [(fit.recipe, "yes" if fit.fits else "no", fit.why) for fit in found.recipes]
    return Table("Shipped recipes", ("recipe", "fits", "why"), tuple(rows))
