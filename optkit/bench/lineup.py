"""Two profiles side by side: by family of operators, and by node where names correspond."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from optkit.bench.profile_facts import NodeFacts, Pair

_FAMILIES = {
    "matrix products": (
        "MatMul FusedMatMul FusedMatMulActivation Gemm FusedGemm GemmFastGelu MatMulInteger MatMulIntegerToFloat "
        "DynamicQuantizeMatMul QLinearMatMul QGemm "
        "MatMulNBits Attention QAttention MultiHeadAttention GroupQueryAttention mm addmm bmm baddbmm linear "
        "matmul mkldnn_linear _scaled_dot_product_flash_attention_for_cpu scaled_dot_product_attention"
    ),
    "convolutions": (
        "Conv FusedConv NhwcConv NhwcFusedConv ConvInteger QLinearConv ConvTranspose QLinearConvTranspose "
        "mkldnn_convolution convolution conv1d conv2d conv3d _slow_conv2d_forward thnn_conv2d"
    ),
    "recurrent": "LSTM GRU RNN DynamicQuantizeLSTM lstm gru mkldnn_rnn_layer",
    "quantizing": "DynamicQuantizeLinear QuantizeLinear DequantizeLinear quantize_per_tensor dequantize",
    "normalization": (
        "LayerNormalization SkipLayerNormalization SimplifiedLayerNormalization SkipSimplifiedLayerNormalization "
        "EmbedLayerNormalization RMSNormalization BatchNormalization InstanceNormalization GroupNorm "
        "GroupNormalization native_layer_norm native_batch_norm"
    ),
    "activations": (
        "Relu Gelu FastGelu BiasGelu QuickGelu Erf Sigmoid QLinearSigmoid HardSigmoid HardSwish Tanh LeakyRelu "
        "QLinearLeakyRelu Elu PRelu Clip Swish Mish relu relu_ gelu silu sigmoid tanh clamp_min hardtanh"
    ),
    "softmax": "Softmax QLinearSoftmax LogSoftmax softmax _softmax _log_softmax",
    "pooling": (
        "MaxPool AveragePool GlobalAveragePool GlobalMaxPool QLinearAveragePool QLinearGlobalAveragePool ReduceMean "
        "QLinearReduceMean mean avg_pool2d max_pool2d_with_indices adaptive_avg_pool2d"
    ),
    "elementwise": (
        "Add Sub Mul Div Pow Sqrt Neg Exp Min Max Where QLinearAdd QLinearMul QLinearWhere add add_ sub mul mul_ div "
        "pow where"
    ),
    "layout": (
        "Transpose Reshape Flatten Squeeze Unsqueeze Concat QLinearConcat Split Slice Pad Expand Tile Identity "
        "ReorderInput ReorderOutput copy_ clone cat view transpose contiguous"
    ),
}
"""Family -> its operators; of torch without ``aten::``. Whatever is in none is a family of its own."""

_FAMILY = {operator: family for family, operators in _FAMILIES.items() for operator in operators.split()}


def line_up(one: Sequence[NodeFacts], other: Sequence[NodeFacts]) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Pairs by family (all of them), and by origin (where it is known and in both); the largest difference first."""
    families = _pairs(one, other, lambda node: family(node.operator))
    known = [[node for node in nodes if node.origin] for nodes in (one, other)]
    names = _pairs(known[0], known[1], lambda node: node.origin)
    return families, tuple(pair for pair in names if pair.ms is not None and pair.other_ms is not None)


def family(operator: str) -> str:
    """``DynamicQuantizeMatMul`` -> ``matrix products``; an operator of no family is its own."""
    plain = operator.removeprefix("aten::")
    return _FAMILY.get(plain, plain)


def _pairs(one: Iterable[NodeFacts], other: Iterable[NodeFacts], key: Callable[[NodeFacts], str]) -> tuple[Pair, ...]:
    left, right = _grouped(one, key), _grouped(other, key)
    pairs = [_pair(name, left.get(name, ()), right.get(name, ())) for name in dict.fromkeys([*left, *right])]
    return tuple(sorted(pairs, key=lambda pair: -abs(pair.difference_ms)))


def _grouped(nodes: Iterable[NodeFacts], key: Callable[[NodeFacts], str]) -> dict[str, list[NodeFacts]]:
    groups: dict[str, list[NodeFacts]] = defaultdict(list)
    for node in nodes:
        groups[key(node)].append(node)
    return dict(groups)


def _pair(name: str, left: Sequence[NodeFacts], right: Sequence[NodeFacts]) -> Pair:
    ms, other = sum(node.ms for node in left), sum(node.ms for node in right)
    return Pair(
        name=name,
        operators=tuple(dict.fromkeys(node.operator for node in left)),
        other_operators=tuple(dict.fromkeys(node.operator for node in right)),
        nodes=len(left),
        other_nodes=len(right),
        ms=ms if left else None,
        other_ms=other if right else None,
        difference_ms=other - ms,
    )
