"""optkit run"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from optkit.cli import options as shared
from optkit.cli.door import answer


def run(
    model: Annotated[Path, typer.Argument(help="A bundle, or any model file.")],
    inputs: Annotated[
        Path | None,
        typer.Option("--input", "-i", help="npz, image, folder, text or table (default: its evaluation data)."),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the outputs by name to FILE.npz.")] = None,
    against: Annotated[Path | None, typer.Option(help="Compare with this original; exit 4 on a miss.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples per batch (default: 8).")] = None,
    provider: shared.Provider = None,
    threads: shared.Threads = None,
    factory: shared.Factory = None,
    signature: shared.Signature = None,
    trust_pickle: shared.TrustPickle = False,
    data: shared.Data = None,
    metric: shared.Metric = None,
    limits: shared.Limit = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output file.")] = False,
    json: shared.JsonFlag = False,
) -> None:
    """Run a model on inputs, with the execution provider that was asked for or not at all.

    With --against, --factory, --signature and --trust-pickle are about the original.
    """
    asked = shared.given(locals())

    def work() -> Any:
        from optkit.cli.progress import bar
        from optkit.pipeline.infer import infer

        with bar() as watch:
            ran = infer(
                model, inputs=inputs, output=out, against=against, batch=batch, force=force, watch=watch, **asked
            )
        return (ran.verdict or ran.facts) if json else ran

    def show(ran: Any) -> None:
        from optkit.cli.render import show_run

        show_run(ran.facts, ran.verdict)

    def show_missed(verdict: Any) -> None:
        from optkit.cli.render import show_verdict

        show_verdict(verdict)

    answer("run", json, work, show, show_missed=show_missed, remind=True)
