"""Attention whose projections run in integers.

    com.microsoft.Attention(x, W, b, mask, past)
      ->  com.microsoft.QAttention(xq, int8 W, b, xs, ws, mask, xz, wz, past)

with  xq, xs, xz = DynamicQuantizeLinear(x)  and wz = 0, as a tensor because the kernel insists on one.
The products of queries, keys and values stay in float.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optkit.passes._ir import constant
from optkit.passes._quant.integer import Kind, Parts, Refusal, float_weights, optional_input, replace

if TYPE_CHECKING:
    import onnx_ir as ir

UNKNOWN = {"qkv_hidden_sizes": "sizes", "do_rotary": "rotations", "past_present_share_buffer": "a shared buffer"}
"""Attributes that the integer kernel does not take, where they are not 0."""
BIAS, MASK, PAST, SCORES, BUFFER = 2, 3, 4, 5, 6
"""Inputs of Attention."""


def _check(node: ir.Node) -> None:
    if float_weights(node.inputs[1]).ndim != 2:
        raise Refusal("its weights are no matrix")
    if optional_input(node, SCORES) is not None or optional_input(node, BUFFER) is not None:
        raise Refusal("it adds to the scores or keeps its past in place, which the integer kernel cannot do")
    for name, what in UNKNOWN.items():
        if name in node.attributes and node.attributes[name].value:
            raise Refusal(f"its queries, keys and values have {what} of their own ({name})")


def _rewrite(node: ir.Node, parts: Parts) -> str:
    import onnx_ir as ir

    source = node.inputs[1]
    assert source is not None  # _check looked
    weights, scales = parts.weights(source, "Attention", lambda: parts.rounding.round(float_weights(source), -1))
    data, data_scale, data_zero = parts.data(node)
    held, rounded = constant(scales), constant(weights)
    assert held is not None and rounded is not None  # made above
    zeros = parts.initializer(f"{source.name}_zero", np.zeros(held.shape, np.int8))
    bias = optional_input(node, BIAS) or parts.initializer(
        f"{source.name}_bias", np.zeros(rounded.shape[1], np.float32)
    )
    mask, past = optional_input(node, MASK), optional_input(node, PAST)
    made = ir.node(
        "QAttention",
        [data, weights, bias, data_scale, scales, mask, data_zero, zeros, past],
        {name: attribute.value for name, attribute in node.attributes.items() if name not in UNKNOWN},
        domain="com.microsoft",
        num_outputs=len(node.outputs),
        name=f"{node.name or node.outputs[0].name}_quant",
    )
    replace(node, [made])
    parts.declare_contrib()
    return f"Attention -> QAttention, weights {list(weights.shape or ())}"


ATTENTION = Kind(check=_check, rewrite=_rewrite)
