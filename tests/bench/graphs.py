"""Small quantized graphs."""

from __future__ import annotations

import numpy as np
import onnx

from optkit.model.model import Model
from tests.helpers import normal, onnx_model, open_any


def floats() -> Model:
    return open_any(onnx_model("g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }", {"w": normal(4, 4)}))


def dynamic_matmul(size: int) -> onnx.ModelProto:
    text = f"""g (float[N,{size}] x) => (int32[N,{size}] y) {{
        q, s, z = DynamicQuantizeLinear(x)
        y = MatMulInteger(q, w, z)
    }}"""
    return onnx_model(text, {"w": np.ones((size, size), np.int8)})


def dynamic_conv() -> onnx.ModelProto:
    text = """g (float[N,1,8,8] x) => (int32[N,2,6,6] y) {
        q, s, z = DynamicQuantizeLinear(x)
        y = ConvInteger(q, w, z)
    }"""
    return onnx_model(text, {"w": np.ones((2, 1, 3, 3), np.int8)})


def qdq(
    body: str, zero: type[np.generic] = np.uint8, shape: str = "N,4", weight: tuple[int, ...] = (4, 4)
) -> onnx.ModelProto:
    """A graph from ``x`` to ``y``, with scale ``s``, zero points ``z`` (activations) and ``zw``, int8 weights ``w``."""
    weights = {"s": np.float32(0.1), "z": zero(0), "zw": np.int8(0), "w": np.ones(weight, np.int8)}
    arrays = {name: np.asarray(value) for name, value in weights.items()}
    return onnx_model(f"g (float[{shape}] x) => (float[{shape}] y) {{ {body} }}", arrays)


MERGED = """
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    wd = DequantizeLinear(w, s, zw)
    m = MatMul(xd, wd)
    mq = QuantizeLinear(m, s, z)
    y = DequantizeLinear(mq, s, z)
"""


def nbits(level: int) -> onnx.ModelProto:
    text = f"""g (float[N,32] x) => (float[N,8] y) {{
        y = com.microsoft.MatMulNBits <K=32, N=8, bits=4, block_size=32, accuracy_level={level}> (x, w, s)
    }}"""
    arrays = {"w": np.zeros((8, 1, 16), np.uint8), "s": np.ones(8, np.float32)}
    return onnx_model(text, arrays, contrib=True)
