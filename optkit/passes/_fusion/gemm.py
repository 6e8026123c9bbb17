"""Linear layers of tensors with more than two dimensions, as products that keep these."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from optkit.passes._fusion.apply import require
from optkit.passes._fusion.masks import known
from optkit.passes._ir import constant

if TYPE_CHECKING:
    import onnx_ir as ir


@cache
def gemm_rules() -> Any:
    """``Reshape(Gemm(Reshape(x, [-1, K]), W, b)) -> Add(MatMul(x, W), b)``: the form that attention is recognized in.

    onnxslim writes the first where it knows all sizes, with W transposed, which onnxscript's own rule overlooks.
    """
    from onnxscript.rewriter import pattern

    class Rows(pattern.RewriteRuleClassBase):  # type: ignore[misc]  # onnxscript is not followed by mypy
        def pattern(self, op: Any, x: Any, sizes: Any, shape: Any) -> Any:
            gemm = op.Gemm(op.Reshape(x, sizes), _allow_other_inputs=True, _outputs=["gemm"])
            return op.Reshape(gemm, shape, _outputs=["result"])

        def check(self, context: Any, x: ir.Value, gemm: ir.Value, result: ir.Value, **_: Any) -> Any:
            del context
            node: Any = gemm.producer()
            weights, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
            require(not node.attributes.get_int("transA", 0), "")
            require(all(node.attributes.get_float(name, 1.0) == 1 for name in ("alpha", "beta")), "")
            turned = node.attributes.get_int("transB", 0)
            matrix: Any = constant(weights)
            require(matrix is not None and (not turned or len(weights.uses()) == 1), "")
            inner, width = matrix.T.shape if turned else matrix.shape
            require(known(x) and known(result) and x.shape[-1] == inner, "")
            require(list(result.shape) == [*x.shape[:-1], width], "")
            require(bias is None or (known(bias) and list(bias.shape) in ([width], [1, width], [1], [])), "")
            self._matrix = np.ascontiguousarray(matrix.T) if turned else None
            return pattern.MatchResult()

        def rewrite(self, op: Any, x: ir.Value, gemm: ir.Value, **_: Any) -> Any:
            import onnx_ir as ir

            weights, *bias = gemm.producer().inputs[1:]
            if self._matrix is not None:
                weights = op.initializer(ir.tensor(self._matrix), f"{gemm.name}_turned")
            product = op.MatMul(x, weights)
            return op.Add(product, *bias) if any(bias) else product

    return pattern.RewriteRuleSet([Rows.rule()])
