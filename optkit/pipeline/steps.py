"""The for loop over passes: reuse or run each one, check its promises, keep it or roll it back."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from optkit import __version__
from optkit.errors import OptkitError, PassError
from optkit.model.digest import model_files, sha256_files
from optkit.model.manifest import Change, Drift, Ratio, StepRecord
from optkit.model.model import Form, Model
from optkit.model.signature import Signature, TensorSpec
from optkit.model.target import Target
from optkit.passes import _registry
from optkit.passes._base import Pass
from optkit.pipeline.cache import key_of
from optkit.pipeline.context import Progress, StepContext, require_model, silent, time_models, with_session
from optkit.pipeline.contract import Check, check_split, check_step
from optkit.pipeline.isolate import isolated, needs_child, watched_memory
from optkit.pipeline.job import Job, library_versions
from optkit.recipe.recipe import Step

STEP_BUDGET_S = 2.0
"""Seconds of timing for each step that is there for speed."""

_LIBRARIES = ("numpy", "onnx", "onnx-ir", "onnxscript", "onnxslim", "onnxruntime", "torch", "transformers")


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


@dataclass(frozen=True)
class Made:
    """One pass's result as it lies in the cache."""

    model: Model | None
    """None = no effect."""
    facts: dict[str, Any]
    key: str
    cached: bool


def run_steps(job: Job, steps: Sequence[Step], policy: Policy) -> tuple[Model, list[StepRecord]]:
    """Run the chain on the original; the model it ends with, and what happened at each step.

    Raises:
        PassError: a required step had no effect, or a promise was broken under ``strict``.
    """
    model, records, lossy = job.original, [], False
    for index, step in enumerate(steps):
        policy.watch(step.id, index, len(steps))
        model, record = run_step(job, step, model, policy, lossy_before=lossy)
        lossy = lossy or (record.status == "changed" and step.options.kind != "exact")
        records.append(record)
    return model, records


def run_step(job: Job, step: Step, before: Model, policy: Policy, *, lossy_before: bool) -> tuple[Model, StepRecord]:
    """One step: the model to go on with, and its record."""
    reason = skip_by_rule(step, before.form, job.target)
    if reason:
        return before, _record(step, before, "skipped", reason)
    made = make(job, step.options, before, watch=policy.watch, label=step.id)
    if made.model is None:
        reason = _why_nothing(made.facts)
        if step.required:
            raise PassError(
                f"The step '{step.id}' is required but had no effect: {reason}.",
                expected="at least one change",
                fix="remove 'required', or the step",
            )
        return before, _record(step, before, "no effect", reason, made)
    check = _checked(job, step, before, made, lossy_before=lossy_before)
    if check.problem:
        _stop_or_go(step, before, check, policy)
        return before, _record(step, before, "rolled back", check.problem, made, check.drift)
    speedup = _speedup(job, step, before, made.model, policy)
    if speedup is not None and speedup.word == "slower" and step.keep == "measured":
        slower = f"measured slower: {speedup.speedup:.2f}x [{speedup.low:.2f}, {speedup.high:.2f}]"
        return before, _record(step, before, "rolled back", slower, made, check.drift, speedup)
    return made.model, _record(step, made.model, "changed", "", made, check.drift, speedup)


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


def make(job: Job, pass_: Pass, before: Model, *, label: str, watch: Progress = silent) -> Made:
    """The pass's result from the cache, or made now in a folder of its own."""
    key = step_key(job, pass_, before)
    with job.cache.lock(key):
        folder = job.cache.get(key)
        cached = folder is not None
        if folder is None:
            child = needs_child(before)
            folder = isolated(child, _make, job, pass_, before, key, label, silent if child else watch)
    facts = json.loads((folder / "outcome.json").read_text())
    if facts["model"] is None:
        return Made(None, facts, key, cached)
    after = replace(
        before,
        path=folder / facts["model"],
        form=facts["form"],
        kind=facts["kind"],
        signature=_signature(facts["signature"]),
        lineage=(*before.lineage, pass_.sentence()),
    )
    return Made(with_session(after, facts["session"]), facts, key, cached)


def _signature(plain: Mapping[str, Any]) -> Signature:
    specs = {
        side: tuple(TensorSpec(name, dtype, None if shape is None else tuple(shape)) for name, dtype, shape in listed)
        for side, listed in plain.items()
    }
    return Signature(specs["inputs"], specs["outputs"])


def _make(job: Job, pass_: Pass, before: Model, key: str, label: str, watch: Progress) -> Path:
    stamp = _stamp(before)
    with job.cache.workdir() as work:
        made = work / "made"
        made.mkdir()
        started = time.perf_counter()
        with watched_memory() as peak:
            outcome = _call(pass_, before, StepContext(job, made, label, watch))
        seconds = time.perf_counter() - started
        if _stamp(before) != stamp:
            raise PassError(
                f"The pass '{label}' changed its input {before.path}.",
                expected="an input that is only read",
                fix="report this to the author of the pass",
            )
        facts: dict[str, Any] = {
            key_: value for key_, value in vars(outcome).items() if key_ not in ("model", "session")
        }
        facts.update(model=None, form=outcome.model.form, session=dict(outcome.session))
        facts.update(seconds=seconds, peak_mb=peak.mb)
        if outcome.changed:
            require_model(outcome.model, made)
            facts["model"] = str(outcome.model.path.resolve().relative_to(made.resolve()))
            facts["kind"] = outcome.model.kind
            facts["signature"] = {
                side: [(spec.name, spec.dtype, spec.shape) for spec in specs]
                for side, specs in vars(outcome.model.signature).items()
            }
        (made / "outcome.json").write_text(json.dumps(facts, default=str))
        return job.cache.put(key, made, label)


