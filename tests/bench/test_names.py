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
    text = """g (float[1,2,8,8] x) => (float[1,4,8,8] y, float[1,4,7,7] p) {
        [conv] c = Conv <pads = [1, 1, 1, 1]> (x, w)
        [act] r = Relu(c)
        [pick] y = Identity(r)
        [pool] p = MaxPool <kernel_shape = [2, 2]> (r)
    }"""
    onnx.save(onnx_model(text, {"w": normal(4, 2, 3, 3)}), tmp_path / "m.onnx")
    operators = {"ReorderOutput_token_3": "ReorderOutput", "act": "Relu", "p_nchwc": "MaxPool"}
    names = ["r_nchwc", "c_nchwc", "act", "conv_quant", "ReorderOutput_token_3", "y_nchwc", "p_nchwc"]
    assert origins(tmp_path / "m.onnx", {name: operators.get(name, "Conv") for name in names}) == {
        "r_nchwc": "conv",
        "c_nchwc": "conv",
        "act": "act",
        "conv_quant": "conv",
        "ReorderOutput_token_3": "",
        "y_nchwc": "conv",
        "p_nchwc": "pool",
    }


def test_quantizers_names_lead_back_and_onnxruntimes_own_do_not(tmp_path: Path):
    text = """g (float[1,4] x) => (float[1,4] y) {
        [score_quant] h = MatMul(x, w)
        [Relu_7] r = Relu(h)
        y = Neg(r)
    }"""
    onnx.save(onnx_model(text, {"w": normal(4, 4)}), tmp_path / "m.onnx")
    names = ["score_quant", "score_quant_token_2", "Relu_7", "Neg_2", "BiasGelu"]
    assert origins(tmp_path / "m.onnx", dict.fromkeys(names, "")) == {
        "score_quant": "score",
        "score_quant_token_2": "score",
        "Relu_7": "Relu_7",
        "Neg_2": "",
        "BiasGelu": "",
    }
