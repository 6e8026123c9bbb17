"""Layers of a lower rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from optkit.errors import PassError
from optkit.model.model import Form, Model
from optkit.model.target import Target
from optkit.model.torch_folder import save_module, unfit
from optkit.passes._base import Context, Outcome, Pass, PassKind
from optkit.passes._prune.target import WORDS, Goal
from optkit.passes._quant.select import NodePattern, commonest, unused

if TYPE_CHECKING:
    from torch import nn

    from optkit.passes._prune.factors import Spectrum
    from optkit.passes._prune.matrices import Layer
    from optkit.passes._prune.rank import Curve
    from optkit.passes._torch_cost import Cost

DEFAULT = Goal(macs=0.7)


class Factorize(Pass):
    """Split linear layers and convolutions into two of a lower rank.

    ``y = W x + b`` becomes ``y = U (V x) + b'``: Linear(384, 1536) -> Linear(384, 96), Linear(96, 1536); Conv(64, 128,
    3x3) -> Conv(64, 32, 3x3), Conv(32, 128, 1x1). U spans the directions in which the outputs vary most on calibration
    data, which makes the error of the outputs least, not that of the weights; ranks go where they save most for the
    least error. Layers whose outputs need all directions lose accuracy quickly: fine_tune wins much of it back.

    Source: Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and Detection", 2015; Chen
    et al., "DRONE: Data-aware Low-rank Compression for Large NLP Models", 2021; Wang et al., "SVD-LLM", 2024.
    """

    forms: ClassVar[Mapping[Form, Form]] = {"torch": "torch"}
    kind: ClassVar[PassKind] = "trains"
    needs: ClassVar[tuple[str, ...]] = ("torch", "safetensors")

    target: Goal | None = None
    """The share of the model's multiply-accumulates, ``{macs: 0.6}``, or parameters, ``{parameters: 0.6}``, that
    remains. None = 0.7 of the MACs, unless there is an error."""
    error: float | None = Field(default=None, gt=0, lt=1)
    """Instead of a target: how much of its output's spread each layer may lose on calibration data (root mean square
    error over standard deviation); each gets the lowest rank that keeps to it, if that saves anything."""
    multiple: int = Field(default=8, ge=1)
    """Ranks are multiples of it, as kernels work in blocks of 8 or 16; layers too small for that take any rank."""
    exclude: tuple[NodePattern, ...] = ()
    """Layers to leave, by names or regular expressions that match a whole name."""
    fine_tune: bool = False
    """Train afterwards, as the recipe's block ``train:`` says, on split train; the original teaches."""

    @model_validator(mode="after")
    def _countable(self) -> Factorize:
        if self.target is not None and self.error is not None:
            raise ValueError("target and error exclude each other: state one")
        if self.target is not None and self.target.what == "latency":
            raise ValueError("ranks are chosen by counting: state macs or parameters")
        return self

    def reads(self) -> tuple[str, ...]:
        """The split calibration, and what training looks at."""
        return ("calibration", *(("train", "search") if self.fine_tune else ()))

    def applies(self, model: Model, target: Target) -> str:
        """Refuses what cannot be built anew."""
        del target
        return unfit(model) if model.form == "torch" else ""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Look at the outputs, choose ranks, split the layers, and train where that is wanted.

        Raises:
            PassError: no layer can be split with a gain, the target is out of reach, or an output is not finite.
        """
        from optkit.passes._prune.factors import few, spectra_of, split
        from optkit.passes._prune.matrices import find_layers
        from optkit.passes._torch_cost import cost, sample_inputs

        module = ctx.load_torch(model)
        inputs, samples = sample_inputs(model, ctx.batches("calibration"))
        before = cost(module, inputs, samples)
        layers, skipped, names = find_layers(module, self.exclude, inputs, samples)
        known = spectra_of(module, layers, ctx)
        curves = {each.name: self._curve(each, known[each.name]) for each in layers}
        skipped += [(name, "too small to save anything") for name, each in curves.items() if not each.ranks]
        curves = {name: each for name, each in curves.items() if each.ranks}
        ranks = self._ranks(curves, before, names, skipped)
        skipped += [(name, "its outputs need too many directions") for name in curves if name not in ranks]
        changes = [(each.name, _told(each, ranks, known)) for each in layers if each.name in ranks]
        module, operations = split(module, {name: ranks[name] for name, _ in changes}, known, inputs)
        notes = [cost(module, inputs, samples).told(before), *few(known), *self._trained(module, ctx)]
        notes += unused(self.exclude, names, what="layer that could be factorized")
        made = save_module(model, module, operations, ctx.workdir / "model", self.sentence())
        return Outcome(made, len(changes), changes, skipped, notes)

    def _curve(self, layer: Layer, spectrum: Spectrum) -> Curve:
        from optkit.passes._prune.rank import curve

        uses = 1.0 if (self.target or DEFAULT).what == "parameters" else layer.positions
        return curve(spectrum.lost, layer.inputs, layer.outputs, uses, self.multiple)

    def _ranks(
        self, curves: Mapping[str, Curve], before: Cost, names: Sequence[str], skipped: Sequence[tuple[str, str]]
    ) -> dict[str, int]:
        from optkit.passes._prune.rank import by_budget, by_error

        if not curves:
            why = f"of {len(names)} layers none can be{commonest(skipped)}" if names else "the model has none"
            raise PassError(
                f"There is no linear layer or convolution to factorize: {why}.",
                expected="a Linear or an ungrouped convolution that two smaller ones can stand for",
                fix="leave this pass out, or exclude fewer layers",
            )
        if self.error is not None:
            return by_error(curves, self.error)
        goal = self.target or DEFAULT
        total = before.parameters if goal.what == "parameters" else before.macs
        return by_budget(curves, total, goal.share, WORDS[goal.what])

    def _trained(self, module: nn.Module, ctx: Context) -> list[str]:
        if not self.fine_tune:
            return []
        from optkit.passes._train.tune import fine_tune

        trained = fine_tune(module, ctx, stage="factors", teacher=ctx.load_torch(ctx.original))
        return [trained.told(), *trained.notes]


def _told(layer: Layer, ranks: Mapping[str, int], known: Mapping[str, Spectrum]) -> str:
    rank = ranks[layer.name]
    return f"{layer.inputs}x{layer.outputs} rank {rank}, error {known[layer.name].error(rank):.2g}"
