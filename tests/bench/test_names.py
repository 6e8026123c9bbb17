"""Names that quantizers and onnxruntime give lead back to the model's own nodes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from optkit.bench.names import base_name, origins
from tests.helpers import normal, onnx_model


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("node_MatMul_91_quant", "node_MatMul_91"),
        ("node_MatMul_91", "node_MatMul_91"),
        ("layer_norm_quantize", "layer_norm"),
        ("node_Conv_881_token_12", "node_Conv_881"),
        ("relu_1_nchwc", "relu_1"),
        ("fused node_linear", "node_linear"),
        ("/stft/Slice_3/GatherSliceToSplitFusion", "/stft/Slice_3"),
        ("x_DequantizeLinear", "x"),
        ("conv1_quant_scales_mul", "conv1"),
        ("_quant", "_quant"),
        ("", ""),
    ],
)
def test_what_was_added_to_a_name(name: str, expected: str):
    assert base_name(name) == expected


def test_a_tensors_name_leads_to_the_product_it_came_from(tmp_path: Path):
    text = """g (float[1,2,8,8] x) => (float[1,4,8,8] y) {
        [conv] c = Conv <pads = [1, 1, 1, 1]> (x, w)
        [act] r = Relu(c)
        [pick] y = Identity(r)
    }"""
    onnx.save(onnx_model(text, {"w": normal(4, 2, 3, 3)}), tmp_path / "m.onnx")
    names = ["r_nchwc", "c_nchwc", "act", "conv_quant", "ReorderOutput_token_3", "y_nchwc"]
    assert origins(tmp_path / "m.onnx", names) == {
        "r_nchwc": "conv",
        "c_nchwc": "conv",
        "act": "act",
        "conv_quant": "conv",
        "ReorderOutput_token_3": "ReorderOutput",
        "y_nchwc": "conv",
    }