def _call(pass_: Pass, before: Model, context: StepContext) -> Any:
    try:
        return pass_(before, context)
    except (OptkitError, OSError):
        raise
    except Exception as error:  # the libraries below a pass raise anything; the user needs the pass's name
        raise PassError(
            f"The pass '{context.step}' failed: {type(error).__name__}: {str(error).strip().splitlines()[:1]}",
            expected="a model this pass can handle",
            fix="leave the pass out, or report it with the model's structure (optkit inspect)",
        ) from error


def step_key(job: Job, pass_: Pass, before: Model) -> str:
    """Cache key: everything that decides what the pass makes of this model."""
    facts: dict[str, Any] = {
        "optkit": __version__,
        "model": before.digest,
        "pass": pass_.name(),
        "config": pass_.model_dump(mode="json"),
        "source": _source_digest(type(pass_)),
        "versions": library_versions(*_LIBRARIES, *pass_.needs),
        "seed": job.seed,
        "data": {split: job.split(split).digest for split in pass_.uses_data},
    }
    if before.form == "torch":
        facts["signature"] = before.signature
    if pass_.uses_target:
        facts["target"] = (job.target.provider, _machine_features())
    return key_of(facts)


def _machine_features() -> tuple[str, ...]:
    from optkit.model.machine import machine

    return tuple(machine().features)


def _source_digest(cls: type[Pass]) -> str:
    """Over the pass's own file and the shared working parts, so that an edited pass is never served from the cache."""
    source = inspect.getsourcefile(cls)
    shared = list(Path(_registry.__file__).parent.rglob("_*.py"))
    shared += [file for folder in Path(_registry.__file__).parent.glob("_*/") for file in folder.rglob("*.py")]
    return sha256_files(sorted({*shared, *([Path(source)] if source else [])}))


def _stamp(model: Model) -> tuple[tuple[str, int, int], ...]:
    return tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in model_files(model))


def _checked(job: Job, step: Step, before: Model, made: Made, *, lossy_before: bool) -> Check:
    """The contract's findings, from the cache where nothing they depend on changed."""
    if made.model is None:
        return Check()
    facts = {"what": "check", "step": made.key, "original": job.original.digest, "lossy": lossy_before}
    facts |= {"before": before.digest, "data": check_split(job).digest, "outputs": str(job.outputs)}
    facts |= {"optkit": __version__, **job.runtime_facts()}
    key = key_of(facts)
    with job.cache.lock(key):
        known = job.cache.get_facts(key)
        if known is None:
            child = needs_child(made.model)
            check = isolated(child, check_step, job, before, made.model, step.options, lossy_before=lossy_before)
            plain = asdict(replace(check, drift=None))
            job.cache.put_facts(
                key, {**plain, "drift": check.drift and check.drift.model_dump()}, f"check of {step.id}"
            )
            return check
    drift = known.pop("drift")
    return Check(**{**known, "drift": drift and Drift(**drift)})


def _speedup(job: Job, step: Step, before: Model, after: Model, policy: Policy) -> Ratio | None:
    """A coarse estimate of what the step brought, kept with the machine's fingerprint."""
    comparable = before.form == after.form == "onnx" and step.options.for_speed
    if not (policy.bench and comparable):
        return None
    from optkit.model.machine import fingerprint

    data = (job.splits.get("search") or job.splits["evaluation"]).digest
    facts = {"what": "timing", "before": before.digest, "after": after.digest, "session": after.session, "data": data}
    key = key_of({**facts, "machine": fingerprint(job.target)})
    known = None if policy.remeasure else job.cache.get_facts(key)
    if known is not None:
        return Ratio(**known)
    ratio = time_models(job, [before, after], STEP_BUDGET_S)[1]
    job.cache.put_facts(key, ratio.model_dump(), f"timing of {step.id}")
    return ratio


def _stop_or_go(step: Step, before: Model, check: Check, policy: Policy) -> None:
    needed = before.form == "torch" or step.required
    if needed or policy.strict:
        why = "without it the chain cannot go on" if needed else "--strict stops here"
        raise PassError(
            f"The step '{step.id}' broke its promise: {check.problem}.",
            expected="a result that loads, runs and keeps the outputs",
            fix=f"leave the step out or change its options ({why})",
        )


def _why_nothing(facts: dict[str, Any]) -> str:
    reasons = [*(f"{where}: {what}" for where, what in facts["skipped"]), *facts["notes"]]
    return "; ".join(reasons[:3]) or "nothing in this model matches"


def _record(
    step: Step,
    model: Model,
    status: Any,
    reason: str,
    made: Made | None = None,
    drift: Drift | None = None,
    speedup: Ratio | None = None,
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
        notes=tuple(facts.get("notes", ())),
        session=facts.get("session", {}) if status == "changed" else {},
        decisions=tuple(facts.get("decisions", ())),
        drift=drift,
        speedup=speedup,
        seconds=facts.get("seconds", 0.0),
        peak_mb=facts.get("peak_mb"),
        cached=made.cached if made else False,
        size_bytes=model.size_bytes,
        digest=model.digest,
    )
