"""The main job: plan, run the passes, judge, time, and put the bundle in place only if the limits hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Unpack

from optkit.errors import AccuracyMissed, BudgetMissed, OptkitError
from optkit.evaluate.judge import add_limits, budget_limits, measured_on
from optkit.model.manifest import LimitResult, Manifest, StepRecord, Timing, Verdict
from optkit.model.model import Model
from optkit.passes._base import Pass
from optkit.passes._quant.layered import GIVEN_BACK
from optkit.pipeline.cache import key_of
from optkit.pipeline.context import Progress, judge_on, silent
from optkit.pipeline.contract import may_change
from optkit.pipeline.environment import artifact, environment, load_average
from optkit.pipeline.isolate import isolated, needs_child
from optkit.pipeline.job import Job
from optkit.pipeline.plan import Options, Plan, make_plan
from optkit.pipeline.publish import publish
from optkit.pipeline.steps import NO_BENCH, Policy, estimate_others, export, run_steps
from optkit.pipeline.stopwatch import time_result
from optkit.recipe.recipe import Recipe


def optimize(
    model: str | Path | Model,
    recipe: str | Path | Recipe | Pass | Sequence[Pass],
    output: str | Path | None = None,
    *,
    force: bool = False,
    bench: bool = True,
    strict: bool = False,
    remeasure: bool = False,
    watch: Progress = silent,
    **options: Unpack[Options],
) -> Manifest:
    """Make a model smaller and faster, with proof that it still does its job.

    Args:
        model: a path, or an opened Model.
        recipe: a shipped recipe's name, a YAML file, a Recipe, or passes.
        output: the bundle's folder, or a path ending in ``.onnx`` for the model alone; None = write nothing.
        force: replace an existing output.
        bench: time the original against the result, and roll steps back that are measured slower.
        strict: a broken promise stops the run instead of rolling the step back.
        remeasure: time cached decisions again.
        watch: called with (what, done, total) as the run goes on.
        options: see ``Options``.

    Returns:
        Everything that was done, measured and decided.

    Raises:
        AccuracyMissed: an accuracy limit was missed; nothing is at ``output``. Its ``facts`` is the manifest.
        BudgetMissed: a speed, size or memory limit was missed; likewise.
        OptkitError: something given is wrong, see ``optkit.errors``.
    """
    policy = Policy(strict=strict, bench=bench, remeasure=remeasure, watch=watch)
    return execute(make_plan(model, recipe, output, options, force=force), policy, force=force)


def execute(plan: Plan, policy: Policy, *, force: bool = False) -> Manifest:
    """Carry out a checked plan. Raises as ``optimize`` does."""
    with plan.job.cache.running():
        return _execute(plan, policy, force)


def _execute(plan: Plan, policy: Policy, force: bool) -> Manifest:
    job, load = replace(plan.job, bench=policy.bench), load_average()
    done = run_steps(job, [planned.step for planned in plan.steps], policy)
    result = done[-1].after if done else job.original
    policy.watch("judging", len(done), len(done))
    baseline = export(job, job.original)
    kept = [each.step.options for each in done if each.record.status == "changed"]
    verdict = final_verdict(job, result, may_change(kept))
    policy.watch("timing", 0, 1)
    timing, note = time_result(job, baseline, result, policy.allowance) if policy.bench else (None, NO_BENCH)
    records = estimate_others(job, done, policy)
    verdict = add_limits(verdict, _budget(job, baseline, result, timing, note))
    manifest = Manifest(
        recipe_name=plan.recipe.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        original=artifact(job.original),
        baseline=artifact(baseline),
        result=artifact(result),
        recipe=plan.recipe.resolved(),
        options={
            **plan.beside,
            **({"strict": True} if policy.strict else {}),
            **({} if policy.bench else {"bench": False}),
        },
        steps=tuple(records),
        verdict=verdict,
        timing=timing,
        timing_note=note,
        timing_s=policy.allowance.spent,
        notes=plan.notes,
        session=dict(result.session),
        preprocess={name: dict(entry) for name, entry in job.original.assets.preprocess.items()},
        environment=environment(job.target, load),
        output=None if plan.output is None else str(plan.output),
    )
    stop_on_miss(manifest.verdict, manifest.model_copy(update={"output": None}), records)
    return manifest if plan.output is None else publish(manifest, result, plan.output, force=force)


def final_verdict(job: Job, result: Model, allowed: frozenset[str]) -> Verdict:
    """Original against result on the evaluation split; from the cache where nothing changed."""
    dataset = job.splits["evaluation"]
    facts: dict[str, Any] = {"what": "judged", "original": job.original.digest, "result": result.digest}
    facts |= {"data": dataset.digest, "outputs": str(job.outputs), "metric": str(job.metric), "exact": job.exact}
    facts |= {"limits": job.limits.plain(), "session": (job.original.session, result.session)}
    facts |= job.runtime_facts()
    facts |= {"fit": job.splits["fit"].digest if "fit" in job.splits else None, "allowed": sorted(allowed)}
    key = key_of(facts)
    known = None if job.metric_code and ":" in str(job.metric) else job.cache.get_facts(key)
    if known is not None:
        verdict = Verdict.model_validate(known)
        return verdict.model_copy(update={"measured_on": measured_on(dataset, verdict.measured_on.samples)})
    dropped = _dropped(job, result) if "outputs" in allowed else ()
    child = needs_child(result) or needs_child(job.original)
    verdict = isolated(child, judge_on, job, result, dataset, dropped, allowed)
    job.cache.put_facts(key, verdict.model_dump(), "verdict")
    return verdict


def _dropped(job: Job, result: Model) -> tuple[str, ...]:
    """Outputs of the original that a pass removed by declaration (the contract refuses others)."""
    have = {spec.name for spec in result.signature.outputs}
    return tuple(spec.name for spec in job.original.signature.outputs if have and spec.name not in have)


def _budget(job: Job, baseline: Model, result: Model, timing: Timing | None, note: str) -> tuple[LimitResult, ...]:
    return budget_limits(
        job.limits,
        ratio=timing.result if timing else None,
        size_bytes=result.size_bytes,
        original_bytes=baseline.size_bytes,
        peak_mb=timing.peak_mb if timing else None,
        timing_note=note,
    )


def stop_on_miss(verdict: Verdict, facts: Any, records: Sequence[StepRecord] = ()) -> None:
    """Raise for the missed limits; accuracy outranks the budget, and both are listed.

    Raises:
        AccuracyMissed: exit code 4.
        BudgetMissed: exit code 5.
    """
    if verdict.held:
        return
    missed = [limit for limit in verdict.limits if limit.held is False]
    sentence = "; ".join([*verdict.problems, *map(_missed, missed)])
    kind: type[OptkitError] = BudgetMissed if verdict.accuracy_held else AccuracyMissed
    slow = any(limit.name in ("speedup", "latency_ms") for limit in missed)
    costly = _costliest(records) if kind is AccuracyMissed else _slowest(records) if slow else ""
    repaired = _repaired(records) if kind is AccuracyMissed else ""
    on = verdict.measured_on
    near = [limit for limit in missed if limit.name in verdict.would_pass]
    passing = ", ".join(_just_passing(limit, verdict.would_pass[limit.name]) for limit in near)
    error = kind(
        " ".join(filter(None, (f"The result misses its limits: {sentence}.", costly, repaired))),
        expected=f"all limits held on {on.samples} samples of {on.source} ({on.split})",
        fix="change the recipe"
        + (f"; these limits would just have passed: {passing}" if passing else "")
        + ("; --limit speedup=null switches that limit off" if any(x.name == "speedup" for x in missed) else ""),
    )
    error.facts = facts
    raise error


def _just_passing(limit: LimitResult, value: float) -> str:
    if "bound" in limit.limit:
        return f"--limit '{limit.name}={{max: {value:.6g}, by: bound}}'"
    return f"--limit {limit.name}={value:.6g}"


def _missed(limit: LimitResult) -> str:
    where = f" of {limit.where}" if limit.where else ""
    value = "" if limit.measured is None else f" is {limit.measured:.6g}"
    return f"{limit.name}{where}{value} (limit {limit.limit})"


def _costliest(records: Sequence[StepRecord]) -> str:
    """The step after which the drift from the original grew most, in a sentence."""
    worst, cost, last = None, 0.0, 1.0
    for record in records:
        if record.status == "changed" and record.drift is not None and record.drift.cosine is not None:
            if last - record.drift.cosine > cost:
                worst, cost = record, last - record.drift.cosine
            last = record.drift.cosine
    return "" if worst is None else f"The step '{worst.id}' cost most (cosine -{cost:.4g})."


def _repaired(records: Sequence[StepRecord]) -> str:
    """What was given back to hold the limits, or is the best that was found, in sentences."""
    repairing = [record for record in records if record.status == "changed" and record.config.get("repair")]
    kept = [each for record in repairing for each in record.decisions if each.kept]
    names = [each.where for record in repairing for each in record.skipped if each.what.startswith(GIVEN_BACK)]
    listed = f" ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" if names else ""
    return " ".join(f"{each.what.capitalize()}{listed}: {each.reason}." for each in kept)


def _slowest(records: Sequence[StepRecord]) -> str:
    """The step that made the model slower than the others did, in a sentence; empty where no step did."""
    timed = [(each.speedup.speedup, each.id) for each in records if each.status == "changed" and each.speedup]
    speedup, name = min(timed, default=(1.0, ""))
    return f"The step '{name}' cost most ({speedup:.2f}x the speed of the model before it)." if speedup < 1 else ""
