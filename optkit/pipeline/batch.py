"""How much samples depend on their batch neighbours, in the original and in the result."""

from __future__ import annotations

from collections.abc import Sequence

from optkit.data.dataset import Batch
from optkit.evaluate.batch_invariance import Shift, measure_shifts, neighbourhoods, reason_not_to, rows_of
from optkit.model.manifest import BatchInvariance, BatchShift
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.pipeline.isolate import isolated, needs_child
from optkit.pipeline.job import Job
from optkit.pipeline.reference import original_target
from optkit.runner.open import open_runner


def measure_batch_invariance(job: Job, result: Model) -> BatchInvariance:
    """The first samples of the evaluation split in their batches, against batches of copies of each.

    Models run as for the verdict: same target, same padding, outputs masked and pooled alike.
    """
    data, signature = job.splits["evaluation"], job.original.signature
    groups = list(neighbourhoods(data.batches(), signature))
    notes: list[str] = []
    before = _shifts(job, job.original, original_target(job.original, job.target), groups, ("the original", notes))
    after = _shifts(job, result, job.target, groups, ("the result", notes))
    names = dict.fromkeys([*before, *after])
    outputs = [BatchShift(name=name, original=_value(before, name), result=_value(after, name)) for name in names]
    lost = [each.name for each in outputs if each.original is None and each.result is None]
    return BatchInvariance(
        samples=sum(group.size for group in groups),
        batch=max((rows_of(group, signature) for group in groups), default=0),
        synthetic=data.synthetic,
        outputs=tuple(outputs),
        notes=(*notes, *(f"{name}: not measured, it has no axis of samples" for name in lost)),
    )


def _shifts(
    job: Job, model: Model, target: Target, groups: Sequence[Batch], told: tuple[str, list[str]]
) -> dict[str, Shift]:
    which, notes = told
    reason = reason_not_to(model.signature)
    if not reason and not groups:
        reason = "it takes at least two samples of one shape"
    if reason:
        notes.append(f"{which} was not measured: {reason}")
        return {}
    return isolated(needs_child(model), _measure, job, model, target, groups)


def _measure(job: Job, model: Model, target: Target, groups: Sequence[Batch]) -> dict[str, Shift]:
    with open_runner(model, target) as runner:
        return measure_shifts(runner.run, groups, model.signature, job.outputs)


def _value(shifts: dict[str, Shift], name: str) -> float | None:
    return shifts[name].value if name in shifts else None
