"""A module on its way to fewer units: looked at, tried, cut, and written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optkit.errors import PassError
from optkit.model.manifest import Decision, Ratio
from optkit.model.model import Model
from optkit.model.surgery import Operation, operate
from optkit.model.torch_folder import save_module
from optkit.passes._base import Context
from optkit.passes._prune.order import Chunk, Kept, kept_without
from optkit.passes._prune.target import TIMINGS, Counted, Goal, by_time, fewest, unreachable
from optkit.passes._prune.units import Found, Group
from optkit.passes._quant.select import EXCLUDED, excluded
from optkit.passes._torch_cost import Cost, cost, sample_inputs

if TYPE_CHECKING:
    from torch import Tensor, nn

RESIDUAL = "it runs from layer to layer through norms (residual: true prunes it)"


@dataclass
class Work:
    """A live module, and what was done to it since it was loaded."""

    model: Model
    """As the pass got it."""
    ctx: Context
    sentence: str
    module: nn.Module
    inputs: dict[str, Tensor]
    """A few samples."""
    samples: int
    before: Cost
    operations: list[Operation] = field(default_factory=list)
    first: dict[str, Group] = field(default_factory=dict)
    """All groups by name, as they were when first seen."""
    left: dict[str, int] = field(default_factory=dict)
    """Group that lost some -> units it has now."""

    def look(self) -> Found:
        """What could be pruned now."""
        from optkit.passes._prune.groups import find_groups

        found = find_groups(self.module, self.inputs)
        self.first = {group.name: group for group in found.groups} | self.first
        return found

    @property
    def whole(self) -> dict[str, int]:
        """Group -> units that it had at first."""
        return {name: group.units for name, group in self.first.items()}

    def trial(self, groups: Sequence[Group], kept: Kept) -> Trial:
        """A copy with no more than these units."""
        from optkit.passes._prune.cut import cut, shallow_copy

        chosen = [(group, np.array(kept[group.name], np.int64)) for group in groups if group.name in kept]
        operations = cut(self.module, chosen, self.inputs) if chosen else []
        module = operate(shallow_copy(self.module), operations)
        return Trial(chosen, module, operations, cost(module, self.inputs, self.samples))

    def take(self, groups: Sequence[Group], kept: Kept, *, settle: bool) -> list[str]:
        """Go on with no more than these units, after a proof that the others alone are gone; what else was done.

        Args:
            groups: of the module as it is.
            kept: group -> units.
            settle: fit the layers that read them and the batch norms to calibration data.

        Raises:
            PassError: what is left does not compute what the whole does with the others masked.
        """
        from optkit.passes._prune.cut import verify

        trial = self.trial(groups, kept)
        verify(self.module, trial.module, trial.kept, self.inputs)
        whole, self.module = self.module, trial.module
        self.operations += trial.operations
        self.left |= {name: len(units) for name, units in kept.items()}
        return self._settled(whole, trial.kept) if settle else []

    def _settled(self, whole: nn.Module, kept: list[tuple[Group, NDArray[np.int64]]]) -> list[str]:
        from optkit.passes._prune.inputs_seen import SAMPLES
        from optkit.passes._prune.norms import measure_again
        from optkit.passes._prune.refit import take_over
        from optkit.passes._prune.score_data import calibration

        original = self.ctx.load_torch(self.ctx.original)
        data = partial(calibration, self.ctx, SAMPLES)
        told = [take_over(whole, self.module, original, kept, data, self.ctx.seed)]
        told.append(measure_again(self.module, original, partial(calibration, self.ctx)))
        return [each for each in told if each]

    def save(self, folder: str, trial: Trial | None = None) -> Model:
        """Write it, or a trial of it, below the pass's own folder."""
        module, more = (self.module, []) if trial is None else (trial.module, trial.operations)
        return save_module(self.model, module, [*self.operations, *more], self.ctx.workdir / folder, self.sentence)

    @property
    def changes(self) -> list[tuple[str, str]]:
        """(group, ``32 -> 20 channels``)."""
        first = self.first
        return [(name, f"{first[name].units} -> {left} {first[name].kind}") for name, left in self.left.items()]

    @property
    def told(self) -> str:
        """What it costs now, beside what it did."""
        return cost(self.module, self.inputs, self.samples).told(self.before)


@dataclass(frozen=True)
class Trial:
    """A changed copy."""

    kept: list[tuple[Group, NDArray[np.int64]]]
    module: nn.Module
    operations: list[Operation]
    cost: Cost


