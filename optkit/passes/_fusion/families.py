"""The table of families, and how a graph is made ready for them and tidied up behind them.

``onnxscript.rewriter.ort_fusions.optimize_for_ort`` applies everything it knows. On CPUs some of that makes a model
slower, and some hides a MatMul from the quantizers that come later, so that here families are chosen.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optkit.model.target import Target
from optkit.passes._fusion.apart import keep_apart
from optkit.passes._fusion.attention import fuse_attention
from optkit.passes._fusion.bias_gelu import fuse_bias_gelu
from optkit.passes._fusion.conv_affine import fuse_conv_affine
from optkit.passes._fusion.family import Family, Fired
from optkit.passes._fusion.fold import fold
from optkit.passes._fusion.gelu import fuse_gelu
from optkit.passes._fusion.gemm import gemm_rules
from optkit.passes._fusion.int8_matmul import fuse_int8_matmul
from optkit.passes._fusion.key_mask import fuse_key_mask
from optkit.passes._fusion.layout import fuse_layout
from optkit.passes._fusion.normalization import fuse_normalization
from optkit.passes._fusion.packed_attention import fuse_packed_attention
from optkit.passes._fusion.qkv import fuse_qkv
from optkit.passes._fusion.rotary import fuse_rotary
from optkit.passes._fusion.shapes import know_shapes
from optkit.passes._fusion.skip_norm import fuse_skip_norm
from optkit.passes._fusion.subnormal import flush_subnormal
from optkit.passes._onnxscript import hasten

if TYPE_CHECKING:
    import onnx_ir as ir

FAMILIES = (
    Family("conv-affine", "BatchNormalization(Conv(Pad(x) * s) * t + u) -> Conv(x)", fuse_conv_affine),
    Family("gelu", "Mul(Mul(x, Add(Erf(Div(x, sqrt 2)), 1)), 0.5) -> Gelu(x); by Tanh -> FastGelu(x)", fuse_gelu),
    Family(
        "normalization",
        "Mul(Div(x, Sqrt(ReduceMean(x * x))), g) -> SimplifiedLayerNormalization(x, g), or LayerNormalization",
        fuse_normalization,
    ),
    Family("rotary", "Add(Mul(x, Cos(f)), Mul(turned x, Sin(f))) -> RotaryEmbedding(x, Cos(f), Sin(f))", fuse_rotary),
    Family("attention", "MatMul(Softmax(Mul(MatMul(q, k), s)), v) -> MultiHeadAttention(q, k, v)", fuse_attention),
    Family(
        "packed-attention",
        "MultiHeadAttention(x Wq + bq, x Wk + bk, x Wv + bv) -> Attention(x, W, b)",
        fuse_packed_attention,
        frozenset({"gpu"}),
        "it hides its MatMul from int8, and took 21 ms where MatMuls and MultiHeadAttention take 8 to 9",
    ),
    Family(
        "key-mask",
        "MultiHeadAttention(q, k, v, mask) -> MultiHeadAttention([q, 1], [k, mask / scale], v)",
        fuse_key_mask,
        frozenset({"cpu"}),
        "kernels of other devices take masks as they are",
    ),
    Family(
        "qkv",
        "x W1 + b1, x W2 + b2, x W3 + b3 -> Split(x [W1 W2 W3] + [b1 b2 b3])",
        fuse_qkv,
        frozenset(),
        "on CPUs one product is no faster than three, and Split copies its result: 0.8 to 1.0 x in a sentence encoder",
    ),
    Family(
        "skip-norm",
        "LayerNormalization(Add(x, skip)) -> SkipLayerNormalization(x, skip)",
        fuse_skip_norm,
        frozenset({"gpu"}),
        "its kernel took 10.5 ms where Add and LayerNormalization take 1.9",
    ),
    Family(
        "bias-gelu",
        "Gelu(Add(x, bias)) -> BiasGelu(x, bias)",
        fuse_bias_gelu,
        frozenset({"gpu"}),
        "it is no faster than Add and Gelu",
    ),
    Family(
        "int8-matmul",
        "Add(MatMul(DequantizeLinear(x), DequantizeLinear(W)), b) -> MatMulIntegerToFloat(x, W, b)",
        fuse_int8_matmul,
        frozenset({"cpu"}),
        "other devices have no such kernel",
    ),
    Family("subnormal", "weights below 1e-30 -> 0", flush_subnormal),
    Family("layout", "Transpose(Transpose(x)) -> Transpose(x); Add(Expand(x), y) -> Add(x, y)", fuse_layout),
    Family(
        "apart",
        "LayerNormalization(Add(a, b), s) -> LayerNormalization(Add(a, b), s as [1, D])",
        keep_apart,
        frozenset({"cpu"}),
        "others have a fast kernel for SkipLayerNormalization, which onnxruntime then uses",
    ),
)
"""In the order in which they are applied."""
NAMES = tuple(family.name for family in FAMILIES)


def defaults(target: Target) -> tuple[str, ...]:
    """Names of the families that are applied for a target when nothing is measured."""
    device = "cpu" if target.provider == "cpu" else "gpu"
    return tuple(family.name for family in FAMILIES if device in family.devices)


@dataclass(frozen=True)
class Prepared:
    """A graph in the form that families recognize."""

    model: ir.Model
    ends: tuple[tuple[str | None, ir.TypeProtocol | None, ir.Shape | None], ...]
    """Name, type and shape of its inputs and outputs as they were."""


def fuse(model: ir.Model, chosen: Collection[str]) -> dict[str, Fired]:
    """Apply the chosen families in place; inputs and outputs keep names, dtypes and shapes.

    Args:
        model: without local functions.
        chosen: names of families.

    Returns:
        What each of them did.
    """
    return apply(prepare(model), chosen)


def prepare(model: ir.Model) -> Prepared:
    """Fold constants and infer shapes, in place. It takes longer than all families; ``copied`` allows to do it once."""
    from onnxscript.rewriter.ort_fusions import shape_optimization

    ends = tuple((value.name, value.type, value.shape) for value in (*model.graph.inputs, *model.graph.outputs))
    hasten()
    know_shapes(model)
    gemm_rules().apply_to_model(model)
    fold(model)
    shape_optimization.rules.apply_to_model(model)
    fold(model)
    know_shapes(model)
    return Prepared(model, ends)


def copied(prepared: Prepared) -> Prepared:
    """Another graph with the very same weights."""
    return Prepared(prepared.model.clone(), prepared.ends)


def apply(prepared: Prepared, chosen: Collection[str]) -> dict[str, Fired]:
    """What ``fuse`` does with a prepared model."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass, NameFixPass, RemoveUnusedOpsetsPass

    model = prepared.model
    found = {family.name: family.apply(model) for family in FAMILIES if family.name in chosen}
    _tidy(model)
    for value, (name, kind, shape) in zip((*model.graph.inputs, *model.graph.outputs), prepared.ends, strict=True):
        value.name, value.type, value.shape = name, kind, shape
    for clean in (NameFixPass(), ClearMetadataAndDocStringPass(), RemoveUnusedOpsetsPass()):
        clean(model)
    return found


def _tidy(model: ir.Model) -> None:
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    fold(model)
    LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=1)(model)
    _forget_inner_shapes(model)


def _forget_inner_shapes(model: ir.Model) -> None:
    """Exporters and rewrites leave contradictions that make quantizers fail; sessions infer shapes themselves."""
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                value.type = value.shape = None
