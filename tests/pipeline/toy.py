"""Tiny passes, a model for them, and a job to run them in; see also ``tests.pipeline.offenders``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

from optkit.data.dataset import Arrays
from optkit.evaluate.limits import Limits
from optkit.model.manifest import Decision, StepRecord
from optkit.model.model import Form, Model
from optkit.model.signature import Signature
from optkit.model.target import Target
from optkit.passes._base import Aspect, Context, Outcome, Pass, PassKind
from optkit.pipeline.cache import Cache
from optkit.pipeline.job import Job
from optkit.pipeline.steps import Policy, run_steps
from optkit.recipe.recipe import Step
from tests.helpers import MemoryData, normal, onnx_model

CALM = Policy(bench=False)
WEIGHTS = {"w": normal(4, 3, seed=1), "v": normal(4, 2, seed=2)}
TEXT = "g (float[batch,4] x) => (float[batch,3] y, float[batch,2] side) { y = MatMul(x, w) side = MatMul(x, v) }"


def write_model(path: Path, *, factor: float = 1.0) -> Path:
    """``y = x w``, ``side = x v``; ``factor`` scales w."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(onnx_model(TEXT, {"w": WEIGHTS["w"] * np.float32(factor), "v": WEIGHTS["v"]}), path)
    return path


def arrays(count: int = 24, seed: int = 5) -> Arrays:
    return {"x": normal(count, 4, seed=seed)}


def make_job(folder: Path, model: Model | None = None, **fields: Any) -> Job:
    """A job on 24 search and 40 evaluation samples, with a cache below ``folder``."""
    model = model or Model.open(write_model(folder / "m.onnx"))
    splits = {"search": MemoryData("search", arrays(24, 5)), "evaluation": MemoryData("evaluation", arrays(40, 6))}
    given = {"target": Target("cpu", 1), "limits": Limits(), "exact": False, "cache": Cache(folder / "cache")}
    return Job(**{"original": model, "splits": splits, **given, **fields})


class Toy(Pass):
    """Base of the toys: an ONNX pass that may move the outputs."""

    forms: ClassVar[Mapping[Form, Form]] = {"onnx": "onnx"}
    kind: ClassVar[PassKind] = "lossy"

    def made(self, model: Model, ctx: Context, proto: onnx.ModelProto, **more: Any) -> Outcome:
        path = ctx.workdir / "model.onnx"
        onnx.save(proto, path)
        return Outcome(model.derive(path, "onnx", self.sentence()), 1, [("w", "changed")], **more)


class ScaleBy(Toy):
    """Multiply w by a factor."""

    factor: float = 1.001
    calls: str = ""
    """A file that gets one byte a call."""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        if self.calls:
            with Path(self.calls).open("a") as file:
                file.write(".")
        proto = onnx.load(model.path)
        w = next(tensor for tensor in proto.graph.initializer if tensor.name == "w")
        w.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(w) * np.float32(self.factor), "w"))
        return self.made(model, ctx, proto)


class ExactScale(ScaleBy):
    """Multiply w by a factor, and promise that this changes nothing."""

    kind: ClassVar[PassKind] = "exact"


class Aside(ScaleBy):
    """Multiply w by a factor, for other reasons than speed."""

    for_speed: ClassVar[bool] = False


class Narrow(Toy):
    """Give the output y as float16."""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        proto = onnx.load(model.path)
        proto.graph.node[0].output[0] = "wide"
        proto.graph.node.append(helper.make_node("Cast", ["wide"], ["y"], to=onnx.TensorProto.FLOAT16))
        proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
        return self.made(model, ctx, proto)


class NarrowDeclared(Narrow):
    """Give the output y as float16, and say so."""

    may_change: ClassVar[frozenset[Aspect]] = frozenset({"dtypes"})


class Drop(Toy):
    """Remove the output side, and say so."""

    may_change: ClassVar[frozenset[Aspect]] = frozenset({"outputs"})

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        proto = onnx.load(model.path)
        del proto.graph.output[1]
        del proto.graph.node[1]
        return self.made(model, ctx, proto)


class Nothing(Toy):
    """Find nothing to do."""

    notes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        return Outcome(model, 0, notes=self.notes, skipped=self.skipped)


class Raises(Toy):
    """Fail."""

    error: str

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        import builtins

        raise getattr(builtins, self.error)("the reason")


class Die(Toy):
    """End the process."""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        os._exit(9)


class Session(Toy):
    """Want session entries, and change nothing in the file."""

    for_speed: ClassVar[bool] = False
    entries: dict[str, str]

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        return Outcome(model, 1, [("session", "set")], session=self.entries)


