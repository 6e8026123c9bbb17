"""optkit passes"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from optkit.cli.door import answer
from optkit.cli.options import JsonFlag

app = typer.Typer(no_args_is_help=True, help="List the passes, or show one with its options.")


@app.command("list")
def list_passes(json: JsonFlag = False) -> None:
    """List all passes, third-party ones too."""

    def work() -> Any:
        from optkit.recipe.schema import all_pass_facts

        return all_pass_facts()

    def show(passes: Any) -> None:
        from optkit.cli.render import console, show_table
        from optkit.report.tables import Table

        rows = tuple((p["name"], _forms(p), p.get("title") or f"BROKEN: {p['problem']}") for p in passes)
        show_table(console(), Table("", ("pass", "forms", "what it does"), rows))

    answer("passes list", json, work, show)


@app.command("show")
def show_pass(name: Annotated[str, typer.Argument(help="A pass's name.")], json: JsonFlag = False) -> None:
    """Show one pass: what it does, its options, types and defaults."""

    def work() -> Any:
        from optkit.passes._registry import find
        from optkit.recipe.schema import pass_facts

        return pass_facts(find(name))

    def show(facts: Any) -> None:
        from optkit.cli.render import console, show_table
        from optkit.recipe.schema import default_words, frame_line
        from optkit.report.tables import Table

        out = console()
        out.print(f"[bold]{facts['name']}[/]  {_forms(facts)}; {facts['kind']}")
        out.print(facts["title"] + ("\n\n" + facts["text"] if facts["text"] else ""), markup=False)
        rows = tuple((k, o["type"], default_words(o), o["text"]) for k, o in facts["options"].items())
        show_table(out, Table("", ("option", "type", "default", ""), rows))
        out.print(frame_line(), markup=False)

    answer("passes show", json, work, show)


def _forms(facts: dict[str, Any]) -> str:
    return ", ".join(f"{takes} to {gives}" for takes, gives in facts.get("forms", {}).items())
