"""The verdict alone: a result against its original."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from optkit.errors import GivenError, ModelError
from optkit.evaluate.judge import OutputOptions, add_limits, budget_limits
from optkit.evaluate.limits import Limits
from optkit.model.manifest import Manifest, Ratio, Verdict
from optkit.model.model import Model
from optkit.passes._base import Pass
from optkit.pipeline.cache import Cache
from optkit.pipeline.context import judge_on, time_candidates
from optkit.pipeline.gather import complete_inputs, gather, implied_outputs, open_splits
from optkit.pipeline.job import Job
from optkit.pipeline.plan import Options, as_limits, as_target, check_metric, open_given, probe
from optkit.pipeline.reference import original_target
from optkit.runner.providers import require


def compare(original: str | Path | Model, result: str | Path | Model, **options: Unpack[Options]) -> Verdict:
    """Judge a result against its original.

    Limits count in this order: the option, the bundle's manifest, the defaults. Data likewise: the option, the
    bundle's recipe, the original's ``data.yaml``; made-up inputs as a last resort, which the verdict then says.

    Args:
        original: a path, or an opened Model; options such as ``factory`` are about this one.
        result: a path (a bundle, or any model file), or an opened Model.
        options: see ``Options``.

    Raises:
        OptkitError: something given is wrong. A missed limit is no error here: look at ``Verdict.held``.
    """
    job, opened = comparison(original, result, options)
    verdict = judge_on(job, opened, job.splits["evaluation"], *_declared(read_manifest(opened.path)))
    ratio, peak, note = _timing(job, opened)
    return add_limits(
        verdict,
        budget_limits(
            job.limits,
            ratio=ratio,
            size_bytes=opened.size_bytes,
            original_bytes=job.original.size_bytes,
            peak_mb=peak,
            timing_note=note,
        ),
    )


def comparison(original: str | Path | Model, result: str | Path | Model, options: Options) -> tuple[Job, Model]:
    """The job of judging ``result``, and ``result`` opened."""
    first = open_given(original, options)
    second = result if isinstance(result, Model) else Model.open(result)
    manifest = read_manifest(second.path)
    recipe = manifest.recipe if manifest else {}
    gathered = gather(first, flags=options.get("data") or _recipe_data(recipe), metric=options.get("metric"))
    if not gathered.preprocess:
        gathered = replace(gathered, preprocess=second.assets.preprocess, assets_dir=second.assets.folder)
    metric = gathered.metric or _recipe_metric(recipe)
    target = as_target(None, options)
    require(target.provider)
    first = complete_inputs(first, gathered)
    stated = Limits.model_validate(recipe.get("limits", {}))
    job = Job(
        original=first,
        target=target,
        splits=open_splits(first, gathered, target, seed=options.get("seed", 0), search=False),
        limits=stated.merged(as_limits(options.get("limits"))),
        exact=_exact(manifest),
        cache=options.get("cache") or Cache.default(),
        outputs={name: OutputOptions.model_validate(spec) for name, spec in recipe.get("outputs", {}).items()}
        or implied_outputs(first),
        metric=metric,
        metric_code=gathered.metric_code,
        metric_asked=options.get("metric") is not None,
    )
    check_metric(job)
    return Job(**{**vars(job), "original": probe(job, write=True)}), second


def read_manifest(model_path: Path) -> Manifest | None:
    """The manifest beside a bundle's model; None where there is none, or it is another tool's.

    Raises:
        ModelError: it is there and cannot be read.
    """
    file = (model_path if model_path.is_dir() else model_path.parent) / "manifest.json"
    if not file.is_file():
        return None
    try:
        stated = json.loads(file.read_text(encoding="utf-8"))
        ours = isinstance(stated, dict) and "recipe_name" in stated
        return Manifest.model_validate(stated) if ours else None
    except ValueError as error:
        raise ModelError(
            f"The manifest {file} cannot be read: {str(error).splitlines()[0]}.",
            expected="the manifest.json that optkit wrote",
            fix="make the bundle again with optkit optimize",
        ) from error


def _recipe_metric(recipe: Mapping[str, Any]) -> Any:
    """The metric of the bundle's recipe; code only a flag may name."""
    metric = recipe.get("metric")
    name = metric.get("name") if isinstance(metric, Mapping) else metric
    return None if ":" in str(name) else metric


def _recipe_data(recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """The evaluation data of the bundle's recipe, where they still are on this machine; never code."""
    evaluation = recipe.get("data", {}).get("evaluation")
    if evaluation is None or evaluation.get("format") == "function" or not Path(evaluation["source"]).exists():
        return None
    from optkit.data.spec import DataSource

    return {"evaluation": DataSource.model_validate(evaluation)}


def _exact(manifest: Manifest | None) -> bool:
    """Whether the bundle's whole chain was exact; a foreign result is not assumed to be."""
    return manifest is not None and all(pass_ is not None and pass_.kind == "exact" for pass_ in _kept(manifest))


def _declared(manifest: Manifest | None) -> tuple[tuple[str, ...], frozenset[str]]:
    """The outputs that the bundle's passes removed, and what they may have changed."""
    if manifest is None:
        return (), frozenset()
    dropped = manifest.verdict.dropped_outputs
    allowed = {aspect for pass_ in _kept(manifest) if pass_ is not None for aspect in pass_.may_change}
    return dropped, frozenset(allowed | ({"outputs"} if dropped else set()))


def _kept(manifest: Manifest) -> Iterator[type[Pass] | None]:
    """The passes behind the bundle; None for one that is not installed here."""
    from optkit.passes._registry import find

    for step in manifest.steps:
        if step.status == "changed":
            try:
                yield find(step.name)
            except GivenError:
                yield None


def _timing(job: Job, result: Model) -> tuple[Ratio | None, float | None, str]:
    """Timed only where a limit asks for it: check is about accuracy first."""
    limits = job.limits
    if limits.speedup is None and limits.latency_ms is None and limits.memory_mb is None:
        return None, None, "not timed: no speed limit was stated"
    candidates = [(job.original, original_target(job.original, job.target)), (result, job.target)]
    timed = time_candidates(job, candidates, 4.0)[1]
    return timed.ratio, timed.peak_mb, ""
