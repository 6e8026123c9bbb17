"""Facts on a terminal: tables and colours, on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from optkit.report.batch import batch_lines, batch_table
from optkit.report.decisions import decisions_table, others_line
from optkit.report.run import RunFacts, run_lines, run_tables
from optkit.report.tables import (
    Table,
    fidelity_table,
    limit_lines,
    measured_on,
    verdict_line,
)
from optkit.report.waterfall import timing_lines, waterfall

if TYPE_CHECKING:
    from optkit.model.manifest import Manifest, Verdict

NARROW = 90
"""Columns below which the figures of an output are a line instead of a row."""

WORD_WIDTH = 24
"""Characters up to which a word in a table is not broken."""

WIDE = 120
"""Columns from which what a step did stands in its row instead of in a line below."""

PIPE_WIDTH = 140
"""Columns when nobody's terminal says otherwise."""


def console() -> Console:
    """Stdout, as wide as the terminal, or wide enough for a pipe."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def say(out: Console, text: str) -> None:
    """A line of prose: wrapped on a terminal, whole in a pipe."""
    out.print(text, soft_wrap=not out.is_terminal)


def show_table(out: Console, table: Table) -> None:
    """One table, whose cells wrap between words; where not even these fit, a paragraph for each row."""
    if not table.rows:
        return
    columns = list(zip(table.heads, *table.rows, strict=True))
    room = out.width - 3 * len(columns) - 1
    if sum(map(_needed, columns)) > room:
        _show_paragraphs(out, table)
        return
    rich = RichTable(title=table.title or None, title_justify="left", title_style="bold")
    for index, (head, width) in enumerate(zip(table.heads, _widths(columns, room), strict=True)):
        rich.add_column(escape(head), overflow="fold", justify="left" if index == 0 else "default", width=width)
    for index, row in enumerate(table.rows):
        rich.add_row(*(_cell(cell) for cell in row), end_section=index in table.rules)
    out.print(rich)


def _widths(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """Width of each column: what it needs, and of what is left as much as it wants, the most modest ones first."""
    widths = [_needed(cells) for cells in columns]
    wanted = [max(map(len, cells)) - width for cells, width in zip(columns, widths, strict=True)]
    left = room - sum(widths)
    for rank, index in enumerate(sorted(range(len(columns)), key=wanted.__getitem__)):
        share = min(wanted[index], left // (len(columns) - rank))
        widths[index] += share
        left -= share
    return widths


def _needed(cells: Sequence[str]) -> int:
    """Columns without which a word would be broken; of long ones, as paths are, only a part."""
    return min(WORD_WIDTH, max((len(word) for cell in cells for word in cell.split()), default=0))


def _show_paragraphs(out: Console, table: Table) -> None:
    if table.title:
        say(out, f"[bold]{escape(table.title)}[/]")
    for name, *cells in table.rows:
        figures = [f"{head} {cell}" for head, cell in zip(table.heads[1:], cells, strict=True) if cell not in ("", "-")]
        say(out, f"[bold]{escape(name)}[/]")
        say(out, f"  {escape(', '.join(figures))}")


def _cell(text: str) -> str:
    colour = {"NO": "red", "yes": "green", "not checked": "yellow"}.get(text)
    return f"[{colour}]{text}[/]" if colour else escape(text)


def show_manifest(manifest: Manifest) -> None:
    """The one table of ``optkit optimize``, the limits and the verdict."""
    out = console()
    table = waterfall(manifest)
    wide = out.width >= WIDE
    show_table(out, table if wide else table.without_last())
    for row in () if wide else table.rows[1:-1]:
        say(out, f"{escape(row[0])}: {escape(row[-1])}")
    for step in manifest.steps:
        for note in step.notes:
            say(out, f"{escape(step.id)}: {escape(note)}")
    for line in timing_lines(manifest):
        say(out, escape(line))
    show_table(out, decisions_table(manifest, gains=True))
    if others := others_line(manifest):
        say(out, others)
    show_limits(out, manifest.verdict)
    for note in manifest.verdict.notes:
        say(out, f"[yellow]Note:[/] {escape(note)}")
    if manifest.output and manifest.verdict.held:
        say(out, f"Written: [bold]{escape(manifest.output)}[/]")
        for note in manifest.notes:
            say(out, f"[yellow]Note:[/] {escape(note)}")


def show_limits(out: Console, verdict: Verdict) -> None:
    """Each limit in a line, then the verdict."""
    for limit, line in zip(verdict.limits, limit_lines(verdict), strict=True):
        colour = {True: "green", False: "bold red", None: "yellow"}[limit.held]
        say(out, f"[{colour}]{escape(line[:12])}[/]{escape(line[12:])}")
    colour = "green" if verdict.held else "red"
    say(out, f"[bold {colour}]{escape(verdict_line(verdict))}[/] {escape(measured_on(verdict))}")


def show_plan(plan: dict[str, Any]) -> None:
    """What ``--dry-run`` checked."""
    out = console()
    out.print(f"[bold]{escape(plan['model']['path'])}[/] ({plan['model']['kind']}), recipe {escape(plan['recipe'])}")
    tensors = [("input", text) for text in plan["inputs"]] + [("output", text) for text in plan["outputs"]]
    show_table(out, Table("Signature", ("", "tensor"), tuple(tensors)))
    steps = [(s["id"], s["takes"], s["gives"], s["skip"] or "yes") for s in plan["steps"]]
    show_table(out, Table("Steps", ("step", "takes", "gives", "runs"), tuple(steps)))
    data = [(name, d["source"], str(d["samples"]), str(d["batch"])) for name, d in plan["data"].items()]
    show_table(out, Table("Data", ("split", "source", "samples", "batch"), tuple(data)))
    out.print(f"Everything needed is there; nothing was written. Would write: {escape(str(plan['output']))}")


def show_verdict(verdict: Verdict) -> None:
    """Fidelity, metrics, limits and the verdict's line."""
    out = console()
    table = fidelity_table(verdict)
    if out.width >= NARROW:
        show_table(out, table)
    else:
        for row in table.rows:
            figures = [f"{head} {cell}" for head, cell in zip(table.heads[1:], row[1:], strict=True) if cell != "-"]
            say(out, f"[bold]{escape(row[0])}[/]: {escape(', '.join(figures))}")
    for metric in verdict.metrics:
        say(
            out,
            f"{metric.name}: {metric.original:.4f} -> {metric.result:.4f}, drop {metric.drop:.4f} "
            f"({metric.low:.4f} to {metric.high:.4f}; one-sided 95 % bound {metric.bound:.4f}; "
            f"smallest provable on {metric.samples}: {metric.smallest_provable:.4f})",
        )
    show_table(out, batch_table(verdict))
    for line in batch_lines(verdict):
        say(out, escape(line))
    show_limits(out, verdict)
    for note in verdict.notes:
        say(out, f"[yellow]Note:[/] {escape(note)}")


def show_run(facts: RunFacts, verdict: Verdict | None) -> None:
    """What a run gave, and the verdict where it was held against an original."""
    out = console()
    for table in run_tables(facts):
        show_table(out, table)
    for line in run_lines(facts):
        out.print(line, markup=False)
    if verdict is not None:
        show_verdict(verdict)
