"""The stopwatch of a run: coarse estimates of the steps, the full measurement of the result, torch eager beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from optkit.bench.measure import Measured, Rules
from optkit.model.machine import fingerprint
from optkit.model.manifest import Ratio, Timing
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.pipeline.allowance import RESERVED, RESERVED_LAST, USED_UP, Allowance, start_seconds
from optkit.pipeline.cache import key_of
from optkit.pipeline.context import bench_dataset, time_candidates
from optkit.pipeline.job import Job
from optkit.pipeline.reference import original_target

COARSE = Rules(budget_s=1.0, precision=0.05, launches=1)
"""Of the estimate of a step, and of torch eager."""

FULL_S = 1.0, 10.0
"""Least and most seconds of the first full measurement; a second one, should it be needed, takes twice as long."""
CLEAR = 0.1
"""Where a measurement is not stable, its interval is not to be trusted much: it shows a slower model only if it lies
below the margin by this share more."""


@dataclass(frozen=True)
class Estimate:
    """What a step brought, coarsely."""

    ratio: Ratio | None = None
    """Against the step before."""
    note: str = ""
    """Why it was not timed, or what to know about the figure."""
    slower: bool = False
    """Whether it counts as slower."""


@dataclass(frozen=True)
class Pair:
    """One model against another, measured once or twice."""

    found: Measured
    slower: bool
    """Whether it counts as slower."""
    settled: bool = True
    """False where a second measurement was needed and there was no time for it."""
    note: str = ""


def time_pair(
    job: Job, models: Sequence[Model], rules: Rules, allowance: Allowance, enough: Callable[[Rules], bool]
) -> Pair:
    """The second model against the first.

    ``slower`` counts only when a second measurement, twice as long, agrees (see ``is_slower``): on a busy machine one
    may be chance. ``enough`` says whether there is time for it.
    """
    first = _against(job, models, rules, allowance)
    if first.ratio.word != "slower":
        return Pair(first, slower=False, note=_noise(first))
    longer = replace(rules, budget_s=2 * rules.budget_s, seed=rules.seed + 1)
    if not enough(longer):
        return Pair(first, slower=False, settled=False, note="looked slower, but no time was left to make sure")
    again = _against(job, models, longer, allowance)
    twice = f"second, longer measurement; the first said {first.ratio.speedup:.2f}x"
    return Pair(again, slower=is_slower(again), note="; ".join(filter(None, [twice, _noise(again)])))


def is_slower(found: Measured) -> bool:
    """Whether one measurement shows a slower model."""
    ratio = found.ratio
    return ratio.word == "slower" and (found.stable or ratio.high < (1 - ratio.margin) * (1 - CLEAR))


def estimate(job: Job, models: Sequence[Model], allowance: Allowance, *, decides: bool, remeasure: bool) -> Estimate:
    """What the second model brought against the first, coarsely; kept in the cache with the machine's fingerprint.

    Args:
        job: data, target and cache.
        models: before the step, and after it.
        allowance: of the whole run, of which estimates leave a part to the final measurement.
        decides: whether the step goes if it is slower, so that this must be sure; else it is only shown, and may take
            what is left.
        remeasure: look at no cache.
    """
    key = _estimate_key(job, models, decides)
    known = None if remeasure else job.cache.get_facts(key)
    if known is not None:
        return Estimate(Ratio(**known.pop("ratio")), **known)

    def enough(rules: Rules, reserved: float) -> bool:
        return start_seconds(models) + rules.budget_s <= allowance.remaining(reserved=reserved)

    if not enough(COARSE, RESERVED if decides else 0.0):
        return Estimate(note=USED_UP)
    pair = time_pair(job, models, COARSE, allowance, lambda rules: decides and enough(rules, RESERVED_LAST))
    note = pair.note if decides else _noise(pair.found)
    if pair.found.stable and (pair.settled or not decides):
        facts = {"ratio": pair.found.ratio.model_dump(), "note": note, "slower": pair.slower}
        job.cache.put_facts(key, facts, "timing")
    return Estimate(pair.found.ratio, note, pair.slower)


def time_result(job: Job, baseline: Model, result: Model, allowance: Allowance) -> tuple[Timing | None, str]:
    """The full measurement with torch eager beside it, and a note; or None with the reason why nothing is timed."""
    if result.digest == baseline.digest and result.session == baseline.session:
        return None, "not timed: the result is the baseline itself, no pass changed it"
    pair = time_fully(job, baseline, result, allowance)
    eager, why = _eager(job, allowance)
    timing = Timing(
        result=pair.found.ratio,
        launches=pair.found.steady.launches,
        stable=pair.found.stable,
        torch_eager_ms=eager,
        torch_note=why,
        peak_mb=pair.found.peak_mb,
    )
    return timing, pair.note


def time_fully(job: Job, baseline: Model, result: Model, allowance: Allowance) -> Pair:
    """The full measurement: as long as the allowance lets it be, and made in any case.

    Its ratio's word stands also where noise leaves a doubt (``Pair.slower``): nothing slower is to be delivered.
    """
    models = [baseline, result]
    rules = full_rules(allowance.remaining(), start_seconds(models))
    return time_pair(job, models, rules, allowance, lambda _: True)


def full_rules(left: float, start: float) -> Rules:
    """The longest full measurement for which, with a second one twice as long, ``left`` seconds suffice.

    Args:
        left: seconds of the allowance.
        start: seconds until the processes of both candidates are ready; of the first launch, as further launches are
            part of the budget.
    """
    least, most = FULL_S
    return Rules(budget_s=max(least, min((left - 2 * start) / 3, most)))


def _eager(job: Job, allowance: Allowance) -> tuple[float | None, str]:
    """Milliseconds of the original in torch eager, timed alone; or why not. It is only shown, so it comes last."""
    original = job.original
    if original.form != "torch":
        return None, ""
    if start_seconds([original]) + COARSE.budget_s > allowance.remaining():
        return None, USED_UP
    (found,) = _measure(job, [(original, original_target(original, job.target))], COARSE, allowance)
    return found.ratio.candidate_ms, ""


def _against(job: Job, models: Sequence[Model], rules: Rules, allowance: Allowance) -> Measured:
    return _measure(job, [(model, job.target) for model in models], rules, allowance)[1]


def _measure(
    job: Job, candidates: Sequence[tuple[Model, Target]], rules: Rules, allowance: Allowance
) -> list[Measured]:
    start = start_seconds([model for model, _ in candidates])
    with allowance.spending(start + rules.budget_s):
        return time_candidates(job, candidates, rules)


def _noise(found: Measured) -> str:
    return "" if found.stable else "not steady: the machine was too noisy"


def _estimate_key(job: Job, models: Sequence[Model], decides: bool) -> str:
    facts: dict[str, Any] = {"what": "estimate", "models": [(model.digest, dict(model.session)) for model in models]}
    facts |= {"data": bench_dataset(job).digest, "rules": asdict(COARSE), "decides": decides}
    return key_of({**facts, "machine": fingerprint(job.target)})
