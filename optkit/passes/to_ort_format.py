"""The file format of onnxruntime's mobile and edge builds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from optkit.errors import PassError
from optkit.model.model import Form, Model
from optkit.model.target import Target
from optkit.passes._base import Context, Outcome, Pass, PassKind
from optkit.passes._ort import session_options


class ToOrtFormat(Pass):
    """Save the model in onnxruntime's own format, for mobile and edge builds.

    ``model.onnx -> model.ort``: onnxruntime optimizes the graph and writes it as a flatbuffer, which builds without
    ONNX support can read, and which opens faster. The last step of a chain, since no other pass reads the format.
    """

    forms: ClassVar[Mapping[Form, Form]] = {"onnx": "ort"}
    kind: ClassVar[PassKind] = "exact"
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    for_speed: ClassVar[bool] = False
    uses_target: ClassVar[bool] = True

    optimization: Literal["fixed", "runtime"] = "runtime"
    """fixed: every optimization for the processor at hand is written into the file; runtime: only those that hold
    anywhere, the others are done when the file is opened."""

    def applies_to(self, target: Target) -> str:
        """The format is written by the CPU provider."""
        return "" if target.provider == "cpu" else f"the format is made for the CPU, not for {target.provider}"

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Convert it; weights in external data are taken into the file.

        Raises:
            PassError: onnxruntime cannot write it, as with more than 2 GB.
        """
        import onnxruntime as ort

        path = ctx.workdir / "model.ort"
        entries = dict(model.session) | {"session.save_model_format": "ORT"}
        if self.optimization == "runtime":
            entries["optimization.minimal_build_optimizations"] = "save"
        options = session_options(entries)
        options.optimized_model_filepath = str(path)
        try:
            ort.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's classes share no base
            raise PassError(
                f"onnxruntime cannot write the model in its own format: {str(error).strip().splitlines()[0]}",
                expected="a model of up to 2 GB",
                fix="leave the step out",
            ) from error
        made = model.derive(path, "ort", self.sentence()).with_signature(model.signature)
        return Outcome(made, 1, changes=[("model.ort", f"{self.optimization} optimizations")])
