"""float32 graphs computed in brain floating point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from optkit.model.model import Form, Model
from optkit.model.target import Target
from optkit.passes._base import Context, Outcome, Pass, PassKind
from optkit.passes._cast.half import BFLOAT16
from optkit.passes._quant.select import NodePattern


class CastBf16(Pass):
    """Compute in bfloat16 what bfloat16 holds; inputs and outputs stay as they are.

    ``MatMul(x, W) -> Cast(MatMul(Cast(x), bfloat16 W))``. bfloat16 has the range of float32 and 8 bits of precision,
    where float16 has 11. Operators that sum up or are steep (normalizations, Softmax, reductions) stay in float32, and
    so do those that ONNX gives no bfloat16: convolutions have it from opset 22 on (``set-opset`` raises it).
    Made for GPUs: the numbers are tested against an emulation, nothing has been measured on one.
    """

    forms: ClassVar[Mapping[Form, Form]] = {"onnx": "onnx"}
    kind: ClassVar[PassKind] = "lossy"
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    uses_data: ClassVar[tuple[str, ...]] = ("sample",)

    exclude: tuple[NodePattern, ...] = ()
    """Nodes to leave in float32: names, or regular expressions that match a whole name."""

    def applies_to(self, target: Target) -> str:
        """onnxruntime's CPU kernels compute no bfloat16, unless the installed one proves otherwise."""
        if target.provider != "cpu" or cpu_multiplies(BFLOAT16.name):
            return ""
        return "the installed onnxruntime has no bfloat16 kernels for CPUs; use a GPU provider, or cast-fp16"

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Watch the values on a sample, then cast.

        Raises:
            PassError: the opset is below 13, and onnx cannot raise it.
        """
        from optkit.passes._cast.cast import cast_graph

        return cast_graph(self, model, ctx, BFLOAT16, self.exclude)


def cpu_multiplies(dtype: str) -> bool:
    """Whether onnxruntime opens a session on one MatMul of this ONNX type on the CPU."""
    import onnx
    import onnxruntime as ort

    text = f"g ({dtype}[2,2] a, {dtype}[2,2] b) => ({dtype}[2,2] c) {{ c = MatMul(a, b) }}"
    opset = onnx.helper.make_opsetid("", 13)
    proto = onnx.helper.make_model(onnx.parser.parse_graph(text), opset_imports=[opset], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes derive from Exception alone
        if type(error).__name__ == "NotImplemented":
            return False
        raise
    return True
