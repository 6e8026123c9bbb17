"""Attention as one node, with its projections left outside."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from optkit.passes._fusion.apply import refusals, require, require_kernel, shaped
from optkit.passes._fusion.family import Fired
from optkit.passes._fusion.fold import merge_repeated
from optkit.passes._fusion.heads import (
    drop_idle_expands,
    drop_idle_reshapes,
    free_transposes,
    keep_flattening_apart,
    read_sizes_before,
    read_sizes_before_layers,
    slice_shapes,
)
from optkit.passes._fusion.masks import fits, highest, known, largest, largest_finite, mask_rules, row_rules
from optkit.passes._fusion.shapes import know_shapes
from optkit.passes._ir import constant

if TYPE_CHECKING:
    import onnx_ir as ir

AXES_AS_INPUT = 18
"""Opset from which ReduceMax takes its axes as an input."""


def fuse_attention(model: ir.Model) -> Fired:
    """``MatMul(Softmax(Add(Mul(MatMul(q, k), s), mask)), v) -> MultiHeadAttention(q, k, v, mask)``.

    Heads that share keys (grouped heads) go in repeated, as the model repeats them: onnxscript's rule for
    GroupQueryAttention takes padding for the end of a row, wherever it is, and is not used.
    """
    before = _count(model)
    free_transposes(model)
    drop_idle_reshapes(model)
    _fuse(model)
    free_transposes(model)
    know_shapes(model)
    drop_idle_expands(model)
    read_sizes_before_layers(model)
    left = refusals(model, sdpa_rules()) + refusals(model, mask_rules())
    return Fired(_count(model) - before, left)


def _count(model: ir.Model) -> int:
    return sum(node.op_type == "MultiHeadAttention" for node in model.graph.all_nodes())


def _fuse(model: ir.Model) -> None:
    from onnx_ir.passes.common import RemoveUnusedNodesPass
    from onnxscript.rewriter.ort_fusions.sdpa_via_mha import replace_sdpa_by_mha

    if mask_rules().apply_to_model(model):
        know_shapes(model)
    if not sdpa_rules().apply_to_model(model):
        return
    merge_repeated(model)
    read_sizes_before(model)
    free_transposes(model)
    RemoveUnusedNodesPass()(model)
    row_rules().apply_to_model(model)
    know_shapes(model)
    keep_flattening_apart(model)
    for rules in mha_rules():
        rules.apply_to_model(model)
    replace_sdpa_by_mha(model)
    slice_shapes(model)


@cache
def sdpa_rules() -> Any:
    """onnxscript's rule, which it would apply to more than it knows.

    It is kept off tensors whose sizes are not known to fit: two unknown dimensions are equal for onnx-ir.

    Exporters add ``Where(IsNaN(p), 0, p)`` for rows that are masked all over: their softmax is NaN, and becomes 0.
    onnxruntime's attention leaves NaN. Where a mask has finite values only, such a row has no NaN, and both are the
    same. Where it has -inf, such rows become 0 behind attention:
    ``SDPA(q, k, v, mask) -> Where(ReduceMax(mask) < lowest, 0, SDPA(q, k, v, Max(mask, lowest)))``.

    It is also kept off attention with a mask that has neither guard nor scale, as in T5: 384 wide, batch 8 x 128, it
    was 5 to 8 % slower fused.
    """
    import onnx_ir as ir
    from onnxscript.rewriter import pattern
    from onnxscript.rewriter.ort_fusions.sdpa import SDPA

    class Guarded(SDPA):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def check(self, context: Any, *, mask: ir.Value | None, **rest: Any) -> Any:
            query = rest["query"]
            for values in (query, rest["key"], rest["value"]):
                require(known(values) and _is_sized(values), "the sizes of the heads are not known")
            require_kernel(query)
            found = super().check(context, mask=mask, **rest)
            require(isinstance(query.shape[1], int), "the number of heads is not known")
            require(_turned(context.nodes), "the keys are turned in an unknown way")
            scores = [*query.shape[:3], rest["value"].shape[2]]
            require(mask is None or fits(mask, scores), "the mask is not known to fit the scores")
            guarded = any(node.op_type == "IsNaN" for node in context.nodes)
            slow = self._scale == 1.0 and mask is not None and not guarded
            require(not slow, "with a mask, but neither scale nor guard, it is slower")
            self._open = guarded and mask is not None and not np.isfinite(largest(mask))
            plain = not self._open or np.isfinite(highest(mask))
            require(plain, "the mask may be infinite or NaN, and NaN is taken care of")
            deep = self._open and largest_finite(mask) > np.finfo(_kind(mask)).max / 2
            require(not deep, "the mask may hold both -inf and numbers as low as what stands for it")
            self._opset = context.model.opset_imports.get("", 1)
            return found

        def rewrite(self, op: Any, mask: ir.Value | None, **rest: Any) -> Any:
            if not self._open or mask is None:
                return super().rewrite(op, mask=mask, **rest)
            lowest, zero = _numbers(op, mask)
            axes = {} if self._opset >= AXES_AS_INPUT else {"axes": [-1]}
            given = [] if axes else [op.Constant(value_ints=[-1])]
            dead = op.Less(op.ReduceMax(mask, *given, keepdims=1, **axes), lowest)
            finite = op.Max(mask, lowest)
            dead.shape, dead.type = ir.Shape([*mask.shape[:-1], 1]), ir.TensorType(ir.DataType.BOOL)
            heads = super().rewrite(op, mask=shaped(finite, mask.shape, mask), **rest)
            shape = [*rest["query"].shape[:3], rest["value"].shape[3]]
            return op.Where(dead, zero, shaped(heads, shape, rest["query"]))

    return pattern.RewriteRuleSet([Guarded.rule()])


def _numbers(op: Any, like: ir.Value) -> list[Any]:
    """The lowest number of a dtype, and 0."""
    import onnx_ir as ir

    kind = _kind(like)
    return [op.Constant(value=ir.tensor(np.array(each, kind))) for each in (np.finfo(kind).min, 0)]


def _kind(value: ir.Value | None) -> np.dtype[Any]:
    return np.dtype(np.float32 if value is None or value.dtype is None else value.dtype.numpy())


def _is_sized(heads: ir.Value | None) -> bool:
    """Whether they are not reshaped to sizes that are read from data, of which inference only guesses that they fit."""
    node = None if heads is None else heads.producer()
    while node is not None and node.op_type in ("Transpose", "Reshape"):
        if node.op_type == "Reshape" and not _from_sizes(node.inputs[1]):
            return False
        node = node.inputs[0].producer()
    return True


def _from_sizes(value: ir.Value | None) -> bool:
    """Whether it is computed from constants and the sizes of tensors alone."""
    if value is None or constant(value) is not None:
        return True
    node = value.producer()
    if node is None or node.op_type in ("Shape", "Size"):
        return node is not None
    return all(_from_sizes(each) for each in node.inputs)


def _turned(nodes: Any) -> bool:
    """Whether keys that go through [heads, S, D] come out of it as [.., D, S]."""
    for node in nodes:
        if node.op_type == "Transpose" and tuple(node.attributes["perm"].as_ints()) == (0, 2, 1):
            flat = node.inputs[0]
            before, after = flat.producer().inputs[0], next(iter(node.outputs[0].uses())).node.outputs[0]
            if not (known(flat) and known(before) and known(after)):
                return False
            if flat.shape[1:] != before.shape[2:] or list(after.shape[2:]) != list(reversed(before.shape[2:])):
                return False
            if len(before.shape) != 4 or list(after.shape[:2]) != list(before.shape[:2]):
                return False
    return True


@cache
def mha_rules() -> tuple[Any, Any]:
    """onnxscript's rules, first with keys and values of the past, then without.

    They are kept off a Reshape behind the heads that does not join them, and off keys of the other format. Those for
    rotary embedding lose its attributes; ``fuse_rotary`` brings it in front of the heads, where they are not needed.
    """
    from onnxscript.rewriter import pattern
    from onnxscript.rewriter.ort_fusions.mha import MultiHeadAttention
    from onnxscript.rewriter.ort_fusions.mha_scale import FuseMHAScale

    class Joined(MultiHeadAttention):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def check(self, context: Any, attention_reshaped: ir.Value, query_BSHDh: ir.Value, **rest: Any) -> Any:
            joined, heads = attention_reshaped.shape, query_BSHDh.shape
            require(known(attention_reshaped) and known(query_BSHDh), "the sizes of the heads are not known")
            require(len(joined) == 3 and list(joined[:2]) == list(heads[:2]), "the heads are not joined")
            if self._is_cross_attention:
                form = rest["sdpa_output"].producer().attributes.get_string("key_format")
                require(form == "BHSd", "the keys have another format")
            given = {"attention_reshaped": attention_reshaped, "query_BSHDh": query_BSHDh}
            return super().check(context, **given, **rest)

    class Scaled(FuseMHAScale):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def check(self, context: Any, scale: ir.Value, query: ir.Value, mha_output: ir.Value, **rest: Any) -> Any:
            node = mha_output.producer()
            plain = node is not None and len(node.inputs) > 2 and all(node.inputs[1:3]) and not any(node.inputs[3:4])
            require(plain, "a scale of more than the queries")
            require(known(query) and isinstance(query.shape[-1], int), "the size of the heads is not known")
            given = {"scale": scale, "query": query, "mha_output": mha_output}
            return super().check(context, **given, **rest)

    def rule(past: bool, cross: bool) -> Any:
        name = f"MHA, past: {past}, cross: {cross}"
        return Joined.rule(name, is_rotary=False, has_past_present=past, is_cross_attention=cross)

    return (
        pattern.RewriteRuleSet([rule(True, False)]),
        pattern.RewriteRuleSet([rule(False, False), rule(False, True), Scaled.rule()]),
    )
