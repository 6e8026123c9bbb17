from __future__ import annotations

from collections import Counter

import pytest

from optkit.passes._quant.select import already_quantized, nothing

INTEGER = ["DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "com.microsoft.MatMulIntegerToFloat"]
QDQ = ["QuantizeLinear", "DequantizeLinear", "com.microsoft.QuantizeLinear", "QLinearConv", "com.microsoft.QLinearAdd"]
CONTRIB = ["DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "QAttention", "GatherBlockQuantized", "QGemm", "MatMulNBits"]


@pytest.mark.parametrize("kind", [*INTEGER, *QDQ, *[f"com.microsoft.{kind}" for kind in CONTRIB]])
def test_knows_every_operator_of_quantized_models(kind):
    told = f"the model holds quantized operators already: 3 {kind.split('.')[-1]}"
    assert already_quantized(Counter({"Add": 2, kind: 3})) == told


def test_float_models_and_strangers_are_not_quantized():
    kinds = ["MatMul", "Gemm", "Conv", "LSTM", "com.microsoft.QuickGelu", "com.microsoft.Attention", "com.acme.QGemm"]
    assert already_quantized(Counter(kinds)) == ""


def test_the_commonest_four_are_named():
    counts = Counter({"MatMulInteger": 9, "QLinearConv": 8, "QLinearMatMul": 7, "QuantizeLinear": 6, "ConvInteger": 1})
    assert already_quantized(counts).endswith("9 MatMulInteger, 8 QLinearConv, 7 QLinearMatMul, 6 QuantizeLinear")


def test_nothing_says_that_the_model_is_quantized():
    found = Counter({"MatMulInteger": 2, "Add": 5})
    told = "nothing to quantize: no MatMul; the model holds quantized operators already: 2 MatMulInteger"
    assert nothing("no MatMul", [], found) == told


def test_nothing_names_the_operators_and_the_commonest_reason():
    skipped = [("a", "it is slow"), ("b", "its weights are computed"), ("c", "it is slow")]
    told = "nothing to quantize: no MatMul; the model has 2 Conv, 1 Gemm; 2 were looked at and left: it is slow"
    assert nothing("no MatMul", skipped, Counter({"Conv": 2, "Gemm": 1})) == told
    assert nothing("no MatMul", [], Counter()) == "nothing to quantize: no MatMul; the model has no nodes"
