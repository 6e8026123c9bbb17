"""A small convolutional network and its layers as ``QuantizeStatic`` sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto

from optkit.data.dataset import Arrays
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.passes._base import Context, Outcome
from optkit.passes._quant.layered import Layered
from optkit.passes.quantize_static import QuantizeStatic
from tests.helpers import Data, normal, onnx_model, run_pass

CNN = """cnn (float[batch,3,16,16] x) => (float[batch,10] y) {
    [conv1] c1 = Conv<pads = [1,1,1,1]>(x, w1, b1)
    [relu1] r1 = Relu(c1)
    [pool1] p1 = MaxPool<kernel_shape = [2,2], strides = [2,2]>(r1)
    [conv2] c2 = Conv<pads = [1,1,1,1]>(p1, w2)
    [skip] s = Add(c2, p1)
    [relu2] r2 = Relu(s)
    [pool2] g = GlobalAveragePool(r2)
    [flat] f = Flatten(g)
    [head] l = Gemm(f, w3, b3)
    [soft] y = Softmax(l)
}"""
WEIGHTS = {
    "w1": normal(8, 3, 3, 3, seed=1, scale=0.3),
    "b1": normal(8, seed=2, scale=0.1),
    "w2": normal(8, 8, 3, 3, seed=3, scale=0.1),
    "w3": normal(8, 10, seed=5, scale=3),
    "b3": normal(10, seed=6, scale=0.1),
}
X: Arrays = {"x": normal(64, 3, 16, 16, seed=7)}
DATA: Data = {"calibration": X}
FRESH = {"x": normal(16, 3, 16, 16, seed=8)}


def cnn(opset: int = 20) -> ModelProto:
    return onnx_model(CNN, WEIGHTS, opset=opset)


def layered_of(
    pass_: QuantizeStatic, model: Model | ModelProto, data: Data = DATA, target: Target | None = None
) -> Layered:
    """What ``pass_`` would build from, in the pipeline's own context."""
    found: list[Layered] = []

    class Seen(QuantizeStatic):
        """Looks, and builds nothing."""

        def __call__(self, model: Model, ctx: Context) -> Outcome:
            found.append(self.layered(model, ctx))
            return Outcome(model, 0)

    run_pass(Seen(**pass_.model_dump()), model, data=data, target=target)
    return found[0]


def array_of(tensors: Any, name: str) -> np.ndarray[Any, Any]:
    """The initializer of a name."""
    from onnx import numpy_helper

    return next(numpy_helper.to_array(tensor) for tensor in tensors if tensor.name == name)
