"""What all quantizing passes have in common: layers that take a precision each, and a budget that is held with them."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from optkit.model.manifest import Decision
from optkit.model.model import Model
from optkit.passes._base import Context, Outcome, Pass, PassKind
from optkit.passes._quant.select import NodePattern

Entries = Sequence[tuple[str, str]]
"""(where, what)."""
FLOAT = "float32"
"""The last rung of every ladder."""
GIVEN_BACK = "given back"
"""How what is said of a layer in ``Repaired.given_back`` begins."""


@dataclass(frozen=True)
class Built:
    """A model with some of its layers quantized."""

    model: Model
    changes: Entries
    """What became of each layer that is quantized."""
    notes: Sequence[str] = ()


def discard(built: Built, workdir: Path) -> None:
    """Remove the folder that ``Layered.build`` wrote below ``workdir``."""
    folder = built.model.path.parent
    if workdir in folder.parents:
        shutil.rmtree(folder)


@dataclass(frozen=True)
class Layered:
    """A model whose layers can be quantized one by one."""

    model: Model
    """In float. It has every tensor of ``layers``."""
    layers: Mapping[str, str]
    """Label of each layer that is to be quantized -> its output tensor, which whatever is built has too."""
    ladder: tuple[str, ...]
    """Precisions of a layer from the one that was asked for to ``FLOAT``, such as int8, int16, float32."""
    build: Callable[[Mapping[str, str]], Built]
    """Makes the model with layers at the precisions given; the others have the first of the ladder. Every call writes
    into a folder of its own below the workdir."""
    skipped: Entries = ()
    """Layers that are left alone in any case, with the reason."""
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Repaired:
    """What was built in the end, and why."""

    built: Built
    given_back: Entries = ()
    """Layers at a higher precision than asked for, with what that brings."""
    decisions: Sequence[Decision] = ()
    notes: Sequence[str] = ()


class Quantizer(Pass):
    """Base of the passes that quantize layers."""

    kind: ClassVar[PassKind] = "lossy"

    exclude: tuple[NodePattern, ...] = ()
    """Nodes to leave in float: names, or regular expressions that match a whole name."""
    repair: Literal[False, True, "labelled"] = False
    """Hold the accuracy limits: where the fully quantized model misses them on the split search, the layers that cost
    most are given back to a higher precision until it does not. labelled = only where these data have labels."""

    def reads(self) -> tuple[str, ...]:
        """Also the split search, for repairs."""
        return (*self.uses_data, *(["search"] if self.repair else []))

    def decides_by_time(self) -> bool:
        """With ``repair``, which times what holds the limits."""
        return bool(self.repair)

    @abstractmethod
    def layered(self, model: Model, ctx: Context) -> Layered:
        """The model's layers, ready to be quantized.

        Raises:
            PassError, DataError: it cannot be done.
        """

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Quantize every layer, less what repairs give back; float models on the way to it are not kept."""
        outcome = self._outcome(model, ctx)
        kept = outcome.model.path.resolve()
        for folder in [each for each in ctx.workdir.resolve().iterdir() if each.is_dir() and each not in kept.parents]:
            shutil.rmtree(folder)
        return outcome

    def _outcome(self, model: Model, ctx: Context) -> Outcome:
        layered = self.layered(model, ctx)
        done = self._done(layered, ctx) if layered.layers else Repaired(Built(model, ()))
        return Outcome(
            done.built.model,
            len(done.built.changes),
            changes=done.built.changes,
            skipped=[*layered.skipped, *done.given_back],
            notes=[*layered.notes, *done.built.notes, *done.notes],
            decisions=done.decisions,
        )

    def _done(self, layered: Layered, ctx: Context) -> Repaired:
        from optkit.passes._quant.repair import hold_budget, reason_not_to

        reason = reason_not_to(self.repair, ctx)
        if reason is None:
            return hold_budget(layered, ctx, by_speed=self.for_speed)
        return Repaired(layered.build({}), notes=[reason] if reason else [])


def never(levels: Mapping[str, str]) -> Built:
    """``Layered.build`` where there are no layers."""
    raise AssertionError(f"no layers, nothing to build at {levels}")
