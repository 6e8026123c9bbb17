"""Operations and bytes of nodes, by numbers worked out by hand."""

from __future__ import annotations

import pytest

from optkit.bench.work import Tensor, work_of


def f32(*shape: int, constant: bool = False) -> Tensor:
    return Tensor("float32", shape, constant)


def weight(dtype: str, *shape: int) -> Tensor:
    return Tensor(dtype, shape, constant=True)


def test_sizes_of_tensors():
    assert f32(2, 3).bytes == 24 and Tensor("int8", (5,)).bytes == 5 and Tensor("bool", (7,)).bytes == 7
    assert Tensor("bfloat16", (3,)).bytes == 6 and Tensor("int4", (3, 3)).bytes == 5 and f32().bytes == 4
    assert Tensor("string", (9,)).bytes == 0 and Tensor("float8e4m3fn", (3,)).bytes == 3
    assert Tensor("float8_e5m2fnuz", (3,)).bytes == 3 and Tensor("float4e2m1", (3,)).bytes == 2
    assert Tensor("int2", (5,)).bytes == Tensor("uint2", (8,)).bytes == 2 and Tensor("complex64", (2,)).bytes == 16
    assert str(Tensor("int64", (8, 128))) == "int64[8,128]"


def test_a_product_counts_two_operations_per_multiplication_and_every_tensor_once():
    found = work_of("MatMul", [f32(8, 128, 384), weight("float32", 384, 1536)], [f32(8, 128, 1536)])
    assert found is not None
    assert found.operations == 2 * 8 * 128 * 384 * 1536
    assert found.weight_bytes == 4 * 384 * 1536
    assert found.bytes == 4 * (8 * 128 * 384 + 384 * 1536 + 8 * 128 * 1536)
    assert found.kind == "fp32"


