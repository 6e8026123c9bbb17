"""Ranks the layers that a recipe would quantize by what that costs."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack, cast

from optkit.bench.profile import profile_model
from optkit.errors import RecipeError
from optkit.evaluate.judge import measured_on
from optkit.model.machine import usable_threads
from optkit.model.manifest import Change, Verdict
from optkit.model.model import Model
from optkit.passes._base import Pass
from optkit.passes._quant.layered import Layered, Quantizer
from optkit.passes._quant.ranking import Effect, rank, trials_of
from optkit.pipeline.context import Progress, bench_inputs, silent
from optkit.pipeline.isolate import isolated, needs_child
from optkit.pipeline.job import Job
from optkit.pipeline.make import step_context
from optkit.pipeline.plan import Options, Plan, as_recipe, make_plan
from optkit.pipeline.steps import Policy, export, refuse, run_steps
from optkit.recipe.recipe import Recipe, Step
from optkit.report.sensitivity import LayerEffect, SensitivityFacts

STATIC, DYNAMIC = "int8-static", "int8"
"""Recipes where none is asked for: with convolutions and calibration data, and else."""
WORST = 3
"""Layers that are put forward for ``exclude``, and at most half of all."""
DROPS = 20_000
"""The drop of the metric is measured for each layer where layers times samples are at most this."""
PROFILE_S = 2.0
"""Seconds of timing for the share that each layer has."""


def sensitivity(
    model: str | Path | Model,
    recipe: str | Path | Recipe | Pass | Sequence[Pass] | None = None,
    *,
    step: str | None = None,
    sets: Sequence[str] = (),
    bench: bool = True,
    watch: Progress = silent,
    **options: Unpack[Options],
) -> SensitivityFacts:
    """Rank the layers that one step of a recipe quantizes, the one that costs most first.

    The steps before it are carried out as ``optimize`` would, from the cache where it has them; only that none is
    rolled back for being slow.

    Args:
        model: a path, or an opened Model.
        recipe: as ``optimize`` takes it; None = int8-static for convolutions with calibration data, else int8.
        step: id of the quantizing step; None = the first.
        sets: ``passes.ID.option=value``, for the recipe that is taken where none is asked for.
        bench: time the float model's nodes, and let passes before the step choose by time.
        watch: called with (what, done, total).
        options: see ``Options``.

    Raises:
        RecipeError: the recipe has no such step, or none that quantizes layer by layer.
        OptkitError: something else given is wrong.
    """
    chosen, why = (as_recipe(recipe), "") if recipe is not None else _default(model, sets, options)
    plan = _plan_up_to(model, chosen, step, options)
    with plan.job.cache.running():
        job = replace(plan.job, bench=bench)
        *earlier, last = [planned.step for planned in plan.steps]
        done = run_steps(job, earlier, Policy(bench=False, watch=watch))
        before = done[-1].after if done else job.original
        refuse(last, last.options.applies(before, job.target))
        child = needs_child(before)
        found = isolated(child, _ranked, job, last, before, silent if child else watch)
        timed = bench and bool(found.effects)
        watch("timing" if timed else "done", 0, 1)
        shares = _time_shares(job, before) if timed else {}
    return _facts(plan, last, found, shares, why)


def _default(model: str | Path | Model, sets: Sequence[str], options: Options) -> tuple[Recipe, str]:
    """The recipe to take, and why."""
    from optkit.passes._ir import load_ir, op_counts

    job = _plan_up_to(model, Recipe.load(DYNAMIC), None, options).job
    if not op_counts(load_ir(export(job, job.original).path))["Conv"]:
        return Recipe.load(DYNAMIC, sets), "the model has no convolutions"
    if "calibration" not in job.splits or job.splits["calibration"].synthetic:
        why = f"there are no calibration data for {STATIC}, which suits convolutions better"
        return Recipe.load(DYNAMIC, sets), why
    return Recipe.load(STATIC, sets), "the model has convolutions, and there are calibration data"


def _plan_up_to(model: str | Path | Model, recipe: Recipe, step: str | None, options: Options) -> Plan:
    """The plan of the recipe as far as its quantizing step, which is the last."""
    index = _find(recipe, step)
    plan = make_plan(model, recipe.model_copy(update={"passes": recipe.passes[: index + 1]}), None, options)
    if reason := plan.steps[-1].skip:
        raise RecipeError(
            f"The step '{plan.steps[-1].step.id}' does not run here: {reason}.",
            expected="a step that quantizes on this target",
            fix="choose another one with --step, or another target",
        )
    return plan


def _find(recipe: Recipe, step: str | None) -> int:
    """Place of the step of that id, or of the first that quantizes layer by layer."""
    able = [index for index, each in enumerate(recipe.passes) if isinstance(each.options, Quantizer)]
    found = [index for index in able if step in (None, recipe.passes[index].id)]
    if found:
        return found[0]
    names = ", ".join(recipe.passes[index].id for index in able)
    known = step in [each.id for each in recipe.passes]
    raise RecipeError(
        f"The step '{step}' does not quantize layer by layer."
        if known
        else f"The recipe '{recipe.name}' has no step {repr(step) if step else 'that quantizes layer by layer'}.",
        expected=f"one of the steps {names}" if names else "a step such as quantize-dynamic",
        fix=f"--step {recipe.passes[able[0]].id}" if able else f"take another recipe: --recipe {DYNAMIC}",
    )


@dataclass(frozen=True)
class _Ranked:
    """Plain and picklable."""

    effects: Sequence[Effect]
    details: Mapping[str, tuple[str, int]]
    """Layer -> its operator, and how many parameters it has."""
    skipped: Sequence[tuple[str, str]]
    quantized: Verdict | None
    notes: Sequence[str]


def _ranked(job: Job, step: Step, before: Model, watch: Progress) -> _Ranked:
    asking = step.options.model_copy(update={"repair": True})  # so that it may read the split search
    pass_ = cast("Quantizer", asking)
    with job.cache.workdir() as work:
        folder = work / "made"
        folder.mkdir()
        ctx = step_context(job, pass_, before, folder, step.id, watch)
        layered = pass_.layered(before, ctx)
        if not layered.layers:
            return _Ranked((), {}, layered.skipped, None, layered.notes)
        full = layered.build({})
        verdict = ctx.judge(full.model)
        count = len(layered.layers)
        alone = trials_of(layered) == count and count * verdict.measured_on.samples <= DROPS
        effects = rank(layered, ctx, full.model, verdict, drops=bool(verdict.metrics) and alone)
        notes = [*layered.notes, *full.notes]
        return _Ranked(effects, _details(layered), layered.skipped, verdict, notes)


def _details(layered: Layered) -> dict[str, tuple[str, int]]:
    """Operator and parameters of each layer: of the node that is called so, else of the one that makes its tensor."""
    from optkit.passes._ir import load_ir, node_label

    nodes = list(load_ir(layered.model.path).graph.all_nodes())
    named = {node_label(node): node for node in reversed(nodes)}  # nodes of branches may share a name
    made = {value.name: node for node in nodes for value in node.outputs}
    found = {label: named.get(label) or made.get(tensor) for label, tensor in layered.layers.items()}
    return {label: ("", 0) if node is None else (node.op_type, _parameters(node)) for label, node in found.items()}


def _parameters(node: Any) -> int:
    """Elements of the node's constant inputs."""
    from optkit.passes._ir import constant

    arrays = [constant(value) for value in node.inputs]
    return sum(array.size for array in arrays if array is not None)


