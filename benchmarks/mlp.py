"""An ONNX MLP of any size, written tensor by tensor: external data above 1.5 GB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper


def write_mlp(path: Path, *, width: int, layers: int) -> Path:
    """``layers`` times MatMul + Add + Relu of ``width`` x ``width`` float32 weights; 4 * width**2 * layers bytes."""
    external = 4 * width * width * layers > 1_500_000_000
    random = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    data = path.with_name(path.name + ".data")
    with data.open("wb") as file:
        for layer in range(layers):
            matrix = random.standard_normal((width, width), dtype=np.float32) / np.float32(np.sqrt(width / 2))
            weights.append(_tensor(f"w{layer}", matrix, file if external else None, data.name))
            weights.append(_tensor(f"b{layer}", np.zeros(width, np.float32), None, ""))
            nodes += [
                helper.make_node("MatMul", [value, f"w{layer}"], [f"m{layer}"], f"matmul{layer}"),
                helper.make_node("Add", [f"m{layer}", f"b{layer}"], [f"a{layer}"], f"add{layer}"),
                helper.make_node("Relu", [f"a{layer}"], [f"r{layer}"], f"relu{layer}"),
            ]
            value = f"r{layer}"
    if not external:
        data.unlink()
    shape = ["batch", width]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def _tensor(name, array, file, location):
    if file is None:
        return onnx.numpy_helper.from_array(array, name)
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape, data_location=TensorProto.EXTERNAL)
    offset = file.tell()
    file.write(array.tobytes())
    for key, value in (("location", location), ("offset", offset), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
