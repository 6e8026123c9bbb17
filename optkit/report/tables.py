"""The facts as tables of words, shared by the terminal and Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from optkit.model.manifest import LimitResult, Manifest, MetricResult, OutputFidelity, Ratio, StepRecord, Verdict


@dataclass(frozen=True)
class Table:
    """A title, column heads, rows of cells; the first column is the name."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def size(count: float) -> str:
    """Bytes in the unit that reads best: ``412 kB``, ``3.4 MB``."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def number(value: float | None, digits: int = 4) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}g}"


def speedup(ratio: Ratio | None) -> str:
    """``1.84x [1.79, 1.90]``."""
    return "-" if ratio is None else f"{ratio.speedup:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"


def steps_table(manifest: Manifest) -> Table:
    """Pass by pass: what changed, size, coarse speed, drift from the original."""
    rows: list[tuple[str, ...]] = [("original", "", size(manifest.original.size_bytes), "", "")]
    rows += [_step_row(step) for step in manifest.steps]
    return Table("Passes", ("pass", "what changed", "size", "speed (coarse)", "cosine to original"), tuple(rows))


def _step_row(step: StepRecord) -> tuple[str, ...]:
    cosine = "-" if step.drift is None or step.drift.cosine is None else f"{step.drift.cosine:.6f}"
    return (step.id, what_changed(step), size(step.size_bytes), speedup(step.speedup), cosine)


def what_changed(step: StepRecord) -> str:
    """One line: the changes, or the status with its reason."""
    if step.status != "changed":
        return f"{step.status}: {step.reason}" if step.reason else step.status
    if len(step.changes) <= 3:
        return "; ".join(f"{change.where}: {change.what}" for change in step.changes) or "changed"
    first = step.changes[0]
    return f"{len(step.changes)} changes: {first.where}: {first.what}; ..."


def summary_table(manifest: Manifest) -> Table:
    """Original against result: size, latency, task metric."""
    original, result = manifest.baseline.size_bytes, manifest.result.size_bytes
    rows: list[tuple[str, ...]] = [
        ("size", size(manifest.original.size_bytes), size(result), f"{result / max(original, 1):.2f} of the export")
    ]
    rows.append(_latency_row(manifest))
    rows += [_metric_row(metric) for metric in manifest.verdict.metrics]
    return Table("Result", ("", "original", "result", "difference"), tuple(rows))


def _latency_row(manifest: Manifest) -> tuple[str, ...]:
    if manifest.timing is None:
        return ("latency", "-", "-", manifest.timing_note)
    ratio, eager = manifest.timing.result, manifest.timing.torch_eager_ms
    beside = "" if eager is None else f" (torch {eager:.3g} ms)"
    words = f"{ratio.word}: {speedup(ratio)}"
    return ("latency", f"{ratio.baseline_ms:.3g} ms{beside}", f"{ratio.candidate_ms:.3g} ms", words)


def _metric_row(metric: MetricResult) -> tuple[str, ...]:
    drop = f"drop {metric.drop:.4f} [{metric.low:.4f}, {metric.high:.4f}]"
    return (metric.name, f"{metric.original:.4f}", f"{metric.result:.4f}", drop)


def fidelity_table(verdict: Verdict) -> Table:
    """Per output: how far the result is from the original."""
    heads = ("output", "max error", "error/std", "cosine", "1st pct", "worst (sample)", "SQNR dB", "top-1")
    return Table("Outputs", heads, tuple(_output_row(output) for output in verdict.outputs))


def _output_row(output: OutputFidelity) -> tuple[str, ...]:
    if output.equal is not None:
        return (output.name, f"equal: {output.equal:.4%}", "-", "-", "-", "-", "-", "-")
    worst = number(output.cosine_worst, 6) + ("" if output.worst_sample is None else f" ({output.worst_sample})")
    return (
        output.name,
        number(output.max_error, 3),
        number(output.max_error_std, 3),
        number(output.cosine, 6),
        number(output.cosine_p1, 6),
        worst,
        number(output.sqnr_db, 3),
        number(output.top1),
    )


def limits_table(verdict: Verdict) -> Table:
    """Each limit, what was measured, and whether it held."""
    heads = ("limit", "asked", "measured", "where", "held")
    return Table("Limits", heads, tuple(_limit_row(limit) for limit in verdict.limits))


def _limit_row(limit: LimitResult) -> tuple[str, ...]:
    held = {True: "yes", False: "NO", None: "not checked"}[limit.held]
    where = " ".join(part for part in (limit.where, f"({limit.note})" if limit.note else "") if part)
    return (limit.name, limit.limit, number(limit.measured, 5), where, held)


def measured_on(verdict: Verdict) -> str:
    """One sentence: what the numbers were measured on."""
    on = verdict.measured_on
    made_up = "; SYNTHETIC inputs, so these numbers say little about real ones" if on.synthetic else ""
    return f"Measured on {on.samples} samples of {on.source} ({on.split}), batch {on.batch}{made_up}."


def verdict_line(verdict: Verdict) -> str:
    """The verdict in one line."""
    if verdict.held:
        unchecked = [limit.name for limit in verdict.limits if limit.held is None]
        return "All limits held." + (f" Not checked: {', '.join(unchecked)}." if unchecked else "")
    missed = [limit.name for limit in verdict.limits if limit.held is False]
    return "MISSED: " + "; ".join([*verdict.problems, *missed])
