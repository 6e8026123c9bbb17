"""optkit optimize"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from optkit.cli import options as shared
from optkit.cli.door import answer
from optkit.cli.reports import manifest_words, report_writer


def optimize(
    model: Annotated[Path, typer.Argument(help="Model file, Hugging Face folder or bundle.")],
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="A shipped recipe's name, or a YAML file.")] = "int8",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Bundle folder, FILE.onnx or FILE.ort. (default: MODEL.RECIPE)")
    ] = None,
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, write nothing.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="A broken promise stops instead of rolling back.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    bench: Annotated[bool, typer.Option("--bench/--no-bench", help="Time original against result.")] = True,
    remeasure: Annotated[bool, typer.Option("--remeasure", help="Time cached decisions again.")] = False,
    junit: shared.Junit = None,
    markdown: shared.Markdown = None,
    json: shared.JsonFlag = False,
) -> None:
    """Make a model smaller and faster by a recipe; the bundle is written only if the limits hold."""
    asked = shared.given(locals())

    def work() -> Any:
        from optkit.cli.progress import bar
        from optkit.pipeline.optimize import execute
        from optkit.pipeline.plan import default_output, make_plan
        from optkit.pipeline.steps import Policy
        from optkit.recipe.recipe import Recipe

        with bar() as watch:
            policy = Policy(strict=strict, bench=bench, remeasure=remeasure, watch=watch)
            watch("planning", 0, 0)
            chosen = Recipe.load(recipe, sets or ())
            plan = make_plan(model, chosen, out or default_output(model, chosen), asked, force=force, write=not dry_run)  # type: ignore[arg-type]
            return plan.facts() if dry_run else execute(plan, policy, force=force)

    def show(result: Any) -> None:
        from optkit.cli.render import show_manifest, show_plan

        (show_plan if dry_run else show_manifest)(result)

    writer = None if dry_run else report_writer(f"optkit optimize {model.name}", junit, markdown, manifest_words)
    answer("optimize", json, work, show, show_missed=show, on_end=writer)