def _time_shares(job: Job, model: Model) -> dict[str, float]:
    """Node of the model -> its share of all nodes' time; what is fused into another node is not among them."""
    inputs, _ = bench_inputs(job, count=1)
    target = replace(job.target, threads=job.target.threads or usable_threads())
    with tempfile.TemporaryDirectory(prefix="optkit-profile-") as scratch:
        nodes = isolated(True, profile_model, model, target, inputs, Path(scratch), PROFILE_S).nodes
    total = sum(node.seconds for node in nodes) or 1.0
    shares: dict[str, float] = {}
    for node in nodes:
        shares[node.origin] = shares.get(node.origin, 0.0) + node.seconds / total
    return shares


def _facts(plan: Plan, step: Step, found: _Ranked, shares: Mapping[str, float], why: str) -> SensitivityFacts:
    names = [effect.label for effect in found.effects]
    worst = names[: min(WORST, len(names) // 2)]
    known = {*names, *(where for where, _ in found.skipped)}
    data = plan.job.split("search")
    return SensitivityFacts(
        model=str(plan.job.original.path),
        recipe=plan.recipe.name,
        why=why,
        step=step.id,
        sentence=step.options.sentence(),
        layers=tuple(_layer(effect, found.details, shares) for effect in found.effects),
        skipped=tuple(Change(where=where, what=what) for where, what in found.skipped),
        quantized=found.quantized,
        exclude=tuple(as_pattern(name, known) for name in worst),
        measured_on=measured_on(data, data.count),
        notes=tuple(dict.fromkeys([*plan.notes, *found.notes])),
    )


def _layer(effect: Effect, details: Mapping[str, tuple[str, int]], shares: Mapping[str, float]) -> LayerEffect:
    operator, parameters = details[effect.label]
    return LayerEffect(
        name=effect.label,
        operator=operator,
        error=effect.error,
        sqnr_db=effect.sqnr_db,
        among=effect.among,
        drop=effect.drop,
        parameters=parameters,
        share=shares.get(effect.label),
    )


def as_pattern(name: str, known: Iterable[str]) -> str:
    """What ``exclude`` takes for this one of the ``known`` names: itself, or escaped where that means others too."""
    try:
        meant = re.compile(name)
    except re.error:
        return re.escape(name)
    return re.escape(name) if any(meant.fullmatch(other) for other in known if other != name) else name
