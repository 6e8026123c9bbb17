"""How much samples depend on their batch neighbours, as words."""

from __future__ import annotations

from collections.abc import Iterator

from optkit.model.manifest import BatchInvariance, BatchShift, Verdict
from optkit.report.tables import Table, number

NOISE = 1e-5
"""Shift, in standard deviations of the output, up to which an output does not depend on its neighbours in words."""


def batch_table(verdict: Verdict) -> Table:
    """Per output: how far it moves with the other samples of its batch; no rows where that was not asked for."""
    found = verdict.batch_invariance
    rows = tuple(_row(each) for each in found.outputs) if found else ()
    return Table("Shift by batch neighbours", ("output", "original", "result"), rows)


def _row(shift: BatchShift) -> tuple[str, ...]:
    return (shift.name, _word(shift.original), _word(shift.result))


def _word(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{number(value, 3)} {'depends' if value > NOISE else 'independent'}"


def batch_lines(verdict: Verdict) -> Iterator[str]:
    """What was looked at, and why something was not."""
    found = verdict.batch_invariance
    if found is None:
        return
    if found.outputs:
        yield _measured(found)
    yield from (f"Batch neighbours: {note}." for note in found.notes)


def _measured(found: BatchInvariance) -> str:
    made_up = " (SYNTHETIC)" if found.synthetic else ""
    return (
        f"Largest shift over the output's standard deviation: {found.samples} samples{made_up} in their batches of "
        f"{found.batch}, against as many copies of each; 0 = its answer is its own. Of outputs that are no floats, the "
        "share of elements that change."
    )
