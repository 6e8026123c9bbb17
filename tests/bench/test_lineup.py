"""Two models side by side: families of operators, and nodes whose names correspond."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optkit.bench.lineup import family, line_up
from optkit.bench.roofline import analyse
from optkit.bench.work import COUNTS
from tests.bench.toy_profile import node, profiled


@pytest.mark.parametrize(
    ("operators", "expected"),
    [
        ("MatMul Gemm FusedGemm MatMulIntegerToFloat DynamicQuantizeMatMul QLinearMatMul Attention", "matrix products"),
        ("Conv FusedConv QLinearConv ConvInteger aten::mkldnn_convolution", "convolutions"),
        ("Gelu BiasGelu QLinearSigmoid aten::gelu", "activations"),
        ("DynamicQuantizeLinear DequantizeLinear", "quantizing"),
        ("NonMaxSuppression", "NonMaxSuppression"),
    ],
)
def test_families(operators: str, expected: str):
    assert {family(operator) for operator in operators.split()} == {expected}


def test_all_that_is_counted_has_a_family():
    assert {family(operator) for operator in COUNTS} == {"matrix products", "convolutions", "recurrent"}


def test_nodes_of_unknown_origin_are_not_paired():
    one, other = (
        analyse(profiled(replace(node("MatMul_1", "MatMul", ms), origin=""), node("a", "Relu", ms)), None).nodes
        for ms in (0.5, 0.1)
    )
    families, pairs = line_up(one, other)
    assert [pair.name for pair in pairs] == ["a"] and len(families) == 2


def test_the_largest_difference_comes_first():
    one = analyse(profiled(node("a", "MatMul", 0.5), node("b", "MatMul", 0.2), node("c", "Relu", 0.1)), None)
    other = analyse(
        profiled(
            node("a_quant", "DynamicQuantizeMatMul", 0.1),
            node("b", "MatMul", 0.3),
            node("a", "DequantizeLinear", 0.05),
            node("new", "Softmax", 0.02),
        ),
        None,
    )
    families, pairs = line_up(one.nodes, other.nodes)
    assert [(pair.name, pair.nodes, pair.other_nodes) for pair in families] == [
        ("matrix products", 2, 2),
        ("activations", 1, 0),
        ("quantizing", 0, 1),
        ("softmax", 0, 1),
    ]
    assert [pair.difference_ms for pair in families] == pytest.approx([0.4 - 0.7, -0.1, 0.05, 0.02])
    assert (families[1].ms, families[1].other_ms, families[2].ms) == (pytest.approx(0.1), None, None)
    assert [(pair.name, pair.operators, pair.other_operators) for pair in pairs] == [
        ("a", ("MatMul",), ("DynamicQuantizeMatMul", "DequantizeLinear")),
        ("b", ("MatMul",), ("MatMul",)),
    ]
    assert [pair.difference_ms for pair in pairs] == pytest.approx([0.15 - 0.5, 0.1])
