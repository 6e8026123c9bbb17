"""The verdict alone: a result against its original."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Unpack

from optkit.errors import GivenError, PassError, UsageError
from optkit.evaluate.judge import add_limits, budget_limits
from optkit.evaluate.limits import LabelledLimits, Limits
from optkit.model.manifest import LimitResult, Verdict
from optkit.model.model import Model
from optkit.pipeline.allowance import Allowance
from optkit.pipeline.batch import measure_batch_invariance
from optkit.pipeline.cache import Cache
from optkit.pipeline.context import judge_on
from optkit.pipeline.gather import Gathered, complete_inputs, gather, implied_outputs, open_splits
from optkit.pipeline.job import Job
from optkit.pipeline.origin import Origin, decided_elsewhere, default_exporter, read_origin
from optkit.pipeline.plan import Options, as_limits, as_target, at_sizes, check_metric, open_given
from optkit.pipeline.probe import probe
from optkit.pipeline.steps import export
from optkit.pipeline.stopwatch import time_fully
from optkit.recipe.recipe import Recipe
from optkit.runner.providers import require


def compare(
    original: str | Path | Model,
    result: str | Path | Model,
    *,
    batch_invariance: bool = False,
    **options: Unpack[Options],
) -> Verdict:
    """Judge a result against its original.

    Limits count in this order: the option, the bundle's manifest, the defaults; each limit's note says which it was.
    Data likewise: the option, the bundle's recipe (of which only what ``optimize`` gave its verdict on), the
    original's ``data.yaml``; made-up inputs as a last resort, which the verdict then says. The target is the bundle's
    unless an option says otherwise. A manifest counts only for the model that it describes.

    Args:
        original: a path, or an opened Model; options such as ``factory`` are about this one.
        result: a path (a bundle, or any model file), or an opened Model.
        batch_invariance: measure too how much a sample's answer depends on its batch neighbours, in both models.
        options: see ``Options``.

    Raises:
        OptkitError: something given is wrong. A missed limit is no error here: look at ``Verdict.held``.
    """
    allowance = Allowance()
    opened = result if isinstance(result, Model) else Model.open(result)
    origin = read_origin(opened, bundle=not isinstance(result, Model) and Path(result).is_dir())
    first = open_given(original, options)
    _refuse_swapped(first, opened)
    job = comparison(first, opened, origin, options)
    verdict = judge_on(job, opened, job.splits["evaluation"], *(origin.declared if origin else ((), frozenset())))
    verdict = add_limits(verdict, _budget(job, opened, origin, allowance))
    if batch_invariance:
        verdict = verdict.model_copy(update={"batch_invariance": measure_batch_invariance(job, opened)})
    notes = (*verdict.notes, *filter(None, [decided_elsewhere(origin, job.target)]))
    return _with_sources(verdict.model_copy(update={"notes": notes}), as_limits(options.get("limits")), origin)


def _refuse_swapped(original: Model, result: Model) -> None:
    made = read_origin(original, bundle=False)
    if made is not None and made.manifest.original.digest == result.digest:
        raise UsageError(
            f"{original.path} was made from {result.path}, not the other way round.",
            expected="the original first, then the result",
            fix="swap the two",
        )


def comparison(original: Model, result: Model, origin: Origin | None, options: Options) -> Job:
    """The job of judging ``result``, which came to be as ``origin`` says."""
    recipe = origin.recipe if origin else Recipe()
    gathered, carved = _gathered(original, result, origin, options)
    target = as_target(recipe, options)
    require(target.provider)
    original = complete_inputs(original, gathered, recipe)
    seed = options.get("seed", origin.seed if origin else 0)
    sizes = original.signature.sizes_in(result.signature)
    job = Job(
        original=original,
        target=at_sizes(target, sizes),
        splits=open_splits(original, gathered, target, seed=seed, search=carved, sizes=sizes),
        limits=recipe.limits.merged(as_limits(options.get("limits"))),
        exact=origin is not None and origin.exact,
        cache=options.get("cache") or Cache.default(),
        outputs=recipe.outputs or implied_outputs(original),
        metric=gathered.metric or (origin.metric if origin else None),
        metric_code=gathered.metric_code,
        metric_asked=options.get("metric") is not None,
        seed=seed,
    )
    check_metric(job)
    return replace(job, original=probe(job, write=True))


def _gathered(original: Model, result: Model, origin: Origin | None, options: Options) -> tuple[Gathered, bool]:
    """Data and so on, and whether a search split is to be carved from evaluation as ``optimize`` did."""
    asked = options.get("data")
    again = origin.data if origin and not asked else {}
    gathered = gather(original, flags=asked or again, metric=options.get("metric"))
    sources = {name: replace(each, code=each.code and name not in again) for name, each in gathered.sources.items()}
    gathered = replace(gathered, sources=sources)
    if not gathered.preprocess:
        gathered = replace(gathered, preprocess=result.assets.preprocess, assets_dir=result.assets.folder)
    return gathered, origin is not None and not asked and origin.carved


def _budget(job: Job, result: Model, origin: Origin | None, allowance: Allowance) -> tuple[LimitResult, ...]:
    """Speed and size against the baseline that ``optimize`` measures against, if a limit asks: accuracy comes first."""
    limits, baseline, ratio, peak = job.limits, None, None, None
    note = "times are checked only where a speed limit is stated, as by --limit speedup=not-slower"
    timed = any(limit is not None for limit in (limits.speedup, limits.latency_ms, limits.memory_mb))
    lost = ""
    if timed or limits.size_ratio is not None:
        baseline, lost = _baseline(job, origin)
    if timed:
        note = lost
        if baseline is not None:
            pair = time_fully(job, baseline, result, allowance)
            ratio, peak, note = pair.found.ratio, pair.found.peak_mb, pair.note
    found = budget_limits(
        limits,
        ratio=ratio,
        size_bytes=result.size_bytes,
        original_bytes=baseline.size_bytes if baseline else 0,
        peak_mb=peak,
        timing_note=note,
    )
    return tuple(
        limit.model_copy(update={"note": f"not checked: {lost}"}) if lost and limit.name == "size_ratio" else limit
        for limit in found
    )


def _baseline(job: Job, origin: Origin | None) -> tuple[Model | None, str]:
    """The original, or the ONNX that the bundle's own export (else optkit's) makes of it; else why there is none."""
    if job.original.form != "torch":
        return job.original, ""
    try:
        exporter = (origin.exporter if origin else None) or default_exporter()
        made = export(replace(job, exporter=exporter), job.original)
        if made.form == "torch":
            raise PassError("the export had no effect")
    except GivenError as error:
        return None, f"the original could not be exported: {error.message.rstrip('.')}"
    return made, ""


def _with_sources(verdict: Verdict, asked: Limits, origin: Origin | None) -> Verdict:
    """The verdict whose limits say where they came from."""
    stated = _names(origin.recipe.limits) if origin else frozenset()

    def told(limit: LimitResult) -> LimitResult:
        by = "asked for" if limit.name in _names(asked) else "of the manifest" if limit.name in stated else "by default"
        return limit.model_copy(update={"note": "; ".join(filter(None, [limit.note, f"limit {by}"]))})

    return verdict.model_copy(update={"limits": tuple(told(limit) for limit in verdict.limits)})


def _names(limits: Limits) -> frozenset[str]:
    """Of the limits stated, as a ``LimitResult`` is called."""
    labelled = limits.labelled or LabelledLimits()
    return frozenset({name for name, _ in limits.rules()} | {f"labelled.{name}" for name, _ in labelled.rules()})
