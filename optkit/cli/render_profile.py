"""What a profile found, on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from optkit.bench.profile_facts import ProfileFacts
from optkit.cli.render import PIPE_WIDTH, WIDE, console, say, show_table
from optkit.report.profile import profile_lines, profile_tables
from optkit.report.tables import Table

KEPT = 5
"""Columns of nodes that are shown however narrow the terminal is."""


def show_profile(facts: ProfileFacts, top: int) -> None:
    """Tables, then what they do not say."""
    out, tables = console(), profile_tables(facts, top)
    if not out.is_terminal:  # no cell is broken, so that ``grep`` finds whole rows
        out = Console(highlight=False, width=max(PIPE_WIDTH, *map(width_of, tables)))
    for table in tables:
        show_table(out, fitting(table, out.width) if table.heads[-1] == "inputs" else table)
    for line in profile_lines(facts):
        say(out, escape(line))


def fitting(table: Table, width: int) -> Table:
    """Without its last columns, as far as there is no room: inputs may be broken on a wide terminal, nothing else."""
    if width < WIDE or width_of(table.without_last()) > width:
        table = table.without_last()
        while width_of(table) > width and len(table.heads) > KEPT:
            table = table.without_last()
    return table


def width_of(table: Table) -> int:
    """Columns the table takes with no cell broken, borders included."""
    widths = [max(map(len, cells)) for cells in zip(table.heads, *table.rows, strict=True)]
    return sum(widths) + 3 * len(widths) + 1
