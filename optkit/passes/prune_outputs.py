"""Removal of outputs that nobody reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import model_validator

from optkit.errors import PassError
from optkit.model.model import Form, Model
from optkit.passes._base import Aspect, Context, Outcome, Pass, PassKind


class PruneOutputs(Pass):
    """Drop outputs together with everything that only they need.

    ``f(x) -> (logits, hidden)`` becomes ``f(x) -> logits``. Inputs stay, also those that nothing reads any more.
    """

    forms: ClassVar[Mapping[Form, Form]] = {"onnx": "onnx"}
    kind: ClassVar[PassKind] = "exact"
    may_change: ClassVar[frozenset[Aspect]] = frozenset({"outputs"})
    for_speed: ClassVar[bool] = False

    outputs: tuple[str, ...] = ()
    """Names of the outputs to keep; the others go. Give this or ``drop``."""
    drop: tuple[str, ...] = ()
    """Names of the outputs to drop; the others stay."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if bool(self.outputs) == bool(self.drop):
            raise ValueError("give either outputs or drop, a list of output names")
        return self

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Drop them; the nodes that go with them are counted.

        Raises:
            PassError: the model has no output of such a name, or none would be left.
        """
        from optkit.passes._ir import count_changes, load_ir, op_counts, remove_unused, save_ir

        graph = load_ir(model.path)
        names = [value.name or "" for value in graph.graph.outputs]
        dropped = self._dropped(names)
        if not dropped:
            return Outcome(model, 0, notes=["the model has no other outputs"])
        before = op_counts(graph)
        for value in [each for each in graph.graph.outputs if each.name in dropped]:
            graph.graph.outputs.remove(value)
        remove_unused(graph)
        path = ctx.workdir / "model.onnx"
        save_ir(graph, path)
        changes = [(name, "dropped") for name in dropped] + count_changes(before, op_counts(graph))
        return Outcome(model.derive(path, "onnx", self.sentence()), len(dropped), changes=changes)

    def _dropped(self, names: list[str]) -> list[str]:
        if unknown := [name for name in (*self.outputs, *self.drop) if name not in names]:
            raise PassError(
                f"The model has no output named {', '.join(unknown)}.",
                expected="names among " + ", ".join(names),
                fix="correct outputs or drop",
            )
        dropped = [name for name in names if name in self.drop or (self.outputs and name not in self.outputs)]
        if len(dropped) == len(names):
            raise PassError("No output would be left.", expected="at least one", fix="keep one of " + ", ".join(names))
        return dropped
