"""The way from torch to ONNX; every other pass that makes a file faster starts from its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from optkit.data.dataset import Arrays, Dataset
from optkit.errors import OptkitError, PassError
from optkit.model.load_torch import load_exported
from optkit.model.model import Form, Model
from optkit.model.onnx_file import save_onnx
from optkit.model.target import Target
from optkit.passes._base import Context, Outcome, Pass, PassKind
from optkit.passes._parity import agreement
from optkit.passes._torch_export import Source, export_dynamo, export_torchscript, root_cause, trace_inputs
from optkit.passes._torch_tidy import relax_outputs, tidy

if TYPE_CHECKING:
    from onnx import ModelProto

_FIX = {
    "torchscript": "start from the module itself: torch.export.save(torch.export.export(module, args), 'model.pt2')",
    "others": "fix a dimension with --signature 'x=float32[batch,16000]', or export it yourself and give the .onnx",
}

Exporter = Literal["dynamo", "torchscript"]


class ExportOnnx(Pass):
    """Export a torch model to ONNX.

    module(x, mask) -> model.onnx with inputs x, mask and the outputs' own names; string dimensions stay dynamic. The
    result is run beside torch at another shape than the one it was traced with, and must agree.
    """

    forms: ClassVar[Mapping[Form, Form]] = {"torch": "onnx"}
    kind: ClassVar[PassKind] = "exact"
    needs: ClassVar[tuple[str, ...]] = ("torch", "onnxscript", "onnxruntime")
    for_speed: ClassVar[bool] = False

    opset: int | None = Field(default=None, ge=13, le=25)
    """Version of ONNX's operator set, 13 to 25. None = the exporter's own default (20 for torch 2.13's dynamo)."""
    exporter: Literal["auto", "dynamo", "torchscript"] = "auto"
    """dynamo goes through torch.export; torchscript traces (deprecated by torch, but takes TorchScript). auto = dynamo,
    and torchscript where dynamo cannot do it or its result disagrees with torch; the report says which and why."""

    def applies(self, model: Model, target: Target) -> str:
        """Refuses the two pairs of exporter and file that torch cannot do."""
        del target
        if self.exporter == "dynamo" and model.kind == "torchscript":
            return "the dynamo exporter does not take TorchScript; use exporter: auto"
        if self.exporter == "torchscript" and model.kind == "pt2":
            return "the TorchScript exporter does not take torch.export archives; use exporter: auto"
        return ""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Write ``model.onnx`` and check it against torch.

        Raises:
            PassError: no exporter made a model that agrees with torch; names the output and the difference.
        """
        if not model.signature.inputs:
            raise PassError(
                f"The inputs of {model.path.name} are not known, so it cannot be exported.",
                expected="names, dtypes and shapes",
                fix="say them: --signature 'x=float32[batch,3,224,224]'",
            )
        job = _Job(self, model, ctx, ctx.batches("sample"))
        failures: list[str] = []
        for exporter in self._exporters(model):
            try:
                return job.export(exporter, failures)
            except PassError as error:
                failures.append(f"the {exporter} exporter failed: {error.message}")
        raise PassError(
            f"{model.path.name} cannot be exported to ONNX: " + "; ".join(failures).rstrip(".") + ".",
            expected="a model that torch.onnx.export takes, with the dimensions it can keep dynamic",
            fix=_FIX["torchscript" if model.kind == "torchscript" else "others"],
        )

    def _exporters(self, model: Model) -> tuple[Exporter, ...]:
        if self.exporter != "auto":
            return (self.exporter,)
        if model.kind == "torchscript":
            return ("torchscript",)
        return ("dynamo",) if model.kind == "pt2" else ("dynamo", "torchscript")


@dataclass(frozen=True)
class _Job:
    """One call of the pass."""

    step: ExportOnnx
    model: Model
    ctx: Context
    sample: Dataset

    def export(self, exporter: Exporter, failures: list[str]) -> Outcome:
        """By one exporter, checked against torch."""
        proto = self._proto(exporter)
        if fixed := tidy(proto, self.model.signature):
            raise PassError(f"it fixed dimensions that should stay dynamic: {', '.join(fixed)}")
        made = self._saved(proto)
        agreed = agreement(self.model, made, self._inputs(), self.sample, self.ctx)
        if relax_outputs(proto, agreed.shapes, agreed.sizes):
            made = self._saved(proto)
        opset = next(each.version for each in proto.opset_import if each.domain in ("", "ai.onnx"))
        nodes = len(proto.graph.node)
        return Outcome(
            model=made,
            changed=nodes,
            changes=[("graph", f"{nodes} nodes, opset {opset}, {exporter} exporter")],
            notes=[*self._why(exporter, failures), str(agreed)],
        )

    def _saved(self, proto: ModelProto) -> Model:
        path = self.ctx.workdir / "model.onnx"
        save_onnx(proto, path)
        return self.model.derive(path, "onnx", self.step.sentence())

    def _why(self, exporter: Exporter, failures: list[str]) -> list[str]:
        """Why it was not the dynamo exporter."""
        if exporter == "torchscript" and self.model.kind == "torchscript":
            return ["exported by torch's TorchScript exporter, because the dynamo exporter does not take TorchScript"]
        return [f"{failure}; the {exporter} exporter was used instead" for failure in failures]

    def _proto(self, exporter: Exporter) -> ModelProto:
        program = load_exported(self.model) if self.model.kind == "pt2" else None
        module = self.ctx.load_torch(self.model) if program is None else program.module()
        source = Source(self.model, module, trace_inputs(self._inputs(), self.model.signature), program)
        try:
            if exporter == "dynamo":
                return export_dynamo(source, self.step.opset)
            return export_torchscript(source, self.step.opset, self.ctx.workdir)
        except (OptkitError, MemoryError):
            raise
        except Exception as error:  # the exporters raise anything on what they cannot do
            raise PassError(root_cause(error)) from error

    def _inputs(self) -> Arrays:
        batch = next(iter(self.sample.batches()))
        known = {spec.name for spec in self.model.signature.inputs}
        return {name: array for name, array in batch.inputs.items() if name in known}
