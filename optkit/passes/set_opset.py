"""Conversion to another version of ONNX's operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from optkit.model.model import Form, Model
from optkit.passes._base import Context, Outcome, Pass, PassKind


class SetOpset(Pass):
    """Convert the graph to another version of ONNX's operator set.

    By onnx's own version converter: ``Squeeze<axes=[1]>(x)`` of opset 11 becomes ``Squeeze(x, axes)`` of opset 13.
    A later one makes newer operators usable, an earlier one older runtimes. Operators of other domains stay.
    """

    forms: ClassVar[Mapping[Form, Form]] = {"onnx": "onnx"}
    kind: ClassVar[PassKind] = "exact"
    for_speed: ClassVar[bool] = False

    version: int = Field(default=21, ge=7, le=26)
    """Version to convert to; 21 is the first with 4-bit integers and scales per block."""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Convert it.

        Raises:
            PassError: onnx's version converter does not know how.
        """
        from optkit.passes._ir import convert_opset, frozen_inputs, load_ir, save_ir

        graph = load_ir(model.path)
        frozen, had = frozen_inputs(graph), graph.opset_imports.get("", self.version)
        if had == self.version:
            return Outcome(model, 0, notes=[f"the model has opset {had} already"])
        path = ctx.workdir / "model.onnx"
        save_ir(convert_opset(graph, self.version), path)
        made = model.derive(path, "onnx", self.sentence())
        return Outcome(made, 1, changes=[("opset", f"{had} -> {self.version}")], notes=frozen)
