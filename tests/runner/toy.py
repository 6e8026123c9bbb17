"""The network that runners are tried on, and what it computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from optkit.data.dataset import Array
from tests.helpers import normal, onnx_model

W, B = normal(4, 3, seed=1), normal(3, seed=2)
X = normal(5, 4, seed=3)


def mlp(outputs: str = "float[batch,3] y") -> onnx.ModelProto:
    """``y = relu(x W) + B`` for x [batch, 4]; ``h = x W`` can be an output as well."""
    text = f"mlp (float[batch,4] x) => ({outputs}) {{ h = MatMul(x, w) r = Relu(h) y = Add(r, b) }}"
    return onnx_model(text, {"w": W, "b": B})


def expected(x: Array = X) -> Array:
    """The output y."""
    found: Array = np.maximum(x @ W, 0) + B
    return found


def save_apart(model: onnx.ModelProto, path: Path) -> None:
    """With the weights in ``w.data`` beside it."""
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=0)
