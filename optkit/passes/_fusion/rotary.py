"""Rotary position embedding as one node."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from optkit.passes._fusion.apply import apply_rules, require, require_kernel, shaped, together
from optkit.passes._fusion.family import Fired
from optkit.passes._fusion.fold import merge_repeated
from optkit.passes._fusion.heads import SLICES_OF_SHAPES, settle_sizes
from optkit.passes._fusion.masks import known
from optkit.passes._fusion.shapes import know_shapes

if TYPE_CHECKING:
    import onnx_ir as ir


def fuse_rotary(model: ir.Model) -> Fired:
    """``x * Cos(f) + Concat(-x[D/2:], x[:D/2]) * Sin(f) -> RotaryEmbedding(x, positions, Cos(f), Sin(f))``.

    It is done before the rows are split into heads, so that attention behind it is recognized as any other.
    """
    if not any(node.op_type == "Cos" for node in model.graph.all_nodes()):
        return Fired()
    settle_sizes(model)
    merge_repeated(model)
    fired = apply_rules(model, _whole_rules())
    if not fired.count:
        return fired
    merge_repeated(model)
    partial = apply_rules(model, _partial_rules())
    know_shapes(model)
    _rows_rules().apply_to_model(model)
    know_shapes(model)
    return together(fired, Fired(0, partial.refused))


@cache
def _whole_rules() -> Any:
    """The form that onnxscript's rule for opset 23 knows, for onnxruntime's own operator, which every opset has.

    Its tables of cosines have a row for each token. Where all samples have the same angles f [1, S, D/2], the position
    is that in the sample: ``positions`` = [0], where to start. Otherwise, f [B, S, D/2] gives B * S rows, numbered
    through. onnxscript's rule for this operator makes tables from the angles of 0, 1, ... and looks positions up in
    them: it needs constant frequencies in a form that transformers no longer has, and positions that are not negative.
    """
    from onnxscript.rewriter import pattern
    from onnxscript.rewriter.rules.fusion._rotary_embedding import RotaryEmbedding23Fusion

    class Whole(RotaryEmbedding23Fusion):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def check(self, context: Any, x: ir.Value, freqs: ir.Value, **rest: Any) -> Any:
            found = super().check(context, x=x, freqs=freqs, **rest)
            if not found:
                return found
            require_kernel(x)
            require(known(x) and known(freqs) and len(freqs.shape) == 3, "the sizes of the angles are not known")
            (batch, _, tokens, width), angles = x.shape, freqs.shape
            held = freqs.dtype == x.dtype and angles[1] == tokens and 2 * angles[2] == width
            require(held and angles[0] in (1, batch), "there is not one angle for each token")
            require(context.model.opset_imports.get("", 1) >= SLICES_OF_SHAPES, f"below opset {SLICES_OF_SHAPES}")
            return found

        def rewrite(self, op: Any, x: ir.Value, freqs: ir.Value, **_: Any) -> Any:
            heads, width = x.shape[1], freqs.shape[2]
            rows = op.Reshape(freqs, op.Constant(value_ints=[-1, width]))
            tables = op.Cos(rows), op.Sin(rows)
            start = op.Constant(value_ints=[0])
            places = start if freqs.shape[0] == 1 else _numbered(op, rows, freqs)
            return op.RotaryEmbedding(x, places, *tables, num_heads=heads, _domain="com.microsoft")

    return pattern.RewriteRuleSet([Whole.rule()])


def _numbered(op: Any, rows: Any, freqs: ir.Value) -> Any:
    """0, 1, ... of shape [B, S], for a table that has all rows of [B, S, D/2] below each other."""
    count = op.Squeeze(op.Shape(rows, start=0, end=1))
    numbers = op.Range(op.Constant(value_int=0), count, op.Constant(value_int=1))
    return op.Reshape(numbers, op.Shape(freqs, start=0, end=2))


@cache
def _partial_rules() -> Any:
    """onnxscript's rule: ``Concat(RotaryEmbedding(x[:R]), x[R:]) -> RotaryEmbedding(x, rotary_embedding_dim=R)``."""
    from onnxscript.rewriter import pattern
    from onnxscript.rewriter.ort_fusions.rotary_embedding import PartialRotaryEmbeddingFusion

    class Partial(PartialRotaryEmbeddingFusion):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def check(self, context: Any, x: ir.Value, end1: ir.Value, **rest: Any) -> Any:
            held = end1.const_value
            require(held is not None and held.size == 1 and held.numpy().item() > 0, "counted from the end")
            return super().check(context, x=x, end1=end1, **rest)

    return pattern.RewriteRuleSet([Partial.rule()])


@cache
def _rows_rules() -> Any:
    """``RotaryEmbedding(Transpose(x)) -> Transpose(Reshape(RotaryEmbedding(Reshape(x))))``, x [B, S, heads, D]."""
    from onnxscript.rewriter import pattern

    class Rows(pattern.RewriteRuleClassBase):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def pattern(self, op: Any, x: Any, places: Any, cos: Any, sin: Any) -> Any:
            heads = op.Transpose(x, perm=[0, 2, 1, 3])
            return op.RotaryEmbedding(heads, places, cos, sin, _domain="com.microsoft", _outputs=["turned"])

        def check(self, context: Any, x: ir.Value, turned: ir.Value, **_: Any) -> Any:
            del context
            node = turned.producer()
            heads = None if node is None else node.attributes.get_int("num_heads", 0)
            require(x.shape is not None and len(x.shape) == 4, "")
            sized = isinstance(x.shape[3], int) and x.shape[2] == heads
            require(sized, "")
            return pattern.MatchResult()

        def rewrite(self, op: Any, x: ir.Value, turned: ir.Value, **tables: ir.Value) -> Any:
            batch, tokens, heads, size = x.shape
            wide, split = [batch, tokens, heads * size], [batch, tokens, heads, size]
            rows = shaped(op.Reshape(x, op.Constant(value_ints=[0, 0, heads * size])), wide, x)
            inputs, attributes = (rows, *tables.values()), turned.producer().attributes
            done = shaped(op.RotaryEmbedding(*inputs, **attributes, _domain="com.microsoft"), wide, x)
            apart = shaped(op.Reshape(done, op.Constant(value_ints=[0, 0, heads, size])), split, x)
            return op.Transpose(apart, perm=[0, 2, 1, 3])

    return pattern.RewriteRuleSet([Rows.rule()])
