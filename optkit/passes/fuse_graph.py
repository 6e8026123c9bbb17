"""Fusion of operators into onnxruntime's own kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from optkit.model.manifest import Decision, Ratio
from optkit.model.model import Form, Model
from optkit.model.target import Target
from optkit.passes._base import Context, Outcome, Pass, PassKind
from optkit.passes._fusion.families import FAMILIES, NAMES, defaults
from optkit.passes._fusion.family import Fired
from optkit.passes._fusion.variants import Names, Variants
from optkit.passes._measure import choose

if TYPE_CHECKING:
    FamilyName = str
else:
    FamilyName = Literal[NAMES]

SHOWN = 3
"""Places told of each family that it left alone."""
NOT_TIMED = "not measured: --no-bench; the families are those that are good for the target by experience"


class FuseGraph(Pass):
    """Replace groups of operators by onnxruntime's fused kernels.

    ``MatMul -> Mul -> Add -> Softmax -> MatMul`` between transposed heads becomes ``MultiHeadAttention``, spelled out
    GELU ``Gelu``, RMS normalization ``SimplifiedLayerNormalization``. Not every fusion makes a model faster on every
    machine: ``measure`` times each family with and without it.
    """

    forms: ClassVar[Mapping[Form, Form]] = {"onnx": "onnx"}
    kind: ClassVar[PassKind] = "exact"
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    uses_target: ClassVar[bool] = True

    families: tuple[FamilyName, ...] | None = None
    """Groups of rewrites to apply; with ``measure`` those to choose from. Null = those that are good for the target by
    experience; with ``measure`` all of them."""
    measure: bool = False
    """Apply the families that make this model faster on this machine, at the target's shapes and threads; where that
    is too close to call, or nothing is to be timed, those that are good for the target by experience."""
    budget_s: float = Field(default=20.0, gt=0)
    """Seconds of timing with ``measure``; one measurement is made in any case."""
    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    """With which a family has to be faster, or not to be."""

    def decides_by_time(self) -> bool:
        """With ``measure``."""
        return self.measure

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Apply what is wanted, less what a session cannot open or what moves the outputs."""
        from optkit.passes._ir import frozen_inputs

        timed = self.measure and ctx.may_time
        variants = Variants(model, ctx, self.sentence())
        chosen, skipped = variants.usable(self._start(ctx.target))
        notes, decisions = [NOT_TIMED] if self.measure and not timed else [], list[Decision]()
        if timed:
            chosen, decisions = self._choose(variants, chosen)
        made = variants(chosen)
        variants.keep_only(chosen)
        notes += variants.notes
        counts = {name: fired.count for name, fired in made.fired.items() if fired.count}
        notes += frozen_inputs(variants.loaded) if counts else [_why_nothing(chosen, decisions)]
        return Outcome(
            made.model,
            sum(counts.values()),
            [(each.name, f"{counts[each.name]} x {each.rewrite}") for each in FAMILIES if each.name in counts],
            [*skipped, *refused(made.fired)],
            notes,
            decisions=decisions,
        )

    def _start(self, target: Target) -> list[str]:
        """What is applied as long as nothing better is known, in the table's order."""
        good = defaults(target)
        wanted = good if self.families is None else self.families
        return [name for name in NAMES if name in wanted and (name in good or not self.measure)]

    def _choose(self, variants: Variants, start: Names) -> tuple[Names, list[Decision]]:
        """The families that pay, of those that find anything in this graph."""

        def timer(models: Sequence[Model], seconds: float) -> list[Ratio]:
            return variants.ctx.time(models, budget_s=seconds, confidence=self.confidence)

        fired = {**variants.matching(self.families or NAMES), **variants(start).fired}
        found = [name for name in NAMES if name in fired and fired[name].count]
        names = sorted(found, key=lambda name: name not in start)
        return choose(start, names, variants.build, timer, budget_s=self.budget_s)


def refused(fired: Mapping[str, Fired]) -> Iterator[tuple[str, str]]:
    """(family: place, reason) of a few places that look alike and were left as they are."""
    for name, did in fired.items():
        yield from ((f"{name}: {where}", reason) for where, reason in did.refused[:SHOWN])
        if len(did.refused) > SHOWN:
            yield name, f"{len(did.refused) - SHOWN} more places left as they are"


def _why_nothing(chosen: Names, decisions: Sequence[Decision]) -> str:
    if decisions:
        return f"none of {', '.join(decision.what for decision in decisions)} makes this model faster here"
    return f"nothing in the graph has a form for {', '.join(name for name in NAMES if name in chosen) or 'no family'}"
