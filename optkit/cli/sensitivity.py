"""optkit sensitivity"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from optkit.cli import options as shared
from optkit.cli.door import answer


def sensitivity(
    model: Annotated[Path, typer.Argument(help="Model file, Hugging Face folder or bundle.")],
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="Default: int8-static for convolutions with calibration data, else int8."),
    ] = None,
    step: Annotated[str | None, typer.Option(metavar="ID", help="Quantizing step. (default: the first)")] = None,
    factory: shared.Factory = None,
    signature: shared.Signature = None,
    trust_pickle: shared.TrustPickle = False,
    data: shared.Data = None,
    metric: shared.Metric = None,
    limits: shared.Limit = None,
    sets: shared.Sets = None,
    provider: shared.Provider = None,
    threads: shared.Threads = None,
    allow_synthetic_calibration: shared.SyntheticCalibration = False,
    seed: shared.Seed = None,
    bench: Annotated[bool, typer.Option("--bench/--no-bench", help="Time the layers.")] = True,
    top: Annotated[int, typer.Option(min=1, help="Layers to show.")] = 15,
    json: shared.JsonFlag = False,
) -> None:
    """Which layers lose accuracy when a recipe quantizes them: the most sensitive first, with names for 'exclude'."""
    asked = shared.given(locals())

    def work() -> Any:
        from optkit.cli.progress import bar
        from optkit.pipeline.sensitivity import sensitivity as measure
        from optkit.recipe.recipe import Recipe

        with bar() as watch:
            watch("planning", 0, 0)
            chosen = Recipe.load(recipe, sets or ()) if recipe else None
            return measure(model, chosen, sets=sets or (), step=step, bench=bench, watch=watch, **asked)

    def show(facts: Any) -> None:
        from optkit.cli.render_sensitivity import show_sensitivity

        show_sensitivity(facts, top)

    answer("sensitivity", json, work, show)
