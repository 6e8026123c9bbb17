"""Structured pruning of channels, features and attention heads."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from optkit.errors import PassError
from optkit.model.manifest import Decision
from optkit.model.model import Form, Model
from optkit.model.target import Target
from optkit.model.torch_folder import unfit
from optkit.passes._base import Context, Outcome, Pass, PassKind
from optkit.passes._prune.score import FROM_DATA, Criterion
from optkit.passes._prune.target import Goal
from optkit.passes._prune.units import Kind
from optkit.passes._quant.select import NodePattern, unused

if TYPE_CHECKING:
    from optkit.passes._prune.rounds import Row, Work


class PruneChannels(Pass):
    """Take channels, features and attention heads out of a torch model.

    ``Conv(3, 64) -> BatchNorm(64) -> Conv(64, 128)`` becomes ``Conv(3, 40) -> BatchNorm(40) -> Conv(40, 128)``: the
    tensors are really smaller, so that every engine is faster. What goes is what matters least for what it costs. With
    a criterion that looks at data, the layers that read it take over what the rest can tell of it, by least squares;
    then the rest is trained (Li et al. 2017, "Pruning Filters for Efficient ConvNets"; He et al. 2017, "Channel Pruning
    for Accelerating Very Deep Neural Networks"; Fang et al. 2023, "DepGraph: Towards Any Structural Pruning").
    """

    forms: ClassVar[Mapping[Form, Form]] = {"torch": "torch"}
    kind: ClassVar[PassKind] = "trains"
    needs: ClassVar[tuple[str, ...]] = ("torch", "safetensors")

    target: Goal
    """The share that remains, of one thing: ``{macs: 0.5}``, ``{latency: 0.6}`` or ``{parameters: 0.5}``. MACs and
    parameters are counted, latency is measured on this machine."""
    criterion: Criterion = "taylor"
    """What says how much a unit matters. taylor: how far the outputs move without it, on calibration data, which need
    no labels (EfficientNet-Lite0 at .8 of its MACs, untrained, gives the same top answer on .81 of photos; by
    activation .71, by magnitude none). activation: mean activation times the weights that read it, on calibration data.
    magnitude: norm of its weights; needs no data. bn-scale: scale of the batch normalization behind it."""
    scope: Literal["global", "layer"] = "global"
    """global = the least useful units of the whole model; layer = the same share of every layer."""
    multiple: int = Field(default=8, ge=1)
    """Layers with so many units or more keep a multiple of it, as kernels work in blocks of 8 or 16; heads need not."""
    kinds: tuple[Kind, ...] = ("channels", "features", "heads")
    """What to prune: channels of convolutions, features between linear layers, attention heads."""
    residual: bool = False
    """Also prune what runs through layer norms from layer to layer, the hidden size of a transformer: changes more."""
    exclude: tuple[NodePattern, ...] = ()
    """Layers to leave, by names or regular expressions that match a whole name."""
    min_share: float = Field(default=0.1, gt=0, le=1)
    """Share of its units that every layer keeps."""
    rounds: int = Field(default=1, ge=1)
    """Prune so many times, a part of the way each, and train after each; they share the steps of ``train:``."""
    fine_tune: bool = True
    """Train after each round, as the recipe's block ``train:`` says, on split train; the original teaches."""

    def reads(self) -> tuple[str, ...]:
        """What the criterion looks at, and what training does."""
        data = ("calibration",) if self.criterion in FROM_DATA else ()
        return (*data, *(("train", "search") if self.fine_tune else ()))

    def decides_by_time(self) -> bool:
        """Where the target is a latency."""
        return self.target.what == "latency"

    def applies(self, model: Model, target: Target) -> str:
        """Refuses what cannot be built anew."""
        del target
        return unfit(model) if model.form == "torch" else ""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Prune, prove that only the units are gone, and train.

        Raises:
            PassError: there is nothing to prune, or the target cannot be reached.
        """
        from optkit.passes._prune.rounds import begin, once

        if self.decides_by_time() and not ctx.may_time:
            raise PassError(
                "A target of latency has to be timed, and --no-bench forbids it.",
                expected="target: {macs: ...} or {parameters: ...}, which are counted",
                fix="leave --no-bench out, or change the target",
            )
        work = begin(model, ctx, self.sentence())
        skipped: dict[str, str] = {}
        notes: list[str] = []
        decisions: list[Decision] = []
        for index in range(self.rounds):
            row = self._row(work, skipped, notes)
            part = (index + 1) / self.rounds
            kept, chosen = once(ctx, f"kept-{index}", partial(row.reach, self.target, part))
            decisions += chosen
            if kept:
                notes += work.take(row.groups, kept, settle=self.criterion in FROM_DATA)
            notes += self._trained(work, index) if self.fine_tune else []
        return Outcome(
            work.save("model"),
            len(work.left),
            work.changes,
            [(name, reason) for name, reason in skipped.items() if name not in work.left],
            [work.told, *dict.fromkeys(notes)],
            decisions=decisions,
        )

    def _row(self, work: Work, skipped: dict[str, str], notes: list[str]) -> Row:
        """What can go now, the first to go first."""
        from optkit.passes._prune.order import Room, evenly, in_order, unit_costs
        from optkit.passes._prune.rounds import Row, asked_for, names_of, nothing_to_prune
        from optkit.passes._prune.score import ABSOLUTE, scores
        from optkit.passes._prune.score_data import calibration

        found = work.look()
        names = [name for group in found.groups for name in names_of(group)]
        notes += unused(self.exclude, names, what="layer that could be pruned")
        groups, left = asked_for(found.groups, self.kinds, self.residual, self.exclude)
        data = calibration(work.ctx) if self.criterion in FROM_DATA else ()
        scored, unscored = scores(self.criterion, work.module, groups, data, work.ctx.seed)
        groups = [group for group in groups if group.name in scored]
        room = Room(self.min_share, self.multiple, work.whole)
        if self.scope == "layer":
            chunks = evenly(groups, scored, room)
        elif self.criterion in ABSOLUTE:
            costs = unit_costs(work.module, groups, work.inputs, self.target.counted)
            chunks = in_order(groups, scored, room, costs)
        else:
            chunks = in_order(groups, scored, room)
        for name, reason in [*found.skipped, *left, *unscored, *room.too_small(groups)]:
            skipped.setdefault(name, reason)
        if not chunks and not work.left:
            raise nothing_to_prune(work.model, list(skipped.items()))
        return Row(work, groups, chunks)

    def _trained(self, work: Work, index: int) -> list[str]:
        from optkit.passes._train.tune import fine_tune

        teacher = work.ctx.load_torch(work.ctx.original)
        trained = fine_tune(work.module, work.ctx, stage=f"round-{index}", share=1 / self.rounds, teacher=teacher)
        return [f"round {index + 1} of {self.rounds}: {note}" for note in (trained.told(), *trained.notes)]
