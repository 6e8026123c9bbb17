"""The stopwatch of a run: coarse estimates of the steps, the full measurement of the result, torch eager beside it.

All of it keeps to the run's allowance, with two exceptions. The result is measured in any case, for the fewest rounds
at least. And a model of which nothing is known is called once to learn how slow it is, which may take longer than what
is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import optkit.bench
from optkit import __version__
from optkit.bench.measure import Measured, Rules
from optkit.model.digest import sha256_files
from optkit.model.machine import fingerprint
from optkit.model.manifest import Ratio, Timing
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.pipeline.allowance import RESERVED, RESERVED_LAST, USED_UP, Allowance
from optkit.pipeline.cache import key_of
from optkit.pipeline.context import bench_dataset, bench_inputs, call_seconds, time_candidates
from optkit.pipeline.isolate import isolated, needs_child
from optkit.pipeline.job import Job
from optkit.pipeline.reference import original_target

COARSE = Rules(budget_s=1.0, precision=0.05, launches=1)
"""Of the estimate of a step, and of torch eager."""

FULL_S = 1.0, 10.0
"""Least and most seconds of the first full measurement; a second one, where it is needed, takes up to twice as long."""
CLEAR = 0.1
"""Where a measurement is not stable, its interval is not to be trusted much: it shows a slower model only if it lies
below the margin by this share more."""
EAGER = 4
"""Times as long as its export that a torch model may take."""

NOT_SURE = "looked slower, no time left to make sure"
EARLIER = "timed in an earlier run on this machine"


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


def time_pair(job: Job, models: Sequence[Model], rules: Rules, allowance: Allowance, *, again: float | None) -> Pair:
    """The second model against the first.

    ``slower`` counts only when a second measurement agrees (see ``is_slower``): on a busy machine one may be chance.

    Args:
        job: data and target.
        models: the two.
        rules: of the first measurement.
        allowance: of the whole run.
        again: the share of it that a second measurement leaves to others; None = there is no second one.
    """
    first = _against(job, models, rules, allowance)
    if first.ratio.word != "slower" or again is None:
        return Pair(first, slower=False, note=_noise(first))
    longer = _longer(models, rules, allowance, again)
    if longer is None:
        note = "; ".join(filter(None, [NOT_SURE, _noise(first)]))
        return Pair(first, slower=False, settled=False, note=note)
    second = _against(job, models, longer, allowance)
    twice = f"second measurement; the first said {first.ratio.speedup:.2f}x"
    return Pair(second, slower=is_slower(second), note="; ".join(filter(None, [twice, _noise(second)])))


def _longer(models: Sequence[Model], rules: Rules, allowance: Allowance, reserved: float) -> Rules | None:
    """For a second measurement: twice as long, or as there is room for; None where not even as long as the first."""
    room = allowance.remaining(reserved=reserved) - allowance.start_seconds(models)
    if room < allowance.measuring_seconds(models, rules.budget_s):
        return None
    return replace(rules, budget_s=min(2 * rules.budget_s, room), seed=rules.seed + 1)


def is_slower(found: Measured) -> bool:
    """Whether one measurement shows a slower model."""
    ratio = found.ratio
    return ratio.word == "slower" and (found.stable or ratio.high < (1 - ratio.margin) * (1 - CLEAR))


def time_left(allowance: Allowance, *, decides: bool) -> bool:
    """Whether an estimate is worth preparing for."""
    return allowance.remaining(reserved=_reserved(decides)) > COARSE.budget_s


def estimate(job: Job, models: Sequence[Model], allowance: Allowance, *, decides: bool, remeasure: bool) -> Estimate:
    """What the second model brought against the first, coarsely. A decision is kept in the cache, for this machine.

    Args:
        job: data, target and cache.
        models: before the step, and after it.
        allowance: of the whole run, of which estimates leave a part to the final measurement.
        decides: whether the step goes if it is slower, so that this must be sure; else it is only shown, and may take
            what is left.
        remeasure: look at no cache.
    """
    key = _decision_key(job, models)
    known = job.cache.get_facts(key) if decides and not remeasure else None
    if known is not None:
        return Estimate(Ratio(**known["ratio"]), "; ".join(filter(None, [known["note"], EARLIER])), known["slower"])
    if not _fits(job, models, allowance, _reserved(decides)):
        return Estimate(note=USED_UP)
    pair = time_pair(job, models, COARSE, allowance, again=RESERVED_LAST if decides else None)
    if decides and pair.settled and pair.found.stable:
        facts = {"ratio": pair.found.ratio.model_dump(), "note": pair.note, "slower": pair.slower}
        job.cache.put_facts(key, facts, "timing")
    return Estimate(pair.found.ratio, pair.note, pair.slower)


def _reserved(decides: bool) -> float:
    return RESERVED if decides else 0.0


def _fits(job: Job, models: Sequence[Model], allowance: Allowance, reserved: float) -> bool:
    """Whether there is time for an estimate. Models that this run did not time yet are called once to see."""

    def fits() -> bool:
        needed = allowance.start_seconds(models) + allowance.measuring_seconds(models, COARSE.budget_s)
        return needed <= allowance.remaining(reserved=reserved)

    for model in models:
        if fits() and model.digest not in allowance.calls:
            (inputs,), _ = bench_inputs(job, 1)
            with allowance.spending():
                seconds = isolated(needs_child(model), call_seconds, model, job.target, inputs)
            allowance.calls[model.digest] = seconds
    return fits()


def time_result(job: Job, baseline: Model, result: Model, allowance: Allowance) -> tuple[Timing | None, str]:
    """The full measurement with torch eager beside it, and a note; or None with the reason why nothing is timed."""
    if result.digest == baseline.digest and result.session == baseline.session:
        return None, "not timed: the result is the baseline itself, no pass changed it"
    pair = time_fully(job, baseline, result, allowance)
    eager, why = _eager(job, baseline, allowance)
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
    """The full measurement: as long as the allowance lets it be, and made in any case; a second one only if it fits.

    Its ratio's word stands also where noise or want of time leave a doubt (``Pair.slower``): nothing slower is to be
    delivered.
    """
    models = [baseline, result]
    rules = full_rules(allowance.remaining(), allowance.start_seconds(models))
    return time_pair(job, models, rules, allowance, again=0.0)


def full_rules(left: float, start: float) -> Rules:
    """The longest full measurement for which, with a second one twice as long, ``left`` seconds suffice.

    Args:
        left: seconds of the allowance.
        start: seconds until the processes of both candidates are ready; of the first launch, as further launches are
            part of the budget.
    """
    least, most = FULL_S
    return Rules(budget_s=max(least, min((left - 2 * start) / 3, most)))


def _eager(job: Job, baseline: Model, allowance: Allowance) -> tuple[float | None, str]:
    """Milliseconds of the original in torch eager, timed alone; or why not. It is only shown, so it comes last."""
    original = job.original
    if original.form != "torch":
        return None, ""
    allowance.calls.setdefault(original.digest, EAGER * allowance.calls[baseline.digest])
    if not _fits(job, [original], allowance, 0.0):
        return None, USED_UP
    (found,) = _measure(job, [(original, original_target(original, job.target))], COARSE, allowance)
    return found.ratio.candidate_ms, ""


def _against(job: Job, models: Sequence[Model], rules: Rules, allowance: Allowance) -> Measured:
    return _measure(job, [(model, job.target) for model in models], rules, allowance)[1]


def _measure(
    job: Job, candidates: Sequence[tuple[Model, Target]], rules: Rules, allowance: Allowance
) -> list[Measured]:
    models = [model for model, _ in candidates]
    with allowance.spending(allowance.start_seconds(models) + allowance.measuring_seconds(models, rules.budget_s)):
        found = time_candidates(job, candidates, rules)
    allowance.calls |= {model.digest: each.steady.mean_ms / 1e3 for model, each in zip(models, found, strict=True)}
    return found


def _noise(found: Measured) -> str:
    return "" if found.stable else "not steady: the machine was too noisy"


def _decision_key(job: Job, models: Sequence[Model]) -> str:
    facts: dict[str, Any] = {"what": "estimate", "models": [(model.digest, dict(model.session)) for model in models]}
    facts |= {"data": bench_dataset(job).digest, "rules": asdict(COARSE), "machine": fingerprint(job.target)}
    return key_of({**facts, "optkit": __version__, "source": _source()})


@cache
def _source() -> str:
    """Digest of the code that measures and decides."""
    return sha256_files([Path(__file__), *sorted(Path(str(optkit.bench.__file__)).parent.glob("*.py"))])
