"""Which of onnxscript's fusions for onnxruntime to apply, and in which order.

``onnxscript.rewriter.ort_fusions.optimize_for_ort`` applies all of them. On CPUs some make a model slower, and some
hide a MatMul from the quantizers that come later, so that here families are chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optkit.model.target import Target
from optkit.passes._fusion.attention import drop_idle_expands, free_transposes, mask_rules, sdpa_rules
from optkit.passes._fusion.gelu import tanh_rules
from optkit.passes._fusion.shapes import infer_symbolic_shapes

if TYPE_CHECKING:
    import onnx_ir as ir

Families = tuple[str, ...]

EVERYTHING: Families = ("everything",)
CPU: Families = ("gelu", "normalization", "attention")
"""Without SkipLayerNormalization (10.5 ms where Add and LayerNormalization take 1.9), BiasGelu (no gain), Attention
with its projections inside (their MatMuls cannot become int8), FusedMatMul and GroupNormalization."""


def attempts(target: Target) -> list[Families]:
    """What to try, best first, until a session opens the result."""
    cpu = [CPU, ("gelu", "normalization")]
    return cpu if target.provider == "cpu" else [EVERYTHING, *cpu]


def fuse(model: ir.Model, families: Families) -> ir.Model:
    """Apply ``families`` in place; inputs and outputs keep names, types and shapes."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass, NameFixPass, RemoveUnusedOpsetsPass
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    ends = [(value.name, value.type, value.shape) for value in (*model.graph.inputs, *model.graph.outputs)]
    if families == EVERYTHING:
        _know_shapes(model)
        optimize_for_ort(model)
    else:
        _fuse_families(model, families)
    _forget_inner_shapes(model)
    for value, (name, kind, shape) in zip((*model.graph.inputs, *model.graph.outputs), ends, strict=True):
        value.name, value.type, value.shape = name, kind, shape
    for clean in (NameFixPass(), ClearMetadataAndDocStringPass(), RemoveUnusedOpsetsPass()):
        clean(model)
    return model


def _fuse_families(model: ir.Model, families: Families) -> None:
    from onnx_ir.passes import common
    from onnxscript.optimizer import optimize
    from onnxscript.rewriter import rewrite
    from onnxscript.rewriter.ort_fusions import shape_optimization
    from onnxscript.rewriter.ort_fusions.erfgelu import fuse_erfgelu
    from onnxscript.rewriter.ort_fusions.gelu import fuse_gelu
    from onnxscript.rewriter.ort_fusions.rms_normalization import fuse_rms_normalization

    _know_shapes(model)
    rewrite(model, _gemm_rules())
    optimize(model)
    shape_optimization.rules.apply_to_model(model)
    optimize(model)
    _know_shapes(model)
    if "gelu" in families:
        fuse_erfgelu(model)
        fuse_gelu(model)
        tanh_rules().apply_to_model(model)
    if "normalization" in families:
        fuse_rms_normalization(model)
    if "attention" in families:
        free_transposes(model)
        _fuse_attention(model)
        free_transposes(model)
        _know_shapes(model)
        drop_idle_expands(model)
    optimize(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=1)(model)


def _know_shapes(model: ir.Model) -> None:
    """Symbolic shapes can take a minute on convolutional graphs, and only attention is recognized by them."""
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass()(model)
    if any(node.op_type == "Softmax" for node in model.graph):
        infer_symbolic_shapes(model)


def _gemm_rules() -> list[object]:
    """``Reshape(Gemm(Reshape(x), W, b)) -> Add(MatMul(x, W), b)``: the form that attention is recognized in."""
    from onnxscript.rewriter.rules.common import _gemm_to_matmul_add

    return [_gemm_to_matmul_add.gemm_to_matmul_add_rule]


def _fuse_attention(model: ir.Model) -> None:
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass
    from onnxscript.rewriter.ort_fusions import rotary_embedding
    from onnxscript.rewriter.ort_fusions.cos_sin_cache import fuse_cos_sin_cache
    from onnxscript.rewriter.ort_fusions.gqa import fuse_gqa
    from onnxscript.rewriter.ort_fusions.mha import fuse_mha1, fuse_mha2
    from onnxscript.rewriter.ort_fusions.mha_scale import fuse_mha_scale
    from onnxscript.rewriter.ort_fusions.sdpa_via_mha import replace_sdpa_by_mha

    rotary_embedding.fuse_rotary_embedding(model)
    fuse_cos_sin_cache(model)
    CommonSubexpressionEliminationPass()(model)
    rotary_embedding.fuse_partial_rotary_embedding(model)
    mask_rules().apply_to_model(model)
    sdpa_rules().apply_to_model(model)
    CommonSubexpressionEliminationPass()(model)
    _know_shapes(model)
    _keep_flattening_apart(model)
    for step in (fuse_gqa, fuse_mha1, fuse_mha2, fuse_mha_scale, replace_sdpa_by_mha):
        step(model)


def _keep_flattening_apart(model: ir.Model) -> None:
    """``Reshape(heads, [-1, D]) -> Reshape(Reshape(heads, [0, 0, -1]), [-1, D])`` after attention.

    onnxscript takes any Reshape behind the heads for the one that joins them, and drops it: a model that goes on with
    rows of [batch * seq, D], as GPT-2 does, would get [batch, seq, D] and could not be opened.
    """
    import numpy as np
    import onnx_ir as ir

    for node in list(model.graph):
        heads, rows = (node.inputs[0], node.outputs[0]) if node.op_type == "Reshape" else (None, None)
        source = heads.producer() if heads is not None else None
        if heads is None or source is None or source.op_type != "Transpose" or rows is None or rows.shape is None:
            continue
        if heads.shape is not None and len(heads.shape) == 4 and len(rows.shape) == 2:
            shape = ir.val(f"{rows.name}_joined_shape", const_value=ir.tensor(np.array([0, 0, -1], np.int64)))
            model.graph.register_initializer(shape)
            join = ir.node("Reshape", [heads, shape], name=f"{node.name}_join")
            join.outputs[0].name = f"{rows.name}_joined"
            model.graph.insert_before(node, join)
            node.replace_input_with(0, join.outputs[0])


def _forget_inner_shapes(model: ir.Model) -> None:
    """Exporters and rewrites leave contradictions that make quantizers fail; sessions infer shapes themselves."""
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                value.type = value.shape = None
