"""The most sensitive layers, on a terminal."""

from __future__ import annotations

import yaml
from rich.console import Console
from rich.markup import escape

from optkit.cli.render import PIPE_WIDTH, console, say, show_table
from optkit.cli.render_profile import width_of
from optkit.report.sensitivity import SensitivityFacts, sensitivity_lines, sensitivity_table


def show_sensitivity(facts: SensitivityFacts, top: int) -> None:
    """The table, what it does not say, and a line of YAML to paste."""
    out, table = console(), sensitivity_table(facts, top)
    if not out.is_terminal and table.rows:  # no cell is broken, so that ``grep`` finds whole rows
        out = Console(highlight=False, width=max(PIPE_WIDTH, width_of(table)))
    show_table(out, table)
    for line in sensitivity_lines(facts, top):
        say(out, escape(line))
    if facts.exclude:
        listed = yaml.safe_dump(list(facts.exclude), default_flow_style=True, width=10**6, allow_unicode=True).strip()
        say(out, f"To leave the worst in float, add to the options of {escape(facts.step)}:")
        out.print(f"exclude: {listed}", markup=False, soft_wrap=True)