@pytest.mark.parametrize(
    ("operator", "inputs", "outputs", "attributes", "operations", "kind"),
    [
        ("Gemm", [f32(5, 2), f32(5, 3), f32(3)], [f32(2, 3)], {"transA": 1}, 2 * 2 * 5 * 3, "fp32"),
        ("FusedMatMul", [f32(4, 6, 7), f32(4, 5, 7)], [f32(4, 6, 5)], {"transB": 1}, 2 * 4 * 6 * 7 * 5, "fp32"),
        ("MatMul", [Tensor("float16", (2, 4)), Tensor("float16", (4, 3))], [f32(2, 3)], {}, 48, ""),
        ("MatMulInteger", [Tensor("uint8", (2, 4)), weight("int8", 4, 3)], [f32(2, 3)], {}, 48, "int8"),
        ("DynamicQuantizeMatMul", [f32(2, 4), weight("int8", 4, 3), f32(3), None], [f32(2, 3)], {}, 48, "int8"),
        ("QGemm", [Tensor("uint8", (2, 4)), f32(), f32(), weight("int8", 4, 3)], [f32(2, 3)], {}, 48, "int8"),
        ("MatMulNBits", [f32(2, 64), weight("uint8", 3, 2, 16)], [f32(2, 3)], {"bits": 4}, 2 * 2 * 64 * 3, "fp32"),
        ("MatMulNBits", [f32(2, 64), weight("uint8", 3, 2, 16)], [f32(2, 3)], {"accuracy_level": 4}, 768, "int8"),
        # a 3x3 convolution of 8 to 16 channels on 10 x 10; then of 8 channels each for itself
        ("Conv", [f32(2, 8, 12, 12), f32(16, 8, 3, 3)], [f32(2, 16, 10, 10)], {}, 2 * 2 * 16 * 100 * 8 * 9, "fp32"),
        ("FusedConv", [f32(1, 8, 12, 12), f32(8, 1, 3, 3)], [f32(1, 8, 10, 10)], {"group": 8}, 14_400, "fp32"),
        (
            "QLinearConv",
            [Tensor("uint8", (1, 12, 12, 8)), f32(), f32(), weight("int8", 16, 8, 3, 3)],
            [Tensor("uint8", (1, 10, 10, 16))],
            {"channels_last": 1},
            2 * 16 * 100 * 8 * 9,
            "int8",
        ),
        ("ConvTranspose", [f32(1, 4, 5, 5), f32(4, 6, 2, 2)], [f32(1, 6, 10, 10)], {}, 2 * 100 * 6 * 4, "fp32"),
        # 2 samples, 5 queries on 7 keys, 12 values each: 2 x 7 for each of the 120 values of query and output
        ("MultiHeadAttention", [f32(2, 5, 12), f32(2, 7, 12), f32(2, 7, 12)], [f32(2, 5, 12)], {}, 2 * 7 * 240, "fp32"),
        ("Attention", [f32(2, 3, 5, 4), f32(2, 3, 7, 4), f32(2, 3, 7, 4)], [f32(2, 3, 5, 4)], {}, 3360, "fp32"),
        ("MultiHeadAttention", [f32(2, 5, 12), *[f32(2, 3, 7, 4)] * 2], [f32(2, 5, 12)], {}, 3360, "fp32"),
        # after a past of 100: 101 keys for one query, 12 values in query and output each
        (
            "MultiHeadAttention",
            [*[f32(2, 1, 12)] * 3, None, None, None, *[f32(2, 3, 100, 4)] * 2],
            [f32(2, 1, 12)],
            {},
            2 * 101 * 48,
            "fp32",
        ),
        (
            "Attention",
            [*[f32(1, 1, 24)] * 3, None, *[f32(1, 3, 100, 8)] * 2],
            [f32(1, 1, 24)],
            {},
            2 * 101 * 48,
            "fp32",
        ),
        # com.microsoft's: [2, 5, 8] x [8, 24] = 3840, then two products of 5 x 5 x 8 per sample
        ("Attention", [f32(2, 5, 8), weight("float32", 8, 24), f32(24)], [f32(2, 5, 8)], {}, 3840 + 1600, "fp32"),
        # the same with 4 values instead of 8, and with a past of 3
        ("Attention", [f32(2, 5, 8), f32(8, 20), f32(20)], [f32(2, 5, 4)], {}, 3200 + 2 * 2 * 5 * 5 * 12, "fp32"),
        (
            "Attention",
            [f32(2, 5, 8), f32(8, 24), f32(24), None, f32(2, 2, 2, 3, 4)],
            [f32(2, 5, 8)],
            {},
            3840 + 2 * 2 * 5 * 8 * 16,
            "fp32",
        ),
        ("LSTM", [f32(6, 2, 3), f32(1, 16, 3), f32(1, 16, 4)], [f32(6, 1, 2, 4)], {}, 2 * 6 * 2 * (48 + 64), "fp32"),
    ],
)
def test_operations(operator, inputs, outputs, attributes, operations, kind):
    found = work_of(operator, inputs, outputs, attributes)
    assert found is not None and (found.operations, found.kind) == (operations, kind)


@pytest.mark.parametrize(
    ("operator", "inputs", "outputs"),
    [
        ("Relu", [f32(2, 3)], [f32(2, 3)]),
        ("Conv", [f32(1, 8, 12, 12)], [f32(1, 8, 10, 10)]),  # its weight is not known
        ("MatMul", [None, f32(4, 3)], [f32(2, 3)]),
        ("MatMul", [f32(0, 4), f32(4, 3)], [f32(0, 3)]),  # nothing to do
        ("MultiHeadAttention", [f32(2, 5, 4, 3, 8), None, None], [f32(2, 5, 32)]),  # packed
        ("MultiHeadAttention", [f32(2, 5, 12), f32(2, 7, 3, 2, 4)], [f32(2, 5, 12)]),  # key and value packed
        ("MultiHeadAttention", [f32(2, 5, 12), f32(2, 7, 12), None], [f32(2, 5, 12)]),
        ("MultiHeadAttention", [*[f32(2, 1, 12)] * 3, *[None] * 3, *[f32(2, 3, 9, 4)] * 2, f32(1)], [f32(2, 1, 12)]),
        ("LSTM", [f32(6, 2), f32(1, 16, 3), f32(1, 16, 4)], [f32(6, 1, 2, 4)]),
    ],
)
def test_no_work_is_better_than_a_guess(operator, inputs, outputs):
    assert work_of(operator, inputs, outputs) is None


def test_transposed_batches_are_not_guessed():
    """A of [K, batch, M] by transA and transBatchA."""
    given = [f32(5, 4, 6), f32(4, 5, 7)], [f32(4, 6, 7)]
    assert work_of("FusedMatMul", *given, {"transA": 1, "transBatchA": 1}) is None
