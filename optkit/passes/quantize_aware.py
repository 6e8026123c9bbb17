"""Training under the rounding of integers to come."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from optkit.errors import PassError
from optkit.model.model import Form, Model
from optkit.model.target import Target
from optkit.model.torch_folder import save_module, unfit
from optkit.passes._base import Context, Outcome, Pass, PassKind
from optkit.passes._quant.calibrators import Calibration
from optkit.passes._quant.cpu import ActivationType
from optkit.passes._quant.planned import Manner, Plan, plan_static
from optkit.passes._quant.select import NodePattern

if TYPE_CHECKING:
    from optkit.passes._train.score import Score


class QuantizeAware(Pass):
    """Train weights for quantize-static, under the rounding that it will do (QAT).

    Put ``quantize-static`` with the same options behind the export: its graph is the one that it makes without this
    pass, only the weights are better. In training, ``Linear(x, W, b)`` is ``Linear(Q(x), Q(W), b')``, with the scales
    and corrected biases of quantize-static and gradients that go straight through the rounding; teacher is the
    original, beside labels where there are any. Afterwards the weights are floats as before. Where int8 would be no
    better with them, by the search split, the model stays as it was.

    Sources: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference"; Bengio et al. 2013 (straight-through estimator).
    """

    forms: ClassVar[Mapping[Form, Form]] = {"torch": "torch"}
    kind: ClassVar[PassKind] = "trains"
    needs: ClassVar[tuple[str, ...]] = ("torch", "onnxruntime")
    for_speed: ClassVar[bool] = False
    uses_target: ClassVar[bool] = True
    uses_data: ClassVar[tuple[str, ...]] = ("train", "calibration", "search", "sample")

    activations: ActivationType = "auto"
    """As in quantize-static: the type of activations."""
    per_channel: bool = True
    """As in quantize-static: a scale for each output channel of a weight."""
    calibration: Calibration = "minmax"
    """As in quantize-static: how ranges are taken from the split calibration."""
    percentile: float = Field(default=99.99, gt=50, le=100)
    """As in quantize-static: share of values, %, that calibration: percentile keeps."""
    bias_correction: bool = True
    """As in quantize-static: put what rounding takes from the mean of an output into the bias."""
    exclude: tuple[NodePattern, ...] = ()
    """As in quantize-static: nodes of the export to leave in float."""

    def applies(self, model: Model, target: Target) -> str:
        """Only models that are built by code or a configuration."""
        del target
        return unfit(model) if model.form == "torch" else ""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Plan the rounding, train under it, and compare what quantize-static makes of the weights before and after.

        Raises:
            PassError: nothing would be quantized, or the training fails.
            DataError: there are no calibration data, or they are not finite.
        """
        from optkit.passes._torch_cost import sample_inputs
        from optkit.passes._train.fake_quant import fake_quantized
        from optkit.passes._train.fake_sites import find_sites
        from optkit.passes._train.tune import fine_tune

        module = ctx.load_torch(model)
        inputs, _ = sample_inputs(model, ctx.batches("sample"))
        plan = self._plan(model, ctx)
        sites, lost = find_sites(module, inputs, plan.layers)
        if not sites:
            raise _nothing(model, plan)
        before = _score(plan, ctx)
        with fake_quantized(module, sites):
            trained = fine_tune(module, ctx, stage=self.name(), teacher=ctx.load_torch(ctx.original))
        made = save_module(model, module, [], ctx.workdir / "model", self.sentence())
        after = _score(self._plan(made, ctx), ctx)
        notes = [trained.told(), *trained.notes, _told(before, after)]
        skipped = [
            *plan.skipped,
            *((layer.node, "no module has its weights: not rounded in training") for layer in lost),
        ]
        if after.rank <= before.rank:
            return Outcome(model, 0, skipped=skipped, notes=notes)
        changes = [(site.name, f"trained as {site.layer.node} in integers") for site in sites]
        return Outcome(made, len(sites), changes, skipped, notes)

    def _plan(self, model: Model, ctx: Context) -> Plan:
        manner = Manner(
            self.activations,
            self.per_channel,
            self.calibration,
            self.percentile,
            self.bias_correction,
            self.exclude,
            self.sentence(),
        )
        return plan_static(ctx.to_onnx(model), ctx, manner)


def _score(plan: Plan, ctx: Context) -> Score:
    """How good the planned model is on the split search; its files are removed."""
    from optkit.passes._train.score import score_of

    found = score_of(ctx.judge(plan.model))
    shutil.rmtree(plan.model.path.parent)
    return found


def _told(before: Score, after: Score) -> str:
    kept = "" if after.rank > before.rank else ": no better, so the weights stay as they were"
    likeness = "" if before.metric == "cosine" else f", likeness {before.rank[1]:.4g} -> {after.rank[1]:.4g}"
    return (
        f"in integers, as quantize-static makes them: {after.metric} {before.value:.4g} -> {after.value:.4g}{likeness}"
        f" (search){kept}"
    )


def _nothing(model: Model, plan: Plan) -> PassError:
    reasons = "; ".join(f"{node}: {reason}" for node, reason in plan.skipped[:4])
    return PassError(
        f"{model.path.name} has no layer that quantize-static would quantize{': ' + reasons if reasons else ''}.",
        expected="a Linear or convolution whose weights are in the export, and not excluded",
        fix="leave this pass out, or exclude fewer nodes",
    )
