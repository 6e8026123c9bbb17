"""The waterfall: from the original, pass by pass, to the result, with size, latency and drift after each."""

from __future__ import annotations

from optkit.model.manifest import Manifest, Ratio, StepRecord, Verdict
from optkit.report.snippet import result_threads
from optkit.report.tables import Table, size

BRIEF = 70
"""Characters up to which a step's changes are all listed."""

MARK = (
    "~ is a coarse estimate from a short measurement: of a step against the step before it, of torch eager alone. Its "
    "ratio says more than its milliseconds. What has no ~ is from the full measurement."
)

COSINES = "The cosines of steps are from a few samples of the split search, that of the result from evaluation."


def waterfall(manifest: Manifest) -> Table:
    """A row for the original, the baseline, each step and the result. ``~`` marks coarse estimates.

    The speed of a step is against the step before it, that of the result against the baseline export. The last column
    says what happened.
    """
    metrics = manifest.verdict.metrics
    rows = [
        (*_original_row(manifest), *(f"{metric.original:.4f}" for metric in metrics), _about_original(manifest)),
        *((*row, *("" for _ in metrics), what) for *row, what in _step_rows(manifest)),
        (*_result_row(manifest), *(f"{metric.result:.4f}" for metric in metrics), _changed_steps(manifest)),
    ]
    names = tuple(metric.name for metric in metrics)
    heads = ("step", "size", "latency", "speed vs step before", "cosine to original", *names, "what happened")
    return Table("", heads, tuple(rows), rules=(0, len(rows) - 2))


def timing_lines(manifest: Manifest) -> list[str]:
    """What the columns mean, and the full measurement in a sentence; or that nothing was timed, and why."""
    timing = manifest.timing
    lines = [COSINES] if any(step.drift is not None for step in manifest.steps) else []
    lines += [MARK] if any("~" in cell for row in waterfall(manifest).rows for cell in row[2:4]) else []
    if timing is None:
        return [*lines, f"{manifest.timing_note[:1].upper()}{manifest.timing_note[1:]}."]
    ratio = timing.result
    again = f"; {manifest.timing_note}" if manifest.timing_note else ""
    return [
        *lines,
        f"Result against baseline: {in_words(ratio)}, {ratio.confidence:.0%} interval from {ratio.blocks} interleaved "
        f"blocks in {timing.launches} {'launches' if timing.launches > 1 else 'launch'}{again}.",
        f"Timed on {ratio.inputs}, {_threads(manifest)}; timing took {manifest.timing_s:.0f} s.",
    ]


def _threads(manifest: Manifest) -> str:
    """``2 threads``; also those of the result, where it wants another number."""
    usual, own = manifest.environment.threads, result_threads(manifest)
    return f"{usual} threads" + ("" if own == usual else f" (the result: {own})")


def in_words(ratio: Ratio) -> str:
    """``faster, 1.84x [1.79, 1.90]``."""
    return f"{ratio.word}, {ratio.speedup:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"


def what_happened(step: StepRecord) -> str:
    """One line: the changes, or the status with its reason."""
    if step.status != "changed":
        return f"{step.status}: {step.reason}" if step.reason else step.status
    listed = "; ".join(f"{change.where}: {change.what}" for change in step.changes)
    if len(listed) > BRIEF and len(step.changes) > 1:
        listed = f"{len(step.changes)} changes: {listed.split('; ')[0]}; ..."
    return "; ".join(filter(None, [step.reason, listed])) or "changed"


def _original_row(manifest: Manifest) -> tuple[str, ...]:
    timing, original = manifest.timing, manifest.original
    if original.form != "torch":
        return ("original", size(original.size_bytes), _baseline_ms(manifest), "baseline", "")
    eager = None if timing is None else timing.torch_eager_ms
    return ("original", size(original.size_bytes), "not timed" if eager is None else f"~{ms(eager)}", "torch eager", "")


def _about_original(manifest: Manifest) -> str:
    note = "" if manifest.timing is None else manifest.timing.torch_note
    return "; ".join(filter(None, [manifest.original.kind, note]))


def _step_rows(manifest: Manifest) -> list[tuple[str, ...]]:
    """The steps; the one that made the baseline says so, and where there is none the baseline has its own row."""
    made = [step.status == "changed" and step.digest == manifest.baseline.digest for step in manifest.steps]
    first = made.index(True) if manifest.original.form == "torch" and True in made else None
    rows = [_step_row(manifest, step, at == first) for at, step in enumerate(manifest.steps)]
    if first is None and manifest.original.form == "torch":
        exported = size(manifest.baseline.size_bytes)
        rows.insert(0, ("(export)", exported, _baseline_ms(manifest), "baseline", "", "the original, exported alone"))
    return rows


def _step_row(manifest: Manifest, step: StepRecord, baseline: bool) -> tuple[str, ...]:
    cosine = "" if step.drift is None or step.drift.cosine is None else f"{step.drift.cosine:.6f}"
    kept = size(step.size_bytes) if step.status == "changed" else step.status
    if baseline:
        return (step.id, kept, _baseline_ms(manifest), "baseline", cosine, what_happened(step))
    said_below = manifest.timing is None and step.timing_note == manifest.timing_note
    what = "; ".join(filter(None, [what_happened(step), "" if said_below else step.timing_note]))
    if step.speedup is None:
        return (step.id, kept, "not timed" if step.timing_note else "", "", cosine, what)
    return (step.id, kept, f"~{ms(step.speedup.candidate_ms)}", f"~{step.speedup.speedup:.2f}x", cosine, what)


def _result_row(manifest: Manifest) -> tuple[str, ...]:
    timing, cosine = manifest.timing, _worst_cosine(manifest.verdict)
    if timing is None:
        return ("result", size(manifest.result.size_bytes), "not timed", "", cosine)
    against = f"{timing.result.speedup:.2f}x vs baseline: {timing.result.word}"
    return ("result", size(manifest.result.size_bytes), ms(timing.result.candidate_ms), against, cosine)


def _baseline_ms(manifest: Manifest) -> str:
    return "not timed" if manifest.timing is None else ms(manifest.timing.result.baseline_ms)


def ms(value: float) -> str:
    """Milliseconds with three digits: ``0.0514 ms``, ``1240 ms``."""
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _worst_cosine(verdict: Verdict) -> str:
    found = [output.cosine for output in verdict.outputs if output.cosine is not None]
    return f"{min(found):.6f}" if found else "-"


def _changed_steps(manifest: Manifest) -> str:
    changed = [step.id for step in manifest.steps if step.status == "changed"]
    undone = [step.id for step in manifest.steps if step.status == "rolled back"]
    return (", ".join(changed) or "nothing changed") + (f"; rolled back: {', '.join(undone)}" if undone else "")
