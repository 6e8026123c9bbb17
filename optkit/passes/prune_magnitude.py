"""Small weights set to zero."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from optkit.model.model import Form, Model
from optkit.model.target import Target
from optkit.model.torch_folder import save_module, unfit
from optkit.passes._base import Context, Outcome, Pass, PassKind
from optkit.passes._quant.select import NodePattern, unused

if TYPE_CHECKING:
    from optkit.passes._prune.weights import Found

SHARE = 0.5
"""Of the weights that become zero where nothing is said."""
USE = (
    "zeros make onnxruntime no faster (it multiplies with them like with any number), nor the file smaller before it is"
    " compressed; for speed: prune-channels, factorize, or hardware that skips zeros"
)


def _from_yaml(value: Any) -> Any:
    """``2:4`` without quotes is 2 minutes and 4 seconds to YAML."""
    return f"{value // 60}:{value % 60}" if isinstance(value, int) and value >= 60 else value


def _is_pattern(value: str) -> str:
    match = re.fullmatch(r"(\d+):(\d+)", value)
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise ValueError(f"'{value}' is no pattern: write N:M with 0 < N < M, as in '2:4'")
    return value


class PruneMagnitude(Pass):
    """Set the smallest weights to zero.

    ``W -> W * (|W| > t)`` in linear layers and convolutions, ``t`` such that ``sparsity`` of the elements are zero.
    Zeros alone make nothing faster; the weights compress better, hardware with sparse kernels may use them. They stay
    zeros when the model is quantized symmetrically or trained further.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015; of N:M patterns
    Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021.
    """

    forms: ClassVar[Mapping[Form, Form]] = {"torch": "torch", "onnx": "onnx"}
    kind: ClassVar[PassKind] = "lossy"
    for_speed: ClassVar[bool] = False

    sparsity: float | None = Field(default=None, gt=0, lt=1)
    """Share of the weights that is zero afterwards, those counted that are zero already. None = 0.5, unless there is a
    pattern."""
    pattern: Annotated[str, BeforeValidator(_from_yaml), AfterValidator(_is_pattern)] | None = None
    """``N:M`` = of every M consecutive weights along a layer's inputs the N largest stay. GPUs from Nvidia's Ampere on
    have kernels for 2:4."""
    scope: Literal["global", "layer"] = "global"
    """global = the smallest of all layers together, which spares layers with few and large weights; layer = the same
    share of every layer. The digits CNN of the samples, 98 % right, stays there with half of all weights and has 91.5 %
    with half of every layer's. A pattern is the same in both."""
    exclude: tuple[NodePattern, ...] = ()
    """Layers to leave as they are: names of torch modules or ONNX nodes, or regular expressions that match a whole
    name."""

    @model_validator(mode="after")
    def _one_of_both(self) -> PruneMagnitude:
        if self.sparsity is not None and self.pattern is not None:
            raise ValueError(f"sparsity and pattern exclude each other: {self.pattern} is a share already")
        return self

    def applies(self, model: Model, target: Target) -> str:
        """Refuses torch files whose weights cannot be written back."""
        del target
        return unfit(model) if model.form == "torch" else ""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Write zeros.

        Raises:
            PassError: there is no layer with weights to prune, or all have so many zeros already.
        """
        return self._torch(model, ctx) if model.form == "torch" else self._onnx(model, ctx)

    def _torch(self, model: Model, ctx: Context) -> Outcome:
        from optkit.passes._prune.weights import torch_weights

        module = ctx.load_torch(model)
        found = torch_weights(module, self.exclude)
        changes, notes = self._prune(found)
        made = save_module(model, module, [], ctx.workdir / "model", self.sentence())
        return Outcome(made, len(changes), changes, found.skipped, notes)

    def _onnx(self, model: Model, ctx: Context) -> Outcome:
        from onnx_ir.passes.common import LiftConstantsToInitializersPass

        from optkit.passes._ir import frozen_inputs, inline, load_ir, save_ir
        from optkit.passes._prune.weights import onnx_weights

        loaded = load_ir(model.path)
        frozen = frozen_inputs(loaded)
        graph = inline(loaded)
        LiftConstantsToInitializersPass()(graph)
        found = onnx_weights(graph, self.exclude)
        changes, notes = self._prune(found)
        path = ctx.workdir / "model.onnx"
        save_ir(graph, path)
        made = model.derive(path, "onnx", self.sentence())
        return Outcome(made, len(changes), changes, found.skipped, [*frozen, *notes])

    def _prune(self, found: Found) -> tuple[list[tuple[str, str]], list[str]]:
        """Changes and notes; what stays as it is joins ``found.skipped``."""
        from optkit.passes._prune.zeroing import by_pattern, by_share, put_zeros

        if self.pattern is not None:
            rules = by_pattern(found, self.pattern)
        else:
            rules = by_share(found, SHARE if self.sparsity is None else self.sparsity, self.scope == "global")
        changes, told = put_zeros(found, rules)
        return changes, [told, USE, *unused(self.exclude, found.labels, what="layer")]
