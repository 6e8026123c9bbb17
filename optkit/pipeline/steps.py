"""The for loop over passes: reuse or run each one, check its promises, keep it or roll it back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from optkit.errors import BudgetMissed, GivenError, PassError, RecipeError
from optkit.model.manifest import Change, Drift, StepRecord
from optkit.model.model import Form, Model
from optkit.model.target import Target
from optkit.passes._base import Pass
from optkit.pipeline.allowance import USED_UP, Allowance
from optkit.pipeline.cache import key_of
from optkit.pipeline.context import Progress, silent
from optkit.pipeline.contract import Check, check_split, check_step
from optkit.pipeline.isolate import isolated, needs_child
from optkit.pipeline.job import Job
from optkit.pipeline.make import Made, make
from optkit.pipeline.stopwatch import Estimate, estimate, time_left
from optkit.recipe.recipe import Step

NO_BENCH = "not timed: --no-bench"
"""Note where nothing is timed because nobody wants it."""


@dataclass(frozen=True)
class Policy:
    """How the loop reacts."""

    strict: bool = False
    """A broken promise stops the run instead of rolling back."""
    bench: bool = True
    """Whether anything is timed."""
    remeasure: bool = False
    """Time again what a cached decision says."""
    watch: Progress = silent
    allowance: Allowance = field(default_factory=Allowance)
    """For timing; a Policy is made when the run starts."""


@dataclass(frozen=True)
class Done:
    """One step as it went."""

    step: Step
    before: Model
    after: Model
    """The model to go on with."""
    record: StepRecord


def run_steps(job: Job, steps: Sequence[Step], policy: Policy) -> list[Done]:
    """Run the chain on the original.

    Raises:
        PassError: a required step had no effect, or a promise was broken under ``strict``.
        BudgetMissed: a required step is measured slower.
        RecipeError: a pass cannot work on what the steps before it made.
    """
    model, done = job.original, list[Done]()
    for index, step in enumerate(steps):
        policy.watch(step.id, index, len(steps))
        kept = [each.step.options for each in done if each.record.status == "changed"]
        after, record = run_step(job, step, model, policy, kept)
        done.append(Done(step, model, after, record))
        model = after
    return done


def estimate_others(job: Job, done: Sequence[Done], policy: Policy) -> list[StepRecord]:
    """The records, with estimates also of the steps that were not timed yet: only shown, they take what is left."""
    records = [each.record for each in done]
    for index in sorted(range(len(done)), key=lambda index: not done[index].step.options.for_speed):
        each = done[index]
        if each.record.status == "changed" and each.record.speedup is None:
            found = _estimate(job, each.before, each.after, policy, decides=False)
            records[index] = each.record.model_copy(update={"speedup": found.ratio, "timing_note": found.note})
    return records


def run_step(job: Job, step: Step, before: Model, policy: Policy, earlier: Sequence[Pass]) -> tuple[Model, StepRecord]:
    """One step: the model to go on with, and its record. ``earlier`` are the passes kept so far."""
    reason = skip_by_rule(step, before.form, job.target)
    if reason:
        return before, _record(step, before, "skipped", reason)
    refuse(step, step.options.applies_to(job.target) or step.options.applies(before, job.target))
    made = make(job, step.options, before, watch=policy.watch, label=step.id, remeasure=policy.remeasure)
    if made.model is None:
        return before, _no_effect(step, before, made, _why_nothing(made.facts))
    check = _checked(job, step, before, made, earlier)
    if check.problem:
        _stop_or_go(step, before, check, policy)
        return before, _record(step, before, "rolled back", check.problem, made, check.drift)
    if made.model.digest == before.digest and made.model.session == before.session:
        return before, _no_effect(step, before, made, "its result is the same model, byte for byte")
    timed = _estimate(job, before, made.model, policy, decides=True) if step.options.for_speed else Estimate()
    slower = _slower(timed)
    if slower and step.keep == "measured":
        if step.required:
            raise _required_but_slower(step, slower)
        return before, _record(step, before, "rolled back", slower, made, check.drift, timed)
    reason = f"kept although {slower} (keep: always)" if slower else ""
    return made.model, _record(step, made.model, "changed", reason, made, check.drift, timed)


def _slower(timed: Estimate) -> str:
    """Empty, or in words that the step made the model slower."""
    if not timed.slower or timed.ratio is None:
        return ""
    ratio = timed.ratio
    return f"measured slower: {ratio.speedup:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"


def _required_but_slower(step: Step, slower: str) -> BudgetMissed:
    return BudgetMissed(
        f"The step '{step.id}' is required but {slower}.",
        expected="a result that is not slower than the model before it",
        fix=f"--set passes.{step.id}.keep=always to have it anyway, or required=false in its place to go without it",
    )


def refuse(step: Step, reason: str) -> None:
    """Stop at a step whose pass gives a reason why it cannot work.

    Raises:
        RecipeError: there is a reason, see ``Pass.applies``.
    """
    what, _, advice = reason.partition("; ")
    if reason:
        raise RecipeError(
            f"The step '{step.id}' cannot work on this model: {what}{'' if what.endswith('?') else '.'}",
            expected="options that fit the model, and a model and target it can handle",
            fix=advice or "change the step's options, or leave the step out",
        )


def _no_effect(step: Step, before: Model, made: Made, reason: str) -> StepRecord:
    """The record of a step that did nothing.

    Raises:
        PassError: something had to be done.
    """
    if step.required or _leads_on(step, before):
        why = "is required but" if step.required else "cannot be left out, as the chain cannot go on without it, but"
        raise PassError(
            f"The step '{step.id}' {why} had no effect: {reason}.",
            expected="at least one change",
            fix="remove 'required', or the step" if step.required else "use another pass in its place",
        )
    return _record(step, before, "no effect", reason, made)


def _leads_on(step: Step, before: Model) -> bool:
    """Whether the steps behind this one need the form that it gives."""
    return before.form == "torch" and step.options.forms.get("torch") != "torch"


def skip_by_rule(step: Step, form: Form, target: Target) -> str:
    """Empty, or why the step does not run on a model of this form for this target."""
    when = step.when
    if when.form is not None and when.form != form:
        return f"only for form {when.form}"
    if when.provider is not None and when.provider != target.provider:
        return f"only for provider {when.provider}"
    if form == "onnx" and dict(step.options.forms) == {"torch": "onnx"}:
        return "the model is ONNX already"
    return ""


def export(job: Job, model: Model) -> Model:
    """A torch model exported by the recipe's own export pass (cached); any other model as it is.

    Raises:
        PassError: the recipe has no export pass.
    """
    if model.form != "torch":
        return model
    if job.exporter is None:
        raise PassError(
            "The model is a torch model and the recipe has no pass that exports it to ONNX.",
            expected="an export pass",
            fix="add '- export-onnx' to the recipe",
        )
    made = make(job, job.exporter, model, label=job.exporter.name()).model
    return made or model


def _checked(job: Job, step: Step, before: Model, made: Made, earlier: Sequence[Pass]) -> Check:
    """The contract's findings, from the cache where nothing they depend on changed."""
    if made.model is None:
        return Check()
    try:
        _ = made.model.digest
    except GivenError as error:
        return Check(f"its result cannot be read: {error.message.rstrip('.')}")
    except OSError as error:
        return Check(f"its result cannot be read: {error.strerror}: {error.filename}")
    facts: dict[str, Any] = {"what": "check", "step": made.key, "original": job.original.digest}
    facts |= {"earlier": [pass_.sentence() for pass_ in earlier], "session": made.model.session}
    facts |= {"before": before.digest, "data": check_split(job).digest, "outputs": str(job.outputs)}
    facts |= job.runtime_facts()
    key = key_of(facts)
    with job.cache.lock(key):
        known = job.cache.get_facts(key)
        if known is None:
            child = needs_child(made.model)
            check = isolated(child, check_step, job, before, made.model, step.options, earlier)
            plain = asdict(replace(check, drift=None))
            job.cache.put_facts(
                key, {**plain, "drift": check.drift and check.drift.model_dump()}, f"check of {step.id}"
            )
            return check
    drift = known.pop("drift")
    return Check(**{**known, "drift": drift and Drift(**drift)})


