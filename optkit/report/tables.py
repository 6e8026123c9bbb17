"""The facts as tables of words, shared by the terminal and Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from optkit.model.manifest import LimitResult, OutputFidelity, Verdict


@dataclass(frozen=True)
class Table:
    """A title, column heads, rows of cells; the first column is the name."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    rules: tuple[int, ...] = ()
    """Indices of the rows with a line below."""

    def without_last(self) -> Table:
        """The same without the last column."""
        return Table(self.title, self.heads[:-1], tuple(row[:-1] for row in self.rows), self.rules)


def size(count: float) -> str:
    """Bytes in the unit that reads best: ``412 kB``, ``3.4 MB``."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def number(value: float | None, digits: int = 4) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}g}"


def fidelity_table(verdict: Verdict) -> Table:
    """Per output: how far the result is from the original."""
    heads = ("output", "max error", "error/std", "cosine", "1st pct", "worst (sample)", "SQNR dB", "top-1")
    return Table("Outputs", heads, tuple(_output_row(output) for output in verdict.outputs))


def _output_row(output: OutputFidelity) -> tuple[str, ...]:
    if output.equal is not None:
        return (output.name, f"equal: {output.equal:.4%}", "-", "-", "-", "-", "-", "-")
    worst = number(output.cosine_worst, 6) + ("" if output.worst_sample is None else f" ({output.worst_sample})")
    return (
        output.name,
        number(output.max_error, 3),
        number(output.max_error_std, 3),
        number(output.cosine, 6),
        number(output.cosine_p1, 6),
        worst,
        number(output.sqnr_db, 3),
        number(output.top1),
    )


def limits_table(verdict: Verdict) -> Table:
    """Each limit, what was measured, and whether it held."""
    heads = ("limit", "asked", "measured", "where", "held")
    return Table("Limits", heads, tuple(_limit_row(limit) for limit in verdict.limits))


def _limit_row(limit: LimitResult) -> tuple[str, ...]:
    held = {True: "yes", False: "NO", None: "not checked"}[limit.held]
    where = " ".join(part for part in (limit.where, f"({limit.note})" if limit.note else "") if part)
    return (limit.name, limit.limit, number(limit.measured, 5), where, held)


def measured_on(verdict: Verdict) -> str:
    """What the numbers were measured on, and what was left out."""
    on = verdict.measured_on
    made_up = "; SYNTHETIC inputs, so these numbers say little about real ones" if on.synthetic else ""
    gone = ", ".join(verdict.dropped_outputs)
    left_out = f" Left out, because a pass removed it by declaration: {gone}." if gone else ""
    return f"Measured on {on.samples} samples of {on.source} ({on.split}), batch {on.batch}{made_up}.{left_out}"


def verdict_line(verdict: Verdict) -> str:
    """The verdict in one line."""
    if verdict.held:
        unchecked = [limit.name for limit in verdict.limits if limit.held is None]
        return "All limits held." + (f" Not checked: {', '.join(unchecked)}." if unchecked else "")
    missed = [limit.name for limit in verdict.limits if limit.held is False]
    return "MISSED: " + "; ".join([*verdict.problems, *missed]) + "."


def limit_lines(verdict: Verdict) -> list[str]:
    """Each limit in a line: ``held      cosine 0.9999 (>= 0.99) logits``."""
    words = {True: "held", False: "MISSED", None: "not checked"}
    return [
        f"{words[limit.held]:<12}{limit.name} "
        + ("" if limit.measured is None else f"{number(limit.measured, 6)} ")
        + f"(limit: {limit.limit})"
        + (f" {limit.where}" if limit.where else "")
        + (f"; {limit.note.removeprefix('not checked: ')}" if limit.note else "")
        for limit in verdict.limits
    ]
