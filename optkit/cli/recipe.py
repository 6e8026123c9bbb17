"""optkit recipe"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from optkit.cli.door import answer
from optkit.cli.options import JsonFlag, Sets

app = typer.Typer(no_args_is_help=True, help="List, show, validate or start recipes.")
Name = Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")]


@app.command("list")
def list_recipes(json: JsonFlag = False) -> None:
    """List the shipped recipes."""

    def work() -> Any:
        from optkit.recipe.load import load_recipe, shipped

        return [
            {"name": name, "description": load_recipe(str(path)).description, "path": path}
            for name, path in shipped().items()
        ]

    def show(recipes: Any) -> None:
        from optkit.cli.render import console, show_table
        from optkit.report.tables import Table

        rows = tuple((r["name"], r["description"]) for r in recipes)
        show_table(console(), Table("", ("recipe", "what it does"), rows))

    answer("recipe list", json, work, show)


@app.command()
def show(
    name: Name,
    resolved: Annotated[bool, typer.Option("--resolved", help="Spell out every default.")] = False,
    sets: Sets = None,
    json: JsonFlag = False,
) -> None:
    """Print a recipe, with --resolved every default in it."""

    def work() -> Any:
        from optkit.recipe.load import find_recipe, load_recipe

        recipe = load_recipe(name, sets or ())
        return {
            "text": recipe.text() if resolved or sets else find_recipe(name).read_text(encoding="utf-8"),
            **recipe.resolved(),
        }

    answer("recipe show", json, work, lambda recipe: typer.echo(recipe["text"].rstrip()))


@app.command()
def validate(name: Name, sets: Sets = None, json: JsonFlag = False) -> None:
    """Check a recipe: exit 3 with file, line and column if something is wrong."""

    def work() -> Any:
        from optkit.pipeline.plan import exporter_of
        from optkit.recipe.load import load_recipe

        recipe = load_recipe(name, sets or ())
        exporter_of(recipe)
        return {"name": recipe.name, "steps": [step.id for step in recipe.passes]}

    def show(facts: Any) -> None:
        typer.echo(f"{name} is valid: {', '.join(facts['steps'])}")

    answer("recipe validate", json, work, show)


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""

    def work() -> str:
        from optkit.recipe.schema import schema_text

        return schema_text()

    answer("recipe schema", False, work, lambda text: typer.echo(text.rstrip()))


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("recipe.yaml"),
    base: Annotated[str, typer.Option("--from", help="The shipped recipe to start from.")] = "int8",
    json: JsonFlag = False,
) -> None:
    """Start a recipe of your own from a shipped one."""

    def work() -> Any:
        from optkit.recipe.load import write_copy

        return {"file": write_copy(base, file)}

    answer("recipe init", json, work, lambda facts: typer.echo(f"Written: {facts['file']}"))
