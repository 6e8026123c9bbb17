"""Fixed sizes in place of dynamic dimensions."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from optkit.model.model import Form, Model
from optkit.model.signature import Signature, fixed_dim
from optkit.model.target import Target
from optkit.passes._base import Context, Outcome, Pass, PassKind

if TYPE_CHECKING:
    import onnx_ir as ir


class FreezeShapes(Pass):
    """Give dynamic dimensions of the inputs a fixed size.

    ``x[batch,3,224,224]`` becomes ``x[8,3,224,224]``, what follows from that in the graph as well, and
    ``Reshape(x, Concat(Shape(x), ...)) -> Reshape(x, constant)``. The result takes inputs of that size only: the last
    batch of a data set is filled up, shorter texts are padded, and longer texts (unless ``max_length`` cuts them) and
    other data of other sizes are refused in the plan.
    """

    forms: ClassVar[Mapping[Form, Form]] = {"onnx": "onnx"}
    kind: ClassVar[PassKind] = "exact"

    dims: dict[str, Annotated[int, Field(ge=1)]] = Field(default={})
    """Name of a dynamic dimension -> its size: ``{batch: 1, seq: 128}``. Empty = the sizes in the target's shapes."""

    def fixes(self, target: Target) -> Mapping[str, int]:
        """The sizes it would give."""
        return self.dims or target.shapes

    def applies(self, model: Model, target: Target) -> str:
        """Dimensions of other names cannot be frozen."""
        del target
        known = model.signature.dim_names
        unknown = [name for name in self.dims if known and name not in known]
        if not unknown:
            return ""
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        return f"it has no dynamic dimension '{unknown[0]}', but {', '.join(known)}{hint}"

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Freeze them, and fold what was computed from shapes."""
        from onnx_ir.passes.common import ShapeInferencePass
        from onnxscript.optimizer import fold_constants

        from optkit.passes._ir import (
            count_changes,
            frozen_inputs,
            inline,
            load_ir,
            op_counts,
            quiet,
            remove_unused,
            save_ir,
        )

        stated, known = self.fixes(ctx.target), model.signature.dim_names
        sizes = {name: stated[name] for name in known if name in stated}
        if not sizes:
            return Outcome(model, 0, notes=[_nothing(stated, known)])
        loaded = load_ir(model.path)
        notes, graph = frozen_inputs(loaded), inline(loaded)
        before = op_counts(graph)
        _fix(graph, model.signature.fixed(sizes), sizes)
        with quiet():
            fold_constants(graph, onnx_shape_inference=True)
            ShapeInferencePass(check_type=False, strict_mode=False)(graph)
        remove_unused(graph)
        path = ctx.workdir / "model.onnx"
        save_ir(graph, path)
        changes = [(name, f"fixed at {size}") for name, size in sizes.items()]
        changes += count_changes(before, op_counts(graph))
        return Outcome(model.derive(path, "onnx", self.sentence()), len(sizes), changes, notes=notes)


def _nothing(stated: Mapping[str, int], known: Sequence[str]) -> str:
    if not known:
        return "all sizes of the inputs are fixed already"
    have = f"the dynamic dimensions are {', '.join(known)}"
    return f"no size is given for any: {have}" if stated else f"neither dims nor the target's shapes give sizes; {have}"


def _fix(model: ir.Model, signature: Signature, sizes: Mapping[str, int]) -> None:
    """Sizes for the inputs as ``signature`` says, and for every tensor with a dimension of such a name."""
    import onnx_ir as ir

    for value, spec in zip(model.graph.inputs, signature.inputs, strict=True):
        if value.shape is not None and spec.shape is not None:
            pairs = zip(value.shape, spec.shape, strict=True)
            value.shape = ir.Shape([new if isinstance(new, int) else old for old, new in pairs])
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.outputs, *(each for node in graph for each in node.outputs)):
            if value.shape is not None:
                value.shape = ir.Shape([_fixed(dim, sizes) for dim in value.shape])


def _fixed(dim: int | ir.SymbolicDim, sizes: Mapping[str, int]) -> int | str | None:
    named = dim if isinstance(dim, int) else dim.value
    return None if named is None else fixed_dim(named, sizes)
