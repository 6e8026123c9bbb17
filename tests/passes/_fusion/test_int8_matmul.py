from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from optkit.model.model import Model
from optkit.passes._fusion.family import Fired
from optkit.passes._fusion.int8_matmul import fuse_int8_matmul
from tests.helpers import fresh_dir, normal, onnx_model, ops_of
from tests.passes._fusion.rewritten import assert_same, rewritten

X = {"x": normal(2, 3, 8, seed=1)}
WHOLE = np.random.default_rng(2).integers(-127, 128, (8, 4))
HELD: dict[str, Any] = {
    "xs": np.float32(0.03),
    "xz": np.uint8(117),
    "xz8": np.int8(-11),
    "U": (WHOLE + 128).astype(np.uint8),
    "W": WHOLE.astype(np.int8),
    "ws": np.linspace(0.001, 0.004, 4, dtype=np.float32),
    "wz": np.zeros(4, np.int8),
    "one": np.float32(0.002),
    "b": normal(4, seed=3),
    "wide": WHOLE.astype(np.int16),
    "widez": np.zeros(4, np.int16),
    "rows": np.linspace(0.001, 0.004, 8, dtype=np.float32),
    "rowz": np.zeros(8, np.int8),
    "matrix": normal(3, 4, seed=4),
}
DATA = "q = QuantizeLinear(x, xs, xz) xd = DequantizeLinear(q, xs, xz)"
WEIGHTS = "wd = DequantizeLinear<axis = 1>(W, ws, wz)"


def model(body: str, more: str = "") -> onnx.ModelProto:
    text = f"g (float[n,3,8] x) => (float[n,3,4] y{more}) {{ {body} }}"
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return onnx_model(text, {name: array for name, array in HELD.items() if name in words}, opset=21)


def optimized(model: Model) -> dict[str, int]:
    """Operators that onnxruntime runs on the CPU."""
    options, path = ort.SessionOptions(), Path(fresh_dir()) / "optimized.onnx"
    options.log_severity_level, options.optimized_model_filepath = 3, str(path)
    ort.InferenceSession(model.path, options, providers=["CPUExecutionProvider"])
    return ops_of(path)


@pytest.mark.parametrize("addition", ["y = Add(m, b)", "y = Add(b, m)"])
@pytest.mark.parametrize(
    "weights", [WEIGHTS, "wd = DequantizeLinear(W, one)", "wd = DequantizeLinear<axis = -1>(W, ws)"]
)
def test_one_kernel_takes_the_bias(weights: str, addition: str) -> None:
    before, after, fired = rewritten(fuse_int8_matmul, model(f"{DATA} {weights} m = MatMul(xd, wd) {addition}"))
    assert fired == Fired(1)
    kernel = "com.microsoft.MatMulIntegerToFloat"
    assert optimized(before) == {"QuantizeLinear": 1, kernel: 1, "Add": 1}
    assert optimized(after) == ops_of(after) == {"QuantizeLinear": 1, kernel: 1}
    assert_same(after, before, X, 1e-6)


def test_two_products_share_their_data() -> None:
    body = f"{DATA} {WEIGHTS} m = MatMul(xd, wd) y = Add(m, b) k = MatMul(xd, wd) z = Add(k, b)"
    before, after, fired = rewritten(fuse_int8_matmul, model(body, ", float[n,3,4] z"))
    assert fired == Fired(2)
    assert ops_of(after) == {"QuantizeLinear": 1, "com.microsoft.MatMulIntegerToFloat": 2}
    assert_same(after, before, X, 1e-6)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"{DATA} {WEIGHTS} m = MatMul(xd, wd) y = Add(m, matrix)", "what is added to it is no constant float32 bias"),
        (
            f"{DATA} wd = DequantizeLinear<axis = 0>(W, rows, rowz) m = MatMul(xd, wd) y = Add(m, b)",
            "the scales of its weights are not one for each column",
        ),
        (
            f"{DATA} wd = DequantizeLinear<axis = 1>(wide, ws, widez) m = MatMul(xd, wd) y = Add(m, b)",
            "its integers have more than 8 bits, or fewer",
        ),
        (
            f"{DATA} w = Identity(W) wd = DequantizeLinear<axis = 1>(w, ws, wz) m = MatMul(xd, wd) y = Add(m, b)",
            "its weights are computed, or no matrix",
        ),
        (
            f"{DATA.replace('xz', 'xz8')} wd = DequantizeLinear(U, one) m = MatMul(xd, wd) y = Add(m, b)",
            "no kernel multiplies int8 data by uint8 weights",
        ),
    ],
)
def test_what_the_kernel_does_not_take_stays(body: str, reason: str) -> None:
    before, after, fired = rewritten(fuse_int8_matmul, model(body))
    assert (fired.count, [why for _, why in fired.refused]) == (0, [reason])
    assert ops_of(after) == ops_of(before)


@pytest.mark.parametrize(
    "body",
    [
        f"{WEIGHTS} m = MatMul(x, wd) y = Add(m, b)",
        f"{DATA} {WEIGHTS} m = MatMul(xd, wd) a = Add(m, b) y = Add(a, m)",
    ],
)
def test_what_is_alike_by_chance_is_passed_over(body: str) -> None:
    _, _, fired = rewritten(fuse_int8_matmul, model(body))
    assert fired == Fired(0)
