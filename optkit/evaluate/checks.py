"""Measured figures against limits: held, missed, or not checked and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, floor, isfinite, log10
from typing import Literal

from optkit.evaluate.limits import AT_LEAST, LabelledLimits, Limits, MetricDrop, rule
from optkit.model.manifest import LimitResult, MetricResult, OutputFidelity, Ratio, Verdict

MB = 1e6
"""Bytes in the MB of ``size_mb`` and ``memory_mb``."""

NO_METRIC = "no metric is named: --metric NAME measures it"

Figures = Sequence[tuple[str, float]]
"""(output, measured)."""


def accuracy_limits(
    limits: LabelledLimits,
    outputs: Sequence[OutputFidelity],
    metric: MetricResult | None,
    *,
    no_metric: str = NO_METRIC,
    prefix: str = "",
) -> tuple[LimitResult, ...]:
    """Check cosine, max_error, agreement and metric_drop, as far as they are stated.

    The output that is farthest from its limit decides: cosine and max_error over the float outputs, agreement over
    class scores (top-1) and integer, bool and string outputs (equal elements). ``no_metric`` says why there is none.
    """
    found = [
        _cosine(limits, outputs, prefix),
        _max_error(limits, outputs, prefix),
        _agreement(limits, outputs, prefix),
        _metric_drop(limits.metric_drop, metric, prefix, no_metric),
    ]
    return tuple(result for result in found if result is not None)


def not_checked(limits: LabelledLimits, why: str, *, prefix: str = "") -> tuple[LimitResult, ...]:
    """Every stated limit with ``held=None`` and the reason."""
    return tuple(_unchecked(prefix + name, text, why) for name, text in limits.rules())


def _unchecked(name: str, limit: str, why: str, kind: Literal["accuracy", "budget"] = "accuracy") -> LimitResult:
    return LimitResult(name=name, limit=limit, measured=None, held=None, kind=kind, note=f"not checked: {why}")


def _cosine(limits: LabelledLimits, outputs: Sequence[OutputFidelity], prefix: str) -> LimitResult | None:
    figures = [(output.name, output.cosine) for output in outputs if output.cosine is not None]
    return _worst("cosine", limits.cosine, figures, prefix, _no_float(outputs))


def _max_error(limits: LabelledLimits, outputs: Sequence[OutputFidelity], prefix: str) -> LimitResult | None:
    figures = [(output.name, output.max_error_std) for output in outputs if output.max_error_std is not None]
    return _worst("max_error", limits.max_error, figures, prefix, _no_float(outputs))


def _no_float(outputs: Sequence[OutputFidelity]) -> str:
    floats = [output.name for output in outputs if _is_float(output)]
    return f"nothing in {' and '.join(floats)} could be compared" if floats else "no float output"


def _is_float(output: OutputFidelity) -> bool:
    return output.dtype.startswith(("float", "bfloat"))


def _agreement(limits: LabelledLimits, outputs: Sequence[OutputFidelity], prefix: str) -> LimitResult | None:
    shares = [(output.name, output.equal if output.top1 is None else output.top1) for output in outputs]
    figures = [(name, share) for name, share in shares if share is not None]
    note = "no output looks like class scores; if one does, say outputs: {NAME: {classes: true}}"
    empty = [output.name for output in outputs if output.equal is None and not _is_float(output)]
    note = f"nothing in {' and '.join(empty)} could be compared" if empty else note
    return _worst("agreement", limits.agreement, figures, prefix, note)


def _worst(name: str, limit: float | None, figures: Figures, prefix: str, nothing: str) -> LimitResult | None:
    if limit is None:
        return None
    text = rule(name, limit)
    if not figures:
        return _unchecked(prefix + name, text, nothing)
    pick: Callable[..., tuple[str, float]] = min if name in AT_LEAST else max
    where, measured = pick(figures, key=lambda figure: figure[1])
    return LimitResult(
        name=prefix + name,
        limit=text,
        measured=measured,
        held=_held(name, measured, limit),
        kind="accuracy",
        where=where,
        allowed=limit,
    )


def _metric_drop(
    limit: MetricDrop | None, metric: MetricResult | None, prefix: str, no_metric: str
) -> LimitResult | None:
    if limit is None:
        return None
    text = rule("metric_drop", limit)
    if metric is None:
        return _unchecked(f"{prefix}metric_drop", text, no_metric)
    note = (
        f"drop {metric.drop:.4g}, 95 % bound {metric.bound:.4g}; "
        f"{metric.samples} samples can prove a budget of {metric.smallest_provable:.2g}"
    )
    measured = metric.drop if limit.by == "point" else metric.bound
    return LimitResult(
        name=f"{prefix}metric_drop",
        limit=text,
        measured=measured,
        held=measured <= limit.max,
        kind="accuracy",
        where=metric.name,
        note=note,
        allowed=limit.max,
    )


def _held(name: str, measured: float, limit: float) -> bool:
    """NaN holds nothing."""
    return measured >= limit if name in AT_LEAST else measured <= limit


def budget_limits(
    limits: Limits,
    *,
    ratio: Ratio | None,
    size_bytes: int,
    original_bytes: int,
    peak_mb: float | None,
    timing_note: str,
) -> tuple[LimitResult, ...]:
    """Check speedup (not-slower unless stated, nothing where it is stated as null), latency, memory and size.

    ``not-slower`` fails only where the ratio's word is ``slower``; a number is compared with the interval's lower end.
    What was not measured gives ``held=None`` with ``timing_note``.
    """
    off = limits.speedup is None and "speedup" in limits.model_fields_set
    return (
        *(() if off else (_speedup(limits.speedup or "not-slower", ratio, timing_note),)),
        *_budget("latency_ms", limits.latency_ms, None if ratio is None else ratio.candidate_ms, timing_note),
        *_budget("memory_mb", limits.memory_mb, peak_mb, timing_note),
        *_budget("size_mb", limits.size_mb, size_bytes / MB, ""),
        *_budget("size_ratio", limits.size_ratio, size_bytes / original_bytes if original_bytes else None, "no size"),
    )


def _speedup(limit: float | str, ratio: Ratio | None, timing_note: str) -> LimitResult:
    text = rule("speedup", limit)
    if ratio is None:
        return _unchecked("speedup", text, timing_note, "budget")
    interval = f"{ratio.speedup:.2f}x ({ratio.low:.2f} to {ratio.high:.2f}) on {ratio.inputs} inputs"
    if isinstance(limit, str):
        measured, held = ratio.speedup, ratio.word != "slower"
    else:
        measured, held, interval = ratio.low, ratio.low >= limit, f"lower end of {interval}"
    return LimitResult(name="speedup", limit=text, measured=measured, held=held, kind="budget", note=interval)


def _budget(name: str, limit: float | None, measured: float | None, missing: str) -> tuple[LimitResult, ...]:
    if limit is None:
        return ()
    text = rule(name, limit)
    if measured is None:
        return (_unchecked(name, text, missing, "budget"),)
    return (LimitResult(name=name, limit=text, measured=measured, held=_held(name, measured, limit), kind="budget"),)


def add_limits(verdict: Verdict, results: Sequence[LimitResult]) -> Verdict:
    """The verdict with more limits checked: ``held`` and ``would_pass`` follow."""
    limits = (*verdict.limits, *results)
    update = {"limits": limits, "would_pass": would_pass(limits), "held": no_limit_missed(limits, verdict.problems)}
    return verdict.model_copy(update=update)


def no_limit_missed(limits: Sequence[LimitResult], problems: Sequence[str]) -> bool:
    """True without problems and without a limit that was checked and missed."""
    return not problems and all(limit.held is not False for limit in limits)


def would_pass(limits: Sequence[LimitResult]) -> dict[str, float]:
    """Limit -> the value (four digits, rounded to the safe side) that would just have held; none for not-slower."""
    checked = ((limit.name, limit.measured) for limit in limits if limit.limit != "not-slower")
    return {
        name: _rounded(measured, up=name.rpartition(".")[2] not in AT_LEAST)
        for name, measured in checked
        if measured is not None and isfinite(measured)
    }


def _rounded(value: float, *, up: bool) -> float:
    if value == 0:
        return 0.0
    digits = 3 - floor(log10(abs(value)))
    scaled = value * 10.0**digits
    near = round(scaled)
    whole = near if abs(scaled - near) < 1e-9 * abs(scaled) else (ceil if up else floor)(scaled)
    return float(f"{whole}e{-digits}")
