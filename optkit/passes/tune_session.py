"""Session options of onnxruntime, chosen by time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from optkit.model.manifest import Ratio
from optkit.model.model import Form, Model
from optkit.model.target import Target
from optkit.passes._base import Context, Outcome, Pass, PassKind
from optkit.passes._measure import Names, choose
from optkit.passes._session_options import (
    BUSY,
    ON_CPUS,
    ON_DEVICES,
    SHARED,
    Option,
    fixed_sizes,
    optimizers,
    others_share,
    with_options,
)

Candidate = Literal["optimizers", "threads", "parallel", "subnormal", "spinning", "memory_arena", "prefer_nhwc"]

NOT_TIMED = "not measured: --no-bench; the session options stay as they are"
NOTHING = "no session option that was tried makes this model surely faster here"
NOT_TRIED = "no session option was tried"


class TuneSession(Pass):
    """Choose onnxruntime's session options by measuring.

    Tried are: to leave out each of onnxruntime's own optimizers that changes this model, and to let in those that are
    left out; other numbers of threads; branches in parallel; subnormal numbers as zeros; threads that do not spin; no
    memory arena; on CUDA convolutions with channels last. The file stays as it is. What is surely faster is kept with
    the result, as keys and values that can be set from any language.
    """

    forms: ClassVar[Mapping[Form, Form]] = {"onnx": "onnx"}
    kind: ClassVar[PassKind] = "exact"
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    uses_target: ClassVar[bool] = True

    candidates: tuple[Candidate, ...] | None = None
    """What to try. Null = all of it. Threads are not tried where the target states a number of them."""
    fixed_shapes: bool = False
    """Also try the sizes that the target measures at (``target: {shapes: {batch: 8}}``) as the only ones. A session
    with this option refuses inputs of any other size."""
    budget_s: float = Field(default=20.0, gt=0)
    """Seconds of timing; one measurement is made in any case."""
    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    """With which an option has to be faster."""

    def decides_by_time(self) -> bool:
        """Always."""
        return True

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Time every option, and keep what is surely faster."""
        if not ctx.may_time:
            return Outcome(model, 0, notes=[NOT_TIMED])
        options, notes, busy = self._options(model, ctx.target)

        def build(names: Names) -> Model:
            return replace(model, session=with_options(model.session, _chosen(options, names)))

        def timer(models: Sequence[Model], seconds: float) -> list[Ratio]:
            return ctx.time(models, budget_s=seconds, confidence=self.confidence)

        names, decisions = choose(frozenset(), [each.what for each in options], build, timer, budget_s=self.budget_s)
        kept = _chosen(options, names)
        return Outcome(
            model,
            len(kept),
            changes=[("session", each.what) for each in kept],
            notes=notes if kept else [NOTHING if options else NOT_TRIED, *notes],
            session=with_options(model.session, kept),
            decisions=decisions,
            lasting=not busy,
        )

    def _options(self, model: Model, target: Target) -> tuple[list[Option], list[str], bool]:
        """What to try; why some of it is not tried; and whether that is for busy neighbours."""
        table = ON_CPUS if target.provider == "cpu" else ON_DEVICES
        asked = ("optimizers", *table) if self.candidates is None else self.candidates
        own = optimizers(model, target) if "optimizers" in asked else []
        notes = [f"onnxruntime's own optimizers are not tried: {own}"] if isinstance(own, str) else []
        found = [] if isinstance(own, str) else own
        tried = {name: table[name](model, target) for name in table if name in asked}
        shared = [name for name in tried if name in SHARED and tried[name]]
        others = others_share() if shared else 0.0
        busy = others >= BUSY
        if busy:
            notes.append(f"{', '.join(shared)} not tried: other processes use {others:.0%} of the cores")
        found += [option for name, options in tried.items() if not (busy and name in SHARED) for option in options]
        found += fixed_sizes(model, target) if self.fixed_shapes else []
        options = [option for option in found if with_options(model.session, [option]) != dict(model.session)]
        return options, notes, busy


def _chosen(options: Sequence[Option], names: Names) -> list[Option]:
    return [option for option in options if option.what in names]
