from __future__ import annotations

import numpy as np

from optkit.bench.quantized import Quantized, quantized_of, read_quantized
from tests.bench.graphs import MERGED, floats, qdq
from tests.helpers import onnx_model

CONV = """
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    wd = DequantizeLinear(w, s, zw)
    c = Conv <pads=[1,1,1,1]> (xd, wd)
    r = Relu(c)
"""


def test_signed_activations_of_integer_operators_are_seen() -> None:
    body = "xq = QuantizeLinear(x, s, z) q = QLinearMatMul(xq, s, z, w, s, zw, s, z) y = DequantizeLinear(q, s, z)"
    found = quantized_of(qdq(body, np.int8))
    assert (found.activations, found.signed, dict(found.integer)) == (1, 1, {"QLinearMatMul": 1})


def test_a_zero_point_left_out_is_unsigned() -> None:
    found = quantized_of(qdq("q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)"))
    assert (found.activations, found.signed) == (1, 0)


def test_a_convolution_is_merged_only_if_its_output_is_quantized() -> None:
    shape, weight = "N,1,8,8", (1, 1, 3, 3)
    whole = quantized_of(
        qdq(CONV + "rq = QuantizeLinear(r, s, z) y = DequantizeLinear(rq, s, z)", np.uint8, shape, weight)
    )
    assert (dict(whole.integer), dict(whole.stranded), dict(whole.conversions)) == ({"Conv": 1}, {}, {})
    half = quantized_of(qdq(CONV + "y = Identity(r)", np.uint8, shape, weight))
    assert (dict(half.integer), dict(half.stranded), dict(half.conversions)) == ({}, {"Conv": 1}, {"Conv": 1})


def test_conversions_that_stay_are_counted_with_the_operator_beside_them() -> None:
    found = quantized_of(qdq(MERGED.replace("y =", "d =") + "e = Erf(d) f = Cos(d) g = Add(e, f) y = Relu(g)"))
    assert (dict(found.conversions), dict(found.integer)) == ({"Erf": 1, "Cos": 1}, {"MatMul": 1})


def test_conversions_move_past_reshapes_and_vanish_around_operators_with_integer_kernels() -> None:
    body = """
        xq = QuantizeLinear(x, s, z)
        xd = DequantizeLinear(xq, s, z)
        t = Transpose(xd)
        wd = DequantizeLinear(w, s, zw)
        m = MatMul(wd, t)
        mq = QuantizeLinear(m, s, z)
        md = DequantizeLinear(mq, s, z)
        a = Add(md, md)
        aq = QuantizeLinear(a, s, z)
        y = DequantizeLinear(aq, s, z)
    """
    found = quantized_of(qdq(body, shape="4,4"))
    assert (dict(found.integer), dict(found.conversions), dict(found.stranded)) == ({"MatMul": 1}, {}, {})


def test_weights_in_constant_nodes_and_subgraphs_are_seen() -> None:
    text = """g (float[N,4] x, bool c) => (float[N,4] y) {
        y = If (c) <
            then_branch = t () => (float[N,4] a) {
                w = Constant <value = int8[4,4] {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}> ()
                wd = DequantizeLinear(w, s)
                a = MatMul(x, wd)
            },
            else_branch = e () => (float[N,4] b) { b = Identity(x) }
        >
    }"""
    assert dict(quantized_of(onnx_model(text, {"s": np.asarray(np.float32(1))})).stranded) == {"MatMul": 1}


def test_a_plain_file_is_not_quantized() -> None:
    assert read_quantized(floats().path) == Quantized()
    assert not Quantized().anything
