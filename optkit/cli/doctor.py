"""optkit doctor"""

from __future__ import annotations

from typing import Any

from optkit.cli import options as shared
from optkit.cli.door import answer


def doctor(json: shared.JsonFlag = False) -> None:
    """Look at this installation and machine: versions, providers, processor, memory, extras, cache, problems."""

    def work() -> Any:
        from optkit.pipeline.doctor import examine

        return examine()

    def show(found: Any) -> None:
        from optkit.cli.render import console, show_table
        from optkit.report.doctor import diagnosis_tables

        out = console()
        for table in diagnosis_tables(found):
            show_table(out, table)
        colour, words = ("yellow", "See the problems above.") if found.problems else ("green", "Nothing is wrong here.")
        out.print(f"[{colour}]{words}[/]")

    answer("doctor", json, work, show)
