"""Tiny passes that break one promise each; those that keep theirs are in ``tests.pipeline.toy``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import onnx
from onnx import helper

from optkit.model.model import Model
from optkit.passes._base import Aspect, Context, Outcome
from tests.pipeline.toy import Chooses, Drop, ScaleBy, Toy


class NotANumber(Toy):
    """Put a NaN into w."""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        return ScaleBy(factor=float("nan"))(model, ctx)


class Rename(Toy):
    """Rename the output y to z."""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        proto = onnx.load(model.path)
        for node in proto.graph.node:
            node.output[:] = ["z" if name == "y" else name for name in node.output]
        proto.graph.output[0].name = "z"
        return self.made(model, ctx, proto)


class DropSilently(Drop):
    """Remove the output side without a word."""

    may_change: ClassVar[frozenset[Aspect]] = frozenset()


class WrongForm(Toy):
    """Promise ONNX and give ORT."""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        outcome = ScaleBy(factor=1)(model, ctx)
        return replace(outcome, model=replace(outcome.model, form="ort"))


class Unloadable(Toy):
    """Write a node that no engine knows."""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        proto = onnx.load(model.path)
        proto.opset_import.append(helper.make_opsetid("nowhere", 1))
        proto.graph.node[0].op_type, proto.graph.node[0].domain = "Wish", "nowhere"
        return self.made(model, ctx, proto)


class Garbage(Toy):
    """Write bytes that are no model."""

    missing: bool = False

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        path = ctx.workdir / "model.onnx"
        if not self.missing:
            path.write_bytes(b"no model at all")
        return Outcome(replace(model, path=path), 1)


class Copy(Toy):
    """Write the same bytes again and call it a change."""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        path = ctx.workdir / "model.onnx"
        path.write_bytes(model.path.read_bytes())
        return Outcome(model.derive(path, "onnx", "copy"), 3)


class Vandal(Toy):
    """Do something to the input."""

    how: str = "write"

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        outcome = ScaleBy()(model, ctx)
        if self.how == "write":
            onnx.save(onnx.load(outcome.model.path), model.path)
        elif self.how == "garble":
            model.path.write_bytes(b"location garbage")
        else:
            model.path.unlink()
        return outcome


class Outside(Toy):
    """Write the result where it does not belong."""

    place: str
    link: bool = False

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        outcome = ScaleBy()(model, ctx)
        path = Path(self.place) / "model.onnx"
        path.write_bytes(outcome.model.path.read_bytes())
        if self.link:
            outcome.model.path.unlink()
            outcome.model.path.symlink_to(path)
            return outcome
        return replace(outcome, model=replace(outcome.model, path=path))


class ReturnsNone(Toy):
    """Forget the result."""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        return None  # type: ignore[return-value]


class ChoosesSilently(Chooses):
    """Choose by timing without declaring it."""

    def decides_by_time(self) -> bool:
        return False
