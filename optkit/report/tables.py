"""The facts as tables of words, shared by the terminal and Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from optkit.model.manifest import LimitResult, Manifest, OutputFidelity, Ratio, StepRecord, Verdict

BRIEF = 70
"""Characters up to which a step's changes are all listed."""


@dataclass(frozen=True)
class Table:
    """A title, column heads, rows of cells; the first column is the name."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    rules: tuple[int, ...] = ()
    """Indices of the rows with a line below."""


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


def overview_table(manifest: Manifest) -> Table:
    """The whole run: the original, pass by pass what changed, the result; size, latency, drift and task accuracy."""
    timing, metrics, drift = manifest.timing, manifest.verdict.metrics, _worst_cosine(manifest.verdict)
    eager = "" if timing is None or timing.torch_eager_ms is None else f" (torch {timing.torch_eager_ms:.3g} ms)"
    before = "-" if timing is None else f"{timing.result.baseline_ms:.3g} ms{eager}"
    after = "not timed" if timing is None else f"{timing.result.candidate_ms:.3g} ms, {in_words(timing.result)}"
    original = ("original", manifest.original.kind, size(manifest.original.size_bytes), before, "")
    result = ("result", _changed_steps(manifest), size(manifest.result.size_bytes), after, drift)
    rows = [
        (*original, *(f"{metric.original:.4f}" for metric in metrics)),
        *((*_step_row(step), *("" for _ in metrics)) for step in manifest.steps),
        (*result, *(f"{m.result:.4f} (drop {m.drop:.4f})" for m in metrics)),
    ]
    heads = ("step", "what changed", "size", "latency", "cosine", *(metric.name for metric in metrics))
    return Table("", heads, tuple(rows), rules=(0, len(rows) - 2))


def _worst_cosine(verdict: Verdict) -> str:
    found = [output.cosine for output in verdict.outputs if output.cosine is not None]
    return f"{min(found):.6f}" if found else "-"


def _changed_steps(manifest: Manifest) -> str:
    changed = [step.id for step in manifest.steps if step.status == "changed"]
    undone = [step.id for step in manifest.steps if step.status == "rolled back"]
    return (", ".join(changed) or "nothing changed") + (f"; rolled back: {', '.join(undone)}" if undone else "")


def in_words(ratio: Ratio) -> str:
    """``faster: 1.84x [1.79, 1.90]``."""
    return f"{ratio.word}: {speedup(ratio)}"


def _step_row(step: StepRecord) -> tuple[str, ...]:
    cosine = "" if step.drift is None or step.drift.cosine is None else f"{step.drift.cosine:.6f}"
    coarse = "" if step.speedup is None else f"about {step.speedup.speedup:.2f}x"
    return (step.id, what_changed(step), size(step.size_bytes), coarse, cosine)


def what_changed(step: StepRecord) -> str:
    """One line: the changes, or the status with its reason."""
    if step.status != "changed":
        return f"{step.status}: {step.reason}" if step.reason else step.status
    listed = "; ".join(f"{change.where}: {change.what}" for change in step.changes)
    if len(listed) <= BRIEF or len(step.changes) == 1:
        return listed or "changed"
    return f"{len(step.changes)} changes: {listed.split('; ')[0]}; ..."


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
    """What the numbers were measured on, and what was left out."""
    on = verdict.measured_on
    made_up = "; SYNTHETIC inputs, so these numbers say little about real ones" if on.synthetic else ""
    gone = ", ".join(verdict.dropped_outputs)
    left_out = f" Left out, because a pass removed it by declaration: {gone}." if gone else ""
    return f"Measured on {on.samples} samples of {on.source} ({on.split}), batch {on.batch}{made_up}.{left_out}"


def verdict_line(verdict: Verdict) -> str:
    """The verdict in one line."""
    if verdict.held:
        unchecked = [limit.name for limit in verdict.limits if limit.held is None]
        return "All limits held." + (f" Not checked: {', '.join(unchecked)}." if unchecked else "")
    missed = [limit.name for limit in verdict.limits if limit.held is False]
    return "MISSED: " + "; ".join([*verdict.problems, *missed]) + "."


def limit_lines(verdict: Verdict) -> list[str]:
    """Each limit in a line: ``held      cosine 0.9999 (>= 0.99) logits``."""
    words = {True: "held", False: "MISSED", None: "not checked"}
    return [
        f"{words[limit.held]:<12}{limit.name} "
        + ("" if limit.measured is None else f"{number(limit.measured, 6)} ")
        + f"(asked: {limit.limit})"
        + (f" {limit.where}" if limit.where else "")
        + (f"; {limit.note.removeprefix('not checked: ')}" if limit.note else "")
        for limit in verdict.limits
    ]
