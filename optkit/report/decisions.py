"""What passes chose by measuring, as a table: what, whether the result has it, what it brings, why."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from optkit.model.bundle import is_alone
from optkit.model.manifest import Decision, Manifest, StepRecord
from optkit.report.tables import Table

TITLE = "Chosen by measuring"


def decisions_table(manifest: Manifest, *, gains: bool = False) -> Table:
    """All decisions, step by step.

    Args:
        manifest: of the run.
        gains: only those that made the result faster.
    """
    made = [(step, each) for step, each in _decisions(manifest) if not gains or _gained(step, each)]
    columns: dict[str, Callable[[StepRecord, Decision], str]] = {
        "choice": lambda _, each: each.what,
        "step": lambda step, _: step.id,
        "in the result": _kept,
        "speed with it": lambda _, each: _speed(each),
        "why": lambda _, each: each.reason,
    }
    if len({step.id for step, _ in _decisions(manifest)}) < 2:
        del columns["step"]
    if gains:
        del columns["in the result"]
    return Table(TITLE, tuple(columns), tuple(tuple(cell(*each) for cell in columns.values()) for each in made))


def others_line(manifest: Manifest) -> str:
    """Empty, or how many decisions ``decisions_table(..., gains=True)`` leaves out, and where they are."""
    made = list(_decisions(manifest))
    left = len(made) - sum(_gained(*each) for each in made)
    if not left:
        return ""
    bundled = manifest.output is not None and not is_alone(manifest.output)
    more = "more " if left < len(made) else ""
    return (
        f"{left} {more}{'choice' if left == 1 else 'choices'} without a sure speed-up: "
        f"{'report.md and --json list' if bundled else '--json lists'} {'it' if left == 1 else 'them'}."
    )


def _decisions(manifest: Manifest) -> Iterator[tuple[StepRecord, Decision]]:
    return ((step, each) for step in manifest.steps for each in step.decisions)


def _gained(step: StepRecord, decision: Decision) -> bool:
    return step.status == "changed" and decision.kept and decision.low is not None and decision.low > 1


def _kept(step: StepRecord, decision: Decision) -> str:
    if not decision.kept:
        return "no"
    return "yes" if step.status == "changed" else f"no: {step.status}"


def _speed(decision: Decision) -> str:
    if decision.speedup is None:
        return "-"
    if decision.low is None or decision.high is None:
        return f"{decision.speedup:.2f}x"
    return f"{decision.speedup:.2f}x [{decision.low:.2f}, {decision.high:.2f}]"
