"""Activations made easier to quantize."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from optkit.model.model import Form, Model
from optkit.passes._base import Context, Outcome, Pass, PassKind

if TYPE_CHECKING:
    import onnx_ir as ir

    from optkit.passes._quant.groups import Group
    from optkit.passes._quant.rows import Channels

Entries = list[tuple[str, str]]
Alpha = Annotated[float, Field(ge=0, le=1)]

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""What ``alpha: auto`` tries."""


class SmoothQuant(Pass):
    """Move the spread of an activation's channels into the weights that it meets.

    ``MatMul(LayerNormalization(x, g, b), W)`` becomes ``MatMul(LayerNormalization(x, g / s, b / s), s * W)`` with ``s =
    max|x| ** alpha / max|W| ** (1 - alpha)`` for each channel. It computes the same, but a channel of large values no
    longer takes the range of int8 from all others: for before quantize-dynamic and quantize-static. Scales go into
    normalizations, linear layers and constant factors, through Relu, Add of a constant and attention.

    Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
    2022.
    """

    forms: ClassVar[Mapping[Form, Form]] = {"onnx": "onnx"}
    kind: ClassVar[PassKind] = "exact"
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    for_speed: ClassVar[bool] = False
    uses_data: ClassVar[tuple[str, ...]] = ("calibration",)

    alpha: Literal["auto"] | Alpha = "auto"
    """How much of the spread moves into the weights: 0 = as much as makes all channels of the weights alike, 1 = those
    of the activation. auto = for each activation what makes the error of its layers in int8 least, if anything does."""
    activations: Literal["dynamic", "static"] = "dynamic"
    """What ``alpha: auto`` assumes of the quantization that follows: a range for each call, or one for all."""
    mul: bool = False
    """Where nothing before the layers takes the scale in (the normalization is read by a residual connection too, or a
    Gelu comes between), multiply the activation by it. Of the time in int8 that costs MiniLM 2 % at 8 x 128, 4 % at
    1 x 32, and brings its error from .008 to .002 (1 - cosine); without, none of its errors that matter goes away."""
    mul_gain: float = Field(default=0.2, ge=0, lt=1)
    """With ``alpha: auto``, share of its layers' error in int8 that a multiplication has to take away to be added."""
    rows: int = Field(default=256, ge=1)
    """Rows of each activation on which errors are computed, evenly from up to 32 calibration batches. Memory for all
    activations: rows x channels x 4 bytes."""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Measure on the split ``calibration``, then scale.

        Raises:
            PassError: an activation is not finite on the calibration data.
            DataError: there are no calibration data.
        """
        from optkit.passes._ir import frozen_inputs, inline, load_ir, op_counts, remove_unused, save_ir
        from optkit.passes._quant.groups import find_groups
        from optkit.passes._quant.rows import measure

        loaded = load_ir(model.path)
        notes, functions = frozen_inputs(loaded), bool(loaded.functions)
        graph = inline(loaded)
        groups, skipped = find_groups(graph)
        against = self._against_mul(graph)
        wanted = [group for group in groups if group.fold or not against]
        skipped += [(group.label(), f"{group.reason}; {against}") for group in groups if group not in wanted]
        if not wanted:
            return Outcome(model, 0, skipped=skipped, notes=[_nothing(groups, against, skipped, op_counts(graph))])
        with _inlined(model, graph, ctx) if functions else nullcontext(model) as flat:
            names = [str(group.source.name) for group in wanted]
            known = measure(flat, names, ctx, ctx.batches("calibration"), self.rows)
        changes, left = self._smooth(wanted, known)
        if not changes:
            return Outcome(model, 0, skipped=[*skipped, *left], notes=["no scale makes the error in int8 less"])
        remove_unused(graph)
        path = ctx.workdir / "model.onnx"
        save_ir(graph, path)
        made = model.derive(path, "onnx", self.sentence())
        return Outcome(made, len(changes), changes, [*skipped, *left], notes)

    def _against_mul(self, graph: ir.Model) -> str:
        """Why no activation is multiplied; empty where that may be."""
        from optkit.passes._quant.operators import LINEAR, auto_ops

        if not self.mul:
            return "mul: true helps"
        flows = self.activations == "static" and auto_ops(graph) != LINEAR
        return "integers flow from layer to layer here, so that it is rounded before a Mul could help" if flows else ""

    def _smooth(self, groups: Sequence[Group], known: Mapping[str, Channels]) -> tuple[Entries, Entries]:
        """(layers, what was done) and (layers, why not)."""
        from optkit.passes._quant.smoothing import smooth

        changes: Entries = []
        skipped: Entries = []
        for group in groups:
            channels = known.get(str(group.source.name))
            if channels is None:
                skipped.append((group.label(), "its input is not float32"))
                continue
            alphas = ALPHAS if self.alpha == "auto" else (self.alpha,)
            found = smooth(channels, group.weights(), alphas, dynamic=self.activations == "dynamic")
            error = f"alpha {found.alpha:g}, error in int8 {found.before:.2%} -> {found.after:.2%}"
            if self._worth(group, found.before, found.after):
                changes.append((group.label(), f"{group.apply(found.scale)}, {error}"))
            else:
                skipped.append((group.label(), f"not worth it: {error}"))
        return changes, skipped

    def _worth(self, group: Group, before: float, after: float) -> bool:
        return self.alpha != "auto" or after < before * (1 if group.fold else 1 - self.mul_gain)


@contextmanager
def _inlined(model: Model, graph: ir.Model, ctx: Context) -> Iterator[Model]:
    """A file, for a while, in which inner tensors have the names that they have in ``graph``."""
    from optkit.passes._ir import written

    folder = ctx.workdir / "inlined"
    yield written(model, graph, folder)
    shutil.rmtree(folder)


def _nothing(groups: Sequence[Group], against: str, skipped: Entries, found: Mapping[str, int]) -> str:
    from optkit.passes._quant.select import commonest

    if groups:
        return f"nothing to smooth: no scale can go into what is before the layers; {against}"
    operators = ", ".join(f"{count} {kind}" for kind, count in found.items())
    sought = "no MatMul or Gemm with constant weights of its own"
    return f"nothing to smooth: {sought}; the model has {operators or 'no nodes'}{commonest(skipped)}"
