"""optkit cache"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from optkit.cli.door import answer
from optkit.cli.options import JsonFlag

app = typer.Typer(no_args_is_help=True, help="List or remove cached results.")


@app.command()
def ls(json: JsonFlag = False) -> None:
    """List what is in the cache, most recently used first."""

    def work() -> Any:
        from optkit.pipeline.cache import Cache

        cache = Cache.default()
        return {"root": cache.root, "cap_bytes": cache.cap_bytes, "entries": cache.entries()}

    def show(facts: Any) -> None:
        import time

        from optkit.cli.render import console, show_table
        from optkit.report.tables import Table, size

        rows = tuple(
            (e.key[:12], e.what, size(e.size_bytes), time.strftime("%Y-%m-%d %H:%M", time.localtime(e.used)))
            for e in facts["entries"]
        )
        show_table(console(), Table("", ("key", "what", "size", "last used"), rows))
        total = sum(entry.size_bytes for entry in facts["entries"])
        typer.echo(f"{len(rows)} entries, {size(total)} of {size(facts['cap_bytes'])} in {facts['root']}")

    answer("cache ls", json, work, show)


@app.command()
def rm(
    keys: Annotated[list[str] | None, typer.Argument(help="Beginnings of keys, as cache ls shows them.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove all entries.")] = False,
    json: JsonFlag = False,
) -> None:
    """Remove entries by key, or all of them."""

    def work() -> Any:
        from optkit.errors import UsageError
        from optkit.pipeline.cache import Cache

        if bool(keys) == everything:
            raise UsageError("Nothing to remove was named.", expected="keys, or --all", fix="optkit cache rm --all")
        return {"removed": Cache.default().remove(None if everything else keys)}

    def show(facts: Any) -> None:
        from optkit.report.tables import size

        total = sum(entry.size_bytes for entry in facts["removed"])
        typer.echo(f"Removed {len(facts['removed'])} entries, {size(total)}.")

    answer("cache rm", json, work, show)
