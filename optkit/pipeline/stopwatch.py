"""The final measurement: the result against the baseline export, torch eager beside it."""

from __future__ import annotations

from optkit.bench.ratio import Timed
from optkit.model.manifest import Timing
from optkit.model.model import Model
from optkit.pipeline.context import time_candidates
from optkit.pipeline.job import Job
from optkit.pipeline.reference import original_target

BUDGET_S = 4.0
"""Seconds of one measurement."""

EAGER_BUDGET_S = 1.0
"""Seconds for torch eager, which is only shown and decides nothing."""


def time_result(job: Job, baseline: Model, result: Model) -> tuple[Timing | None, str]:
    """The timing, and a note on it; None with the reason where there is nothing to time.

    A verdict of ``slower`` counts only when a second, longer measurement agrees: on a busy machine one may be chance.
    torch eager is timed alone afterwards, since its threads would disturb the pair.
    """
    if result.digest == baseline.digest and result.session == baseline.session:
        return None, "not timed: the result is the baseline itself, no pass changed it"
    timed, note = time_pair(job, baseline, result)
    return Timing(result=timed.ratio, torch_eager_ms=_eager_ms(job), peak_mb=timed.peak_mb), note


def time_pair(job: Job, baseline: Model, result: Model) -> tuple[Timed, str]:
    """The result against the baseline, measured again where the first try says ``slower``; and a note on that."""
    pair = [(baseline, job.target), (result, job.target)]
    timed = time_candidates(job, pair, BUDGET_S)[1]
    if timed.ratio.word != "slower":
        return timed, ""
    again = time_candidates(job, pair, 2 * BUDGET_S)[1]
    return again, f"measured twice: the first time {timed.ratio.speedup:.2f}x, this is the second, longer one"


def _eager_ms(job: Job) -> float | None:
    if job.original.form != "torch":
        return None
    alone = [(job.original, original_target(job.original, job.target))]
    return time_candidates(job, alone, EAGER_BUDGET_S)[0].ratio.candidate_ms
