"""Weights so small that computing with them is slow.

Numbers below 1.2e-38 (subnormal) take a processor's multiplications up to a hundred times as long. Training with weight
decay leaves them behind in channels that nothing needs: a text detector of PP-OCR has 256,000 of them, which took more
than half of its time. Engines other than onnxruntime compute with them as zeros anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optkit.passes._fusion.family import Fired

if TYPE_CHECKING:
    import onnx_ir as ir

SMALLEST = 1e-30
"""Absolute values below this become zeros: times an activation below 1e-8 they are subnormal. A sum in float32 feels
them only if all of it is below 1e-22."""
WEIGHTS = {
    **dict.fromkeys(("MatMul", "Gemm"), (0, 1, 2)),
    **dict.fromkeys(("Conv", "ConvTranspose"), (1, 2)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2, 3)),
}
"""Operator -> the inputs that it multiplies and adds up. Elsewhere a tiny number may be there to keep a logarithm or a
quotient finite."""


def flush_subnormal(model: ir.Model) -> Fired:
    """float32 weights with values below ``SMALLEST`` -> the same with zeros there; counted are the weights changed."""
    import onnx_ir as ir

    count = 0
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype != ir.DataType.FLOAT or not _is_weight(value):
                continue
            array = tensor.numpy()
            small = (np.abs(array) < SMALLEST) & (array != 0)
            if small.any():
                value.const_value = ir.tensor(np.where(small, np.float32(0), array), name=value.name)
                count += 1
    return Fired(count)


def _is_weight(value: ir.Value) -> bool:
    """Whether all that read it multiply it with activations and add up, or add it to such a sum."""
    if value.is_graph_output():
        return False
    return all(not use.node.domain and use.idx in WEIGHTS.get(use.node.op_type, ()) for use in value.uses())
