"""What a profile found, on a terminal."""

from __future__ import annotations

from rich.markup import escape

from optkit.bench.profile_facts import ProfileFacts
from optkit.cli.render import WIDE, console, say, show_table
from optkit.report.profile import profile_lines, profile_tables


def show_profile(facts: ProfileFacts, top: int) -> None:
    """Tables, then what they do not say."""
    out = console()
    for table in profile_tables(facts, top, shapes=out.width >= WIDE):
        show_table(out, table)
    for line in profile_lines(facts):
        say(out, escape(line))
