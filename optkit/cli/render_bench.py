"""What a bench found, on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from optkit.bench.facts import BenchFacts
from optkit.cli.render import console, say, show_table
from optkit.report.bench import bench_lines, bench_tables

PIPE_WIDTH = 400
"""Columns for a pipe: no cell is broken, so that ``grep`` finds whole rows."""


def show_bench(facts: BenchFacts) -> None:
    """Tables, warnings, and how and where it was measured."""
    out = console()
    out = out if out.is_terminal else Console(highlight=False, width=PIPE_WIDTH)
    for table in bench_tables(facts):
        show_table(out, table)
    for warning in facts.warnings:
        say(out, f"[yellow]Warning:[/] {escape(warning)}")
    for line in bench_lines(facts):
        say(out, escape(line))
