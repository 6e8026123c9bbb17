"""The command line: one typer app, one file a verb. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from optkit import __version__
from optkit.cli import cache, passes, recipe
from optkit.cli.bench import bench
from optkit.cli.check import check
from optkit.cli.doctor import doctor
from optkit.cli.door import Ended, exit_code, silence, tell, usage_failure
from optkit.cli.inspect import inspect
from optkit.cli.optimize import optimize
from optkit.cli.profile import profile
from optkit.cli.run import run
from optkit.cli.sensitivity import sensitivity

app = typer.Typer(
    name="optkit",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Makes a trained model smaller and faster on this machine, with proof that it still does its job.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"optkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command()(optimize)
app.command()(check)
app.command()(run)
app.command()(bench)
app.command()(profile)
app.command()(sensitivity)
app.command()(inspect)
app.command()(doctor)
app.add_typer(passes.app, name="passes")
app.add_typer(recipe.app, name="recipe")
app.add_typer(cache.app, name="cache")


def main() -> None:
    """Entry point of the console script: run the verb, leave with an honest exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
    try:
        code = app(standalone_mode=False, prog_name="optkit")
        sys.stdout.flush()
    except typer.TyperException as error:
        code = usage_failure(error, sys.argv)
    except BrokenPipeError:
        silence()
        code = 0
    except (Exception, Ended) as error:  # noqa: BLE001  a bug outside a verb's work, as in printing its result
        code = exit_code(error)
        tell(error)
    sys.exit(code if isinstance(code, int) else 0)
