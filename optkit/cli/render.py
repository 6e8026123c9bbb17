"""Facts on a terminal: tables, colours, progress. Results go to stdout, progress to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from optkit.report.tables import (
    Table,
    fidelity_table,
    limit_lines,
    measured_on,
    overview_table,
    verdict_line,
)

if TYPE_CHECKING:
    from optkit.model.manifest import Manifest, Verdict

PIPE_WIDTH = 140
"""Columns when nobody's terminal says otherwise."""


def console() -> Console:
    """Stdout, as wide as the terminal, or wide enough for a pipe."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def show_table(out: Console, table: Table) -> None:
    """One table; long cells wrap instead of being cut."""
    if not table.rows:
        return
    rich = RichTable(title=table.title or None, title_justify="left", title_style="bold", pad_edge=False)
    for index, head in enumerate(table.heads):
        rich.add_column(escape(head), overflow="fold", justify="left" if index == 0 else "default")
    for index, row in enumerate(table.rows):
        rich.add_row(*(_cell(cell) for cell in row), end_section=index in table.rules)
    out.print(rich)


def _cell(text: str) -> str:
    colour = {"NO": "red", "yes": "green", "not checked": "yellow"}.get(text)
    return f"[{colour}]{text}[/]" if colour else escape(text)


def show_manifest(manifest: Manifest) -> None:
    """The one table of ``optkit optimize``, the limits and the verdict."""
    out = console()
    show_table(out, overview_table(manifest))
    for step in manifest.steps:
        for note in step.notes:
            out.print(f"{escape(step.id)}: {escape(note)}")
    if manifest.timing is not None:
        ratio = manifest.timing.result
        out.print(
            f"Timed on {escape(ratio.inputs)}, {manifest.environment.threads} threads, {ratio.confidence:.0%} interval."
        )
    show_limits(out, manifest.verdict)
    if manifest.output and manifest.verdict.held:
        out.print(f"Written: [bold]{escape(manifest.output)}[/]", soft_wrap=True)


def show_limits(out: Console, verdict: Verdict) -> None:
    """Each limit in a line, then the verdict."""
    for limit, line in zip(verdict.limits, limit_lines(verdict), strict=True):
        colour = {True: "green", False: "bold red", None: "yellow"}[limit.held]
        out.print(f"[{colour}]{escape(line[:12])}[/]{escape(line[12:])}")
    colour = "green" if verdict.held else "red"
    out.print(f"[bold {colour}]{escape(verdict_line(verdict))}[/] {escape(measured_on(verdict))}")


def show_plan(plan: dict[str, Any]) -> None:
    """What ``--dry-run`` checked."""
    out = console()
    out.print(f"[bold]{escape(plan['model']['path'])}[/] ({plan['model']['kind']}), recipe {escape(plan['recipe'])}")
    tensors = [("input", text) for text in plan["inputs"]] + [("output", text) for text in plan["outputs"]]
    show_table(out, Table("Signature", ("", "tensor"), tuple(tensors)))
    steps = [(s["id"], s["takes"], s["gives"], s["skip"] or "yes") for s in plan["steps"]]
    show_table(out, Table("Steps", ("step", "takes", "gives", "runs"), tuple(steps)))
    data = [(name, d["source"], str(d["samples"]), str(d["batch"])) for name, d in plan["data"].items()]
    show_table(out, Table("Data", ("split", "source", "samples", "batch"), tuple(data)))
    out.print(f"Everything needed is there; nothing was written. Would write: {escape(str(plan['output']))}")


def show_verdict(verdict: Verdict) -> None:
    """Fidelity, metrics, limits and the verdict's line."""
    out = console()
    show_table(out, fidelity_table(verdict))
    for metric in verdict.metrics:
        out.print(
            f"{metric.name}: {metric.original:.4f} -> {metric.result:.4f}, drop {metric.drop:.4f} "
            f"({metric.low:.4f} to {metric.high:.4f}; one-sided 95 % bound {metric.bound:.4f}; "
            f"smallest provable on {metric.samples}: {metric.smallest_provable:.4f})"
        )
    show_limits(out, verdict)


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A status line on stderr while something runs; silent where stderr is no terminal."""
    from optkit.pipeline.context import silent

    if not sys.stderr.isatty():
        yield silent
        return
    with Console(stderr=True).status("starting") as status:

        def watch(what: str, done: int, total: int) -> None:
            status.update(f"{what} ({done}/{total})" if total else what)

        yield watch
