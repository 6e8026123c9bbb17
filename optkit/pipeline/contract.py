"""Holds every pass to its word: the promised form, a session that loads and runs, kept outputs, measured drift."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, islice

from optkit.data.dataset import Arrays, Batch, Dataset, spread
from optkit.errors import GivenError
from optkit.evaluate.judge import judge
from optkit.evaluate.limits import Limits
from optkit.model.manifest import Drift, Verdict
from optkit.model.model import Model
from optkit.passes._base import NOISE, NOISE_INT8, Pass
from optkit.pipeline.job import Job
from optkit.pipeline.reference import original_outputs, original_target, output_bytes
from optkit.runner.open import open_runner, run_batches, run_dataset

CHECK_SAMPLES = 32
"""Samples each step is checked on, evenly spread over the search split; the final verdict sees all of evaluation."""

CHECK_BYTES = 500_000_000
"""Where the outputs on these samples are larger, only the first batches are looked at: as many as stay below, at least
one."""


@dataclass(frozen=True)
class Check:
    """What the contract found after one pass."""

    problem: str = ""
    """Empty, or why the step cannot stay."""
    breach: bool = False
    """The problem is an exact pass that moved the outputs."""
    drift: Drift | None = None


def check_split(job: Job) -> Dataset:
    """The few samples that every step is checked on."""
    return spread(job.splits.get("search") or job.splits["evaluation"], CHECK_SAMPLES, "search")


def check_batches(job: Job) -> int:
    """How many batches of ``check_split`` a step is checked on."""
    sizes = output_bytes(job, check_split(job))
    return max(1, sum(total <= CHECK_BYTES for total in accumulate(sizes)))


def check_notes(job: Job) -> tuple[str, ...]:
    """That the steps are checked on fewer samples because the outputs are large, where it is so."""
    dataset = check_split(job)
    seen = check_batches(job) * dataset.batch
    few = f"steps are checked on {seen} of {dataset.count} samples, because the outputs are large"
    return (few,) if seen < dataset.count else ()


def check_step(job: Job, before: Model, after: Model, pass_: Pass, earlier: Sequence[Pass]) -> Check:
    """Run the step's result on a few real samples and compare it with the original, and with the step before it.

    Args:
        job: says what the original is, and on which data.
        before: the model the pass was given.
        after: the model it made.
        pass_: the pass, whose promises count.
        earlier: the passes whose results were kept so far; what they were allowed to change stays allowed.
    """
    dataset = check_split(job)
    promised = pass_.forms.get(before.form)
    if after.form != promised:
        return Check(f"it promised the form {promised} and gave {after.form}")
    batches = check_batches(job)
    try:
        _validate(after)
        with open_runner(after, original_target(after, job.target)) as runner:
            ran = list(islice(run_batches(runner, dataset), batches))
    except GivenError as error:
        return Check(f"its result does not run: {error.message.rstrip('.')}")
    allowed = may_change([*earlier, pass_])
    dropped = _dropped(job, ran[0][1]) if ran and "outputs" in allowed else ()
    verdict = _compare(job, original_outputs(job, dataset), ran, dataset, dropped, allowed)
    if verdict.problems:
        return Check(verdict.problems[0])
    drift = _drift(verdict)
    if pass_.kind != "exact":
        return Check(drift=drift)
    if all(kept.kind == "exact" for kept in earlier):
        return _exactness(verdict, drift, NOISE)
    moved = _compare(job, _outputs(job, before, dataset), ran, dataset, dropped, allowed)
    return _exactness(moved, drift, NOISE_INT8)


def may_change(passes: Sequence[Pass]) -> frozenset[str]:
    """What the passes together declare that they may change: outputs, dims, dtypes."""
    return frozenset(aspect for pass_ in passes for aspect in pass_.may_change)


def _exactness(moved: Verdict, drift: Drift | None, tolerance: float) -> Check:
    worst = max(moved.outputs, key=lambda o: o.max_error_std or 0.0, default=None)
    spared = tolerance if tolerance > NOISE else 0.0
    unequal = next((o for o in moved.outputs if o.equal is not None and o.equal < 1 - spared), None)
    if worst is not None and not (worst.max_error_std or 0.0) <= tolerance:
        return Check(
            f"it should keep the outputs but moved {worst.name} by {worst.max_error_std:.2g} of its standard "
            f"deviation (allowed: {tolerance:g})",
            breach=True,
            drift=drift,
        )
    if unequal is not None:
        share = f"{1 - (unequal.equal or 0.0):.2%} of {unequal.name} (allowed: {spared:.0%})"
        return Check(f"it should keep the outputs but changed {share}", breach=True, drift=drift)
    return Check(drift=drift)


def _validate(model: Model) -> None:
    """onnx's own checker, on the file, so that external data stay on disk.

    Raises:
        GivenError: the file breaks the ONNX specification.
    """
    if model.form != "onnx":
        return
    import onnx

    _teach_checker()
    try:
        onnx.checker.check_model(str(model.path))
    except (onnx.checker.ValidationError, ValueError) as error:
        raise GivenError(f"the ONNX checker says: {str(error).strip().splitlines()[0]}") from error


@cache
def _teach_checker() -> None:
    """Let onnx's checker know the operator that onnxruntime has in ONNX's own domain, and ONNX has not."""
    from onnx.defs import OpSchema, register_schema

    parameter, kind, optional = OpSchema.FormalParameter, OpSchema.AttrType, OpSchema.FormalParameterOption.Optional
    register_schema(
        OpSchema(
            "SimplifiedLayerNormalization",
            "",
            1,
            inputs=[parameter("X", "T"), parameter("scale", "V")],
            outputs=[
                parameter("Y", "V"),
                parameter("inv_std_var", "U", param_option=optional),
            ],
            type_constraints=[
                (name, [f"tensor({dtype})" for dtype in ("float16", "float", "double", "bfloat16")], "")
                for name in ("T", "U", "V")
            ],
            attributes=[
                OpSchema.Attribute("axis", kind.INT, required=False),
                OpSchema.Attribute("epsilon", kind.FLOAT, required=False),
                OpSchema.Attribute("stash_type", kind.INT, required=False),
            ],
        )
    )


def _outputs(job: Job, model: Model, dataset: Dataset) -> Iterator[Arrays]:
    with open_runner(model, original_target(model, job.target)) as runner:
        yield from run_dataset(runner, dataset)


def _dropped(job: Job, have: Collection[str]) -> tuple[str, ...]:
    return tuple(spec.name for spec in job.original.signature.outputs if spec.name not in have)


def _compare(
    job: Job,
    original: Iterator[Arrays],
    ran: Sequence[tuple[Batch, Arrays]],
    dataset: Dataset,
    dropped: Sequence[str],
    allowed: frozenset[str],
) -> Verdict:
    return judge(
        islice(original, len(ran)),
        [outputs for _, outputs in ran],
        dataset,
        batches=[batch for batch, _ in ran],
        signature=job.original.signature,
        options=job.outputs,
        limits=Limits(),
        exact=True,
        dropped=dropped,
        may_change=allowed,
    )


def _drift(verdict: Verdict) -> Drift | None:
    """The worst output by cosine, else by error."""
    outputs = [o for o in verdict.outputs if o.cosine is not None or o.max_error_std is not None]
    if not outputs:
        return None
    worst = min(outputs, key=lambda o: (1.0 if o.cosine is None else o.cosine, -(o.max_error_std or 0.0)))
    return Drift(output=worst.name, cosine=worst.cosine, max_error_std=worst.max_error_std)