def begin(model: Model, ctx: Context, sentence: str) -> Work:
    """Load it and count what it costs."""
    module = ctx.load_torch(model)
    inputs, samples = sample_inputs(model, ctx.batches("sample"))
    return Work(model, ctx, sentence, module, inputs, samples, cost(module, inputs, samples))


def asked_for(
    groups: Sequence[Group], kinds: Collection[str], residual: bool, exclude: Sequence[str]
) -> tuple[list[Group], list[tuple[str, str]]]:
    """The groups that the options ask for, and (group, reason) of those that they do not."""

    def reason(group: Group) -> str:
        if any(excluded(name, exclude) for name in names_of(group)):
            return EXCLUDED
        if group.kind not in kinds:
            return f"kinds leaves {group.kind} out"
        return RESIDUAL if group.through_norm and not residual else ""

    reasons = [(group, reason(group)) for group in groups]
    return [group for group, why in reasons if not why], [(group.name, why) for group, why in reasons if why]


def names_of(group: Group) -> list[str]:
    """What ``exclude`` may call it: its own name, and the layers that make it."""
    makers = (part.tensor.rpartition(".")[0] for part in group.parts if part.role == "out")
    return list(dict.fromkeys([group.name, *makers]))


@dataclass
class Row:
    """The chunks of a module, the first to go first."""

    work: Work
    groups: Sequence[Group]
    chunks: Sequence[Chunk]
    costs: dict[int, Cost] = field(default_factory=dict)
    """How many are gone -> what is left."""
    timed: int = 0
    """Measurements so far."""

    def kept(self, gone: int) -> Kept:
        """What stays without the first so many."""
        return kept_without(self.groups, self.chunks[:gone])

    def share(self, what: Counted, gone: int) -> float:
        """Of what the pass started with."""
        if gone not in self.costs:
            self.costs[gone] = self.work.trial(self.groups, self.kept(gone)).cost
        return float(getattr(self.costs[gone], what) / max(1, getattr(self.work.before, what)))

    def measured(self, gone: int) -> Ratio:
        """The export without the first so many against that of what the pass started with."""
        ctx, folder = self.work.ctx, f"tried-{gone}"
        ctx.progress(self.timed, TIMINGS)
        self.timed += 1
        tried = self.work.save(folder, self.work.trial(self.groups, self.kept(gone)))
        ratio = ctx.time([ctx.to_onnx(self.work.model), ctx.to_onnx(tried)])[1]
        shutil.rmtree(ctx.workdir / folder)
        return ratio

    def reach(self, target: Goal, part: float) -> tuple[Kept, list[Decision]]:
        """What just reaches ``target``, or ``part`` of the way to it.

        Latency is only measured at the end of the way; until then MACs stand for it.

        Raises:
            PassError: nothing does; names the best.
        """
        if target.what == "latency" and part == 1:
            gone, decisions = by_time(
                len(self.chunks), lambda gone: self.share("macs", gone), self.measured, target.share
            )
            return self.kept(gone), decisions
        least = self.share(target.counted, len(self.chunks))
        if target.what == target.counted and least > target.share:
            raise unreachable(target.counted, target.share, least)
        gone = fewest(len(self.chunks), lambda gone: self.share(target.counted, gone), target.share**part)
        return self.kept(gone), []


def once(ctx: Context, name: str, make: Callable[[], tuple[Kept, list[Decision]]]) -> tuple[Kept, list[Decision]]:
    """What ``make`` gives, or gave when this step was interrupted: what is trained since had been made of that."""
    path = ctx.checkpoints() / f"{name}.json"
    if path.is_file():
        known: dict[str, Any] = json.loads(path.read_text())
        return known["kept"], [Decision(**each) for each in known["decisions"]]
    kept, decisions = make()
    fresh = path.with_suffix(".part")
    fresh.write_text(json.dumps({"kept": kept, "decisions": [each.model_dump() for each in decisions]}))
    fresh.replace(path)
    return kept, decisions


def nothing_to_prune(model: Model, skipped: Sequence[tuple[str, str]]) -> PassError:
    """The error of a model with no layer to prune, with the reasons."""
    reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped[:4])
    return PassError(
        f"There is nothing to prune in {model.path.name}: {reasons or 'no layer of it is known to have units'}.",
        expected="convolutions, linear layers or attention heads whose number is free",
        fix="change exclude, kinds, residual, multiple or min_share, or leave the step out",
    )
