"""optkit check"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from optkit.cli import options as shared
from optkit.cli.door import answer
from optkit.cli.reports import report_writer


def check(
    original: Annotated[Path, typer.Argument(help="The model as it was trained.")],
    result: Annotated[Path, typer.Argument(help="A bundle, or any model file.")],
    factory: shared.Factory = None,
    signature: shared.Signature = None,
    trust_pickle: shared.TrustPickle = False,
    data: shared.Data = None,
    metric: shared.Metric = None,
    limits: shared.Limit = None,
    provider: shared.Provider = None,
    threads: shared.Threads = None,
    batch_invariance: Annotated[
        bool,
        typer.Option(
            "--batch-invariance", help="Measure too how much a sample's answer depends on its batch neighbours."
        ),
    ] = False,
    junit: shared.Junit = None,
    markdown: shared.Markdown = None,
    json: shared.JsonFlag = False,
) -> None:
    """Judge a result against its original: exit 4 if it is another model by now, 5 if it is too slow or large."""
    asked = shared.given(locals())

    def work() -> Any:
        from optkit.pipeline.compare import compare
        from optkit.pipeline.optimize import stop_on_miss

        verdict = compare(original, result, batch_invariance=batch_invariance, **asked)
        stop_on_miss(verdict, verdict)
        return verdict

    def show(verdict: Any) -> None:
        from optkit.cli.render import show_verdict

        show_verdict(verdict)

    def words(verdict: Any) -> str:
        from optkit.report.markdown import verdict_markdown

        return verdict_markdown(verdict, original.name, result.name)

    suite = f"optkit check {result.name}"
    writer = report_writer(suite, junit, markdown, words)
    answer("check", json, work, show, show_missed=show, on_end=writer, remind=True)