def _estimate(job: Job, before: Model, after: Model, policy: Policy, *, decides: bool) -> Estimate:
    """A coarse estimate of what the step brought; torch models are timed as the recipe exports them."""
    if not policy.bench:
        return Estimate(note=NO_BENCH)
    if "torch" in (before.form, after.form) and not time_left(policy.allowance, decides=decides):
        return Estimate(note=USED_UP)
    models = [export(job, before), export(job, after)]
    if models[0].digest == models[1].digest and models[0].session == models[1].session:
        return Estimate()
    return estimate(job, models, policy.allowance, decides=decides, remeasure=policy.remeasure)


def _stop_or_go(step: Step, before: Model, check: Check, policy: Policy) -> None:
    needed = step.required or _leads_on(step, before)
    if needed or policy.strict:
        why = "without it the chain cannot go on" if needed else "--strict stops here"
        raise PassError(
            f"The step '{step.id}' broke its promise: {check.problem}.",
            expected="a result that loads, runs and keeps the outputs",
            fix=f"leave the step out or change its options ({why})",
        )


def _why_nothing(facts: dict[str, Any]) -> str:
    reasons = facts["notes"] or [f"{where}: {what}" for where, what in facts["skipped"]]
    return "; ".join(reasons[:3]) or "nothing in this model matches"


def _record(
    step: Step,
    model: Model,
    status: Any,
    reason: str,
    made: Made | None = None,
    drift: Drift | None = None,
    timed: Estimate = Estimate(),  # noqa: B008 - frozen
) -> StepRecord:
    facts: dict[str, Any] = made.facts if made else {}
    return StepRecord(
        id=step.id,
        name=step.options.name(),
        title=step.options.title(),
        config=step.options.model_dump(mode="json"),
        status=status,
        reason=reason,
        changes=tuple(Change(where=a, what=b) for a, b in facts.get("changes", ())),
        skipped=tuple(Change(where=a, what=b) for a, b in facts.get("skipped", ())),
        notes=tuple(facts.get("notes", ())) if status == "changed" else (),
        session=facts.get("session", {}) if status == "changed" else {},
        decisions=tuple(facts.get("decisions", ())),
        drift=drift,
        speedup=timed.ratio,
        timing_note=timed.note,
        seconds=facts.get("seconds", 0.0),
        peak_mb=facts.get("peak_mb"),
        cached=made.cached if made else False,
        size_bytes=model.size_bytes,
        digest=model.digest,
    )
