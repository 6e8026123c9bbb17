"""float32 graphs computed in half precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from optkit.model.model import Form, Model
from optkit.passes._base import Context, Outcome, Pass, PassKind
from optkit.passes._cast.half import FLOAT16
from optkit.passes._quant.select import NodePattern


class CastFp16(Pass):
    """Compute in float16 what float16 holds; inputs and outputs stay as they are.

    ``MatMul(x, W) -> Cast(MatMul(Cast(x), float16 W))``. Made for GPUs. On CPUs onnxruntime has few float16 kernels and
    casts back around the others, which is slower, as the measurement then says. Nodes stay in float32 where a value
    seen on a sample comes near float16's largest (65504) or below its smallest normal number (6e-5), and where
    operators sum up or are steep (normalizations, Softmax, reductions). What masks with huge values still masks.
    Tested for accuracy on a CPU; speed on GPUs has not been measured.
    """

    forms: ClassVar[Mapping[Form, Form]] = {"onnx": "onnx"}
    kind: ClassVar[PassKind] = "lossy"
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    uses_data: ClassVar[tuple[str, ...]] = ("sample",)

    exclude: tuple[NodePattern, ...] = ()
    """Nodes to leave in float32: names, or regular expressions that match a whole name."""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Watch the values on a sample, then cast."""
        from optkit.passes._cast.cast import cast_graph

        return cast_graph(self, model, ctx, FLOAT16, self.exclude)
