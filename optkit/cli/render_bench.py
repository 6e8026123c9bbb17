"""What a bench found, on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from optkit.bench.facts import BenchFacts
from optkit.cli.render import console, say, show_table
from optkit.report.bench import bench_lines, bench_tables
from optkit.report.tables import Table

PIPE_WIDTH = 400
"""Columns for a pipe: no cell is broken, so that ``grep`` finds whole rows."""

NAME_WIDTH = 24
"""Columns that a candidate's name may be folded to."""


def show_bench(facts: BenchFacts) -> None:
    """Tables, warnings, and how and where it was measured."""
    out = console()
    out = out if out.is_terminal else Console(highlight=False, width=PIPE_WIDTH)
    for table in bench_tables(facts):
        show_fitting(out, table)
    for warning in facts.warnings:
        say(out, f"[yellow]Warning:[/] {escape(warning)}")
    for line in bench_lines(facts):
        say(out, escape(line))


def show_fitting(out: Console, table: Table) -> None:
    """The table, or on a narrow terminal a paragraph per row."""
    if _width(table) <= out.width:
        show_table(out, table)
        return
    if table.rows:
        say(out, f"[bold]{escape(table.title)}[/]")
    for row in table.rows:
        say(out, f"[bold]{escape(row[0])}[/]")
        figures = [
            f"{head} {cell}" for head, cell in zip(table.heads[1:], row[1:], strict=True) if cell not in ("", "-")
        ]
        say(out, f"  {escape(', '.join(figures))}")


def _width(table: Table) -> int:
    """Columns the table takes with only names folded, borders included."""
    widths = [max(map(len, cells)) for cells in zip(table.heads, *table.rows, strict=True)]
    return min(widths[0], NAME_WIDTH) + sum(widths[1:]) + 3 * len(widths) + 1
