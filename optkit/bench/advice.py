"""Why are the numbers of a bench what they are? Each warning names a cause, and what to do about it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from optkit.bench.causes import Case, causes_of, counts
from optkit.bench.facts import BenchPoint, CandidateFacts
from optkit.bench.quantized import Quantized, read_quantized
from optkit.model.machine import machine
from optkit.model.manifest import Environment
from optkit.model.model import Model

BUSY = 0.25
"""Load average for each core from which the machine is called busy."""
WIDE = 0.05
"""Spread of the blocks that is called wide."""
FEW_BLOCKS = 20
LATE = 0.25
"""Share of the p99 under load from which the sender's own lag is said."""


@dataclass(frozen=True)
class _Seen:
    """What a rule may look at."""

    point: BenchPoint
    models: Mapping[str, Model]
    here: Environment

    @property
    def baseline(self) -> CandidateFacts:
        return self.point.candidates[0]


def warnings_for(point: BenchPoint, models: Mapping[str, Model], environment: Environment) -> list[str]:
    """What whoever reads the numbers of this point should know, a sentence each, none twice.

    Args:
        point: what was measured.
        models: the candidates' models by label; of those that are ONNX files the structure is read.
        environment: where it was measured.

    Raises:
        ModelError: an ONNX file can no longer be read.
    """
    seen = _Seen(point, models, environment)
    return list(dict.fromkeys(warning for rule in RULES for warning in rule(seen)))


def _synthetic(seen: _Seen) -> Iterator[str]:
    if seen.point.inputs.startswith("synthetic"):
        yield (
            "The inputs are synthetic, so speed that depends on their values (padding, sparsity, loops) was not seen: "
            "give real ones with --data or --input."
        )


def _too_many_threads(seen: _Seen) -> Iterator[str]:
    here, threads = seen.here, seen.point.threads
    limits = {
        "physical cores": here.physical_cores or here.cores,
        "cores that this process may use": here.affinity,
        "cores' worth of time that the cgroup grants": here.cpu_limit,
    }
    what, least = min(((what, n) for what, n in limits.items() if n is not None), key=lambda item: item[1])
    if threads > least and any(each.provider == "cpu" for each in seen.point.candidates):
        yield (
            f"{threads} threads, but {least:g} {what}: threads wait for one another, and latencies scatter; "
            f"use --threads {max(1, math.floor(least))}."
        )


def _fallback(seen: _Seen) -> Iterator[str]:
    for each in seen.point.candidates:
        elsewhere: Counter[str] = Counter()
        for provider, operators in each.placement.items():
            if provider != each.provider:
                elsewhere.update(operators)
        total = sum(sum(operators.values()) for operators in each.placement.values())
        if elsewhere:
            others = " and ".join(sorted(each.placement.keys() - {each.provider}))
            yield (
                f"{elsewhere.total()} of {total} nodes of {each.label} fell back from {each.provider} to {others} "
                f"({counts(elsewhere)}), and what they need is copied there and back: replace these operators, or "
                "compare with --provider cpu."
            )


def _busy(seen: _Seen) -> Iterator[str]:
    if _is_busy(seen.here):
        load, cores = seen.here.load_average, seen.here.cores
        yield f"Other programs were running before (load average {load:.1f} on {cores} cores): end them."


def _is_busy(here: Environment) -> bool:
    return (here.load_average or 0.0) > BUSY * here.cores


def _noise(seen: _Seen) -> Iterator[str]:
    labels: dict[str, list[str]] = {}
    for each in seen.point.candidates:
        if not each.stable:
            labels.setdefault(" and ".join(_reasons(each, seen.here)), []).append(each.label)
    for reasons, of in labels.items():
        yield f"The times of {', '.join(of)} are not steady enough for the margin: {reasons}."


def _reasons(each: CandidateFacts, here: Environment) -> list[str]:
    found = ["other programs were running"] if _is_busy(here) else []
    if each.steady.blocks < FEW_BLOCKS:
        found.append(f"only {each.steady.blocks} blocks fitted into the time, so give a longer --budget")
    if not each.phases.steady:
        found.append("they still changed at the end of the warm-up, as with a clock or a heap that has not settled")
    if each.steady.spread > WIDE:
        found.append(
            f"its blocks lie {each.steady.spread:.0%} apart, as on a machine shared with others or with a changing "
            "clock, so fix the clock (governor 'performance') or take fewer --threads"
        )
    return found or ["its processes differ from one start to the next, so give more --launches and a longer --budget"]


def _one_launch(seen: _Seen) -> Iterator[str]:
    labels = [each.label for each in seen.point.candidates if each.steady.launches == 1]
    if labels and len(seen.point.candidates) > 1:
        yield (
            f"{', '.join(labels)}: started once only, so how far one start differs from the next was allowed for, not "
            "measured; give a longer --budget."
        )


def _under_load(seen: _Seen) -> Iterator[str]:
    for load in seen.point.load:
        if load.saturated:
            yield (
                f"{load.label} does not keep up with {load.rate:g} requests per second ({load.achieved:.1f} done), so "
                "its latencies grow with the length of the load: offer fewer, or spread them over several processes."
            )
        p99 = max((each.ms for each in load.percentiles if each.percent == 99), default=0.0)
        if load.lag_p99_ms > LATE * p99:
            yield (
                f"Requests to {load.label} were sent late (p99 {load.lag_p99_ms:.2g} ms, of a latency of {p99:.2g} ms),"
                " because no core was free in time: end other programs"
                + (", or leave one core free with --threads." if seen.point.threads >= seen.here.cores else ".")
            )


def _quantized_for_nothing(seen: _Seen) -> Iterator[str]:
    base = seen.baseline
    for each in seen.point.candidates[1:]:
        if (each.engine, each.provider) != (base.engine, base.provider):
            continue
        word, speedup = each.ratio.word, each.ratio.speedup
        if word == "slower" or (word == "same" and each.stable):
            yield from _disappoints(seen, each, base, speedup)
        if word == "faster" or (word == "same" and each.stable):
            yield from _disappoints(seen, base, each, 1 / speedup)


def _disappoints(seen: _Seen, each: CandidateFacts, other: CandidateFacts, speedup: float) -> Iterator[str]:
    """Only where ``each`` is quantized, and the other one, which is no slower, is not."""
    found = _read(seen, each)
    if found.anything and not _read(seen, other).anything:
        yield (
            f"{each.label} is quantized and yet not clearly faster than {other.label} ({speedup:.2f} times as fast): "
            f"{_causes(seen, found, each, other)}."
        )


def _read(seen: _Seen, each: CandidateFacts) -> Quantized:
    model = seen.models.get(each.label)
    return read_quantized(model.path) if model is not None and model.kind == "onnx" else Quantized()


def _causes(seen: _Seen, found: Quantized, each: CandidateFacts, other: CandidateFacts) -> str:
    if each.engine != "onnxruntime" or each.provider != "cpu":
        return f"what {each.engine} on {each.provider} does with such a file cannot be told from the file"
    here = replace(machine(), features=seen.here.cpu_features)
    clauses = causes_of(Case(found, math.prod(seen.point.dims.values()), here))
    profile = f"optkit profile {each.path} --against {other.path}"
    return "; ".join(clauses) or f"the file shows no cause, but '{profile}' tells where the time goes"


RULES: tuple[Callable[[_Seen], Iterator[str]], ...] = (
    _quantized_for_nothing,
    _fallback,
    _too_many_threads,
    _busy,
    _noise,
    _one_launch,
    _under_load,
    _synthetic,
)
"""What there may be to say, the most important first."""
