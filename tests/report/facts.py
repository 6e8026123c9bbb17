"""A small verdict to report on."""

from __future__ import annotations

from typing import Any

from optkit.model.manifest import LimitResult, MeasuredOn, OutputFidelity, Verdict

ON = MeasuredOn(split="evaluation", source="e.npz", samples=24, batch=8, synthetic=False)


def limit(name: str, *, held: bool | None, **more: Any) -> LimitResult:
    facts: dict[str, Any] = {"limit": ">= 0.99", "measured": 0.9, "kind": "accuracy", **more}
    return LimitResult(name=name, held=held, **facts)


def verdict(*limits: LimitResult, **more: Any) -> Verdict:
    facts: dict[str, Any] = {
        "held": all(each.held is not False for each in limits),
        "limits": limits,
        "outputs": (OutputFidelity(name="logits", dtype="float32", rows=24, cosine=0.9, max_error=0.5),),
        "measured_on": ON,
        **more,
    }
    return Verdict(**facts)
