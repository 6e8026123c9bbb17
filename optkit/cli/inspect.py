"""optkit inspect"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from optkit.cli import options as shared
from optkit.cli.door import answer


def inspect(
    model: Annotated[Path, typer.Argument(help="Model file, Hugging Face folder or bundle.")],
    factory: shared.Factory = None,
    signature: shared.Signature = None,
    trust_pickle: shared.TrustPickle = False,
    json: shared.JsonFlag = False,
) -> None:
    """Look at a model without running it: inputs, operators, weights, what it is, and which recipes fit."""

    def work() -> Any:
        from optkit.pipeline.inspect import inspect as look

        return look(model, factory=factory, signature=signature, trust_pickle=trust_pickle)

    def show(found: Any) -> None:
        from optkit.cli.render import console, show_table
        from optkit.report.inspect import inspection_tables

        out = console()
        for table in inspection_tables(found):
            show_table(out, table)
        if found.refused:
            out.print(f"Other verbs would not open it: {found.refused}\nFix: {found.fix}", style="yellow", markup=False)

    answer("inspect", json, work, show)
