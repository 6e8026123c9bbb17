"""optkit profile"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from optkit.cli import options as shared
from optkit.cli.door import answer
from optkit.cli.reports import report_writer
from optkit.cli.words import parse_entries, parse_sizes


def profile(
    model: Annotated[str, typer.Argument(metavar="MODEL[@ENGINE]", help="A bundle, or any model file.")],
    against: Annotated[
        str | None, typer.Option(metavar="OTHER[@ENGINE]", help="Put another model's hot spots beside it.")
    ] = None,
    inputs: Annotated[Path | None, typer.Option("--input", "-i", help="As of run; default: evaluation data.")] = None,
    dims: Annotated[
        list[str] | None, typer.Option("--dims", metavar="NAME=N", help="Size of a dimension: batch=8. Repeatable.")
    ] = None,
    threads: shared.Threads = None,
    provider: shared.Provider = None,
    factory: shared.Factory = None,
    signature: shared.Signature = None,
    trust_pickle: shared.TrustPickle = False,
    data: shared.Data = None,
    session: Annotated[
        list[str] | None, typer.Option("--session", metavar="KEY=VALUE", help="onnxruntime session entry. Repeatable.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Nodes to show.")] = 15,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write a Chrome trace, for https://ui.perfetto.dev.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing trace.")] = False,
    markdown: shared.Markdown = None,
    json: shared.JsonFlag = False,
) -> None:
    """Where a model's time goes, node by node, beside the limits of this machine: what is left to gain.

    ENGINE after MODEL: eager or compile (torch), or an execution provider of onnxruntime.
    """

    def work() -> Any:
        from optkit.cli.progress import bar
        from optkit.pipeline.candidates import About
        from optkit.pipeline.profile import Conditions
        from optkit.pipeline.profile import profile as measure

        conditions = Conditions(inputs, data, parse_sizes(dims or ()), threads)
        about = About(factory, signature, trust_pickle, provider, parse_entries(session or ()))
        with bar() as watch:
            return measure(
                model, against=against, conditions=conditions, trace=trace, force=force, about=about, watch=watch
            )

    def show(facts: Any) -> None:
        from optkit.cli.render_profile import show_profile

        show_profile(facts, top)

    def words(facts: Any) -> str:
        from optkit.report.profile import profile_markdown

        return profile_markdown(facts, top)

    answer("profile", json, work, show, on_end=report_writer("optkit profile", None, markdown, words))
