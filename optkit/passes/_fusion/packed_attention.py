"""Attention with its projections inside."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from optkit.passes._fusion.apply import apply_rules, require
from optkit.passes._fusion.family import Fired
from optkit.passes._fusion.masks import known
from optkit.passes._fusion.shapes import know_shapes

if TYPE_CHECKING:
    import onnx_ir as ir

KEPT = frozenset({"num_heads", "scale"})
"""Attributes of MultiHeadAttention that onnxscript's rules hand on; they would lose others."""


def fuse_packed_attention(model: ir.Model) -> Fired:
    """``MultiHeadAttention(x Wq + bq, x Wk + bk, x Wv + bv) -> Attention(x, [Wq Wk Wv], [bq bk bv])``.

    First the biases move into MultiHeadAttention, and stay there where queries, keys and values are not projections of
    one tensor.
    """
    know_shapes(model)
    biased = apply_rules(model, _bias_rules())
    know_shapes(model)
    packed = apply_rules(model, _attention_rules())
    return Fired(max(biased.count, packed.count), biased.refused + packed.refused)


@cache
def _bias_rules() -> Any:
    """onnxscript's rule, kept off sums with anything but a bias, of which it would make one."""
    from onnxscript.rewriter import pattern
    from onnxscript.rewriter.ort_fusions.mha_bias import FuseBiasMHA

    class Rows(FuseBiasMHA):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def check(self, context: Any, **rest: Any) -> Any:
            _require_kept(context.root)
            biased = [name for name in "qkv" if rest.get(f"has_{name}_bias")]
            require(bool(biased), "")
            for name, what in (("q", "query"), ("k", "key"), ("v", "value")):
                bias, product = rest.get(f"{name}_bias"), rest[f"{what}_matmul"]
                require(known(product), f"the size of the {what} is not known")
                wanted = [product.shape[-1]]
                fits = name not in biased or (bias is not None and known(bias) and list(bias.shape) == wanted)
                require(fits, f"the {what} is a sum with more than a bias")
            return super().check(context, **rest)

    return pattern.RewriteRuleSet([Rows.rule()], commute=True)


@cache
def _attention_rules() -> Any:
    """onnxscript's rules without past keys; weights as three tensors, or as one that is sliced."""
    from onnxscript.rewriter import pattern
    from onnxscript.rewriter.ort_fusions.attention import AttentionFusion

    class Plain(AttentionFusion):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def check(self, context: Any, input: ir.Value, mha_output: ir.Value, **rest: Any) -> Any:
            _require_kept(mha_output.producer())
            require(known(input), "the size of the input is not known")
            weights = [rest[name] for name in ("qkv_weight", "q_mul", "k_mul", "v_mul") if rest.get(name) is not None]
            require(all(each.const_value is not None for each in weights), "the weights are computed")
            widths = [each.shape[-1] for each in weights]
            require(widths[:1] == widths[1:2] or len(widths) == 1, "queries and keys differ in width")
            return super().check(context, input=input, mha_output=mha_output, **rest)

    return pattern.RewriteRuleSet(
        [Plain.rule(f"attention, sliced: {sliced}", has_past=False, no_slice=not sliced) for sliced in (True, False)]
    )


def _require_kept(node: ir.Node | None) -> None:
    require(node is not None and node.attributes.keys() <= KEPT, "the attention has attributes that would be lost")