class ScaleSession(Toy):
    """Multiply w, and want session entries."""

    for_speed: ClassVar[bool] = False
    entries: dict[str, str]

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        return replace(ScaleBy(factor=1.0001)(model, ctx), session=self.entries)


class Calibrated(ScaleBy):
    """Multiply w by what the calibration data say."""

    uses_data: ClassVar[tuple[str, ...]] = ("calibration",)

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        biggest = max(float(np.abs(batch.inputs["x"]).max()) for batch in ctx.batches("calibration").batches())
        return replace(ScaleBy()(model, ctx), notes=[f"largest {biggest:.3f}"])


class Peeks(Toy):
    """Read a split without declaring it."""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        ctx.batches("evaluation")
        return Outcome(model, 0)


class PeeksByJudging(Toy):
    """Judge on the search split without declaring it."""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        ctx.judge(model)
        return Outcome(model, 0)


class ForTarget(ScaleBy):
    """Depend on the target."""

    uses_target: ClassVar[bool] = True


class Chooses(ScaleBy):
    """Choose by timing."""

    def decides_by_time(self) -> bool:
        return True

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        speedup = ctx.time([model, model])[1].speedup
        decision = Decision(what="toy", kept=True, speedup=speedup, reason="it was asked for")
        return replace(super().__call__(model, ctx), decisions=[decision])


class NeedsPackage(Toy):
    """Need a package that nobody has."""

    needs: ClassVar[tuple[str, ...]] = ("no_such_package_anywhere",)


class Unfit(Toy):
    """Refuse every model in the plan."""

    def applies(self, model: Model, target: Target) -> str:
        return "it is too round"


class UnfitLater(Nothing):
    """Refuse models that a pass has changed."""

    def applies(self, model: Model, target: Target) -> str:
        return "it was scaled" if model.lineage else ""


class CpuOnly(Nothing):
    """Refuse other targets than CPUs."""

    def applies_to(self, target: Target) -> str:
        return "" if target.provider == "cpu" else f"it is for cpu, not for {target.provider}"


class ToyExport(Pass):
    """Export y = x w for any torch model."""

    forms: ClassVar[Mapping[Form, Form]] = {"torch": "onnx"}
    kind: ClassVar[PassKind] = "exact"
    calls: str = ""
    broken: bool = False
    lazy: bool = False

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        if self.calls:
            with Path(self.calls).open("a") as file:
                file.write(".")
        if self.lazy:
            return Outcome(model, 0, notes=["too tired"])
        assert ctx.batches("sample").count == 2
        path = write_model(ctx.workdir / "model.onnx", factor=2.0 if self.broken else 1.0)
        return Outcome(model.derive(path, "onnx", self.sentence()), 1)


class SecondExport(ToyExport):
    """Another exporter."""


class Surgery(Pass):
    """A torch pass that breaks its promise."""

    forms: ClassVar[Mapping[Form, Form]] = {"torch": "torch"}
    kind: ClassVar[PassKind] = "exact"
    factory: str

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        import torch

        path = ctx.workdir / "weights.pt"
        torch.save({"w": torch.from_numpy(WEIGHTS["w"] * 2), "v": torch.from_numpy(WEIGHTS["v"])}, path)
        return Outcome(replace(model, path=path), 1)


FACTORY = """
import torch


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(4, 3))
        self.v = torch.nn.Parameter(torch.zeros(4, 2))

    def forward(self, x):
        return {"y": x @ self.w, "side": x @ self.v}


def make():
    return Two()
"""


def torch_model(folder: Path) -> Model:
    """The same as ``write_model``, as a state_dict with a factory."""
    import torch

    from optkit.model.signature import parse_signature

    (folder / "two.py").write_text(FACTORY)
    torch.save({name: torch.from_numpy(array) for name, array in WEIGHTS.items()}, folder / "two.pt")
    model = Model.open(folder / "two.pt", factory=f"{folder / 'two.py'}:make")
    outputs = parse_signature("y=float32[batch,3]; side=float32[batch,2]")
    return model.with_signature(Signature(parse_signature("x=float32[batch,4]"), outputs))


def run(job: Job, *passes: Any, policy: Policy = CALM) -> tuple[Model, list[StepRecord]]:
    """Run passes or steps; ids are made unique by position."""
    steps = [p if isinstance(p, Step) else Step(id=f"{p.name()}-{i}", options=p) for i, p in enumerate(passes)]
    done = run_steps(job, steps, policy)
    return done[-1].after, [each.record for each in done]


def statuses(records: Sequence[Any]) -> list[str]:
    return [record.status for record in records]


class ForNow(ScaleBy):
    """Come out so only today."""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        return replace(super().__call__(model, ctx), lasting=False)
