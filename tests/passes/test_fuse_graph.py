from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from optkit.model.model import Model
from optkit.model.target import Target
from optkit.passes.fuse_graph import FuseGraph
from tests.helpers import normal, onnx_model, open_any, ops_of, run_onnx, run_pass

DISABLED = "optimization.disable_specified_optimizers"
HEAD = """(float[batch,seq,32] x) => (float[{rows},32] y) {{
    q0 = MatMul(x, wq) q1 = Reshape(q0, split) q = Transpose<perm = [0,2,1,3]>(q1)
    k0 = MatMul(x, wk) k1 = Reshape(k0, split) k = Transpose<perm = [0,2,3,1]>(k1)
    v0 = MatMul(x, wv) v1 = Reshape(v0, split) v = Transpose<perm = [0,2,1,3]>(v1)
    qs = Mul(q, root) ks = Mul(k, root) s = MatMul(qs, ks) p = Softmax<axis = -1>(s) h = MatMul(p, v)
    t = Transpose<perm = [0,2,1,3]>(h) j = Reshape(t, join) y = {last}(j, wo)
}}"""
WEIGHTS: dict[str, Any] = {f"w{name}": normal(32, 32, seed=seed, scale=0.3) for seed, name in enumerate("qkvo")}
WEIGHTS |= {"split": np.int64([0, 0, 4, 8]), "root": np.float32(8**-0.25)}
X = {"x": normal(2, 5, 32, seed=9)}


def attention(*, flat: bool = False) -> onnx.ModelProto:
    """Attention with 4 heads; ``flat`` = its result goes on as rows [batch * seq, 32] into a Gemm, as in GPT-2."""
    text = HEAD.format(rows="rows" if flat else "batch,seq", last="Gemm" if flat else "MatMul")
    return onnx_model("attention " + text, WEIGHTS | {"join": np.int64([-1, 32] if flat else [0, 0, 32])})


def assert_same(result: Model, original: Model, inputs: dict[str, Any], tolerance: float) -> None:
    found, expected = run_onnx(result, inputs), run_onnx(original, inputs)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance)


def test_attention_becomes_one_node_and_its_projections_stay_visible():
    model = open_any(attention())
    outcome = run_pass(FuseGraph(), model)
    assert outcome.changed == 1
    assert ("com.microsoft.MultiHeadAttention", "0 -> 1") in outcome.changes
    assert "Softmax" not in ops_of(outcome.model)
    assert ops_of(outcome.model)["MatMul"] == 4
    assert_same(outcome.model, model, X, 2e-6)


def test_attention_whose_rows_are_flattened_can_be_opened():
    model = open_any(attention(flat=True))
    outcome = run_pass(FuseGraph(), model)
    assert ("com.microsoft.MultiHeadAttention", "0 -> 1") in outcome.changes
    assert_same(outcome.model, model, X, 2e-6)


def test_gelu_is_fused_and_a_near_miss_is_not():
    text = """g (float[n,8] x) => (float[n,8] y) {
        d = Div(x, root) e = Erf(d) p = Add(e, one) m = Mul(x, p) y = Mul(m, half) }"""
    values = {"root": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5)}
    model = open_any(onnx_model(text, values))
    outcome = run_pass(FuseGraph(), model)
    assert ops_of(outcome.model) == {"com.microsoft.Gelu": 1}
    assert_same(outcome.model, model, {"x": normal(3, 8)}, 1e-6)
    near = run_pass(FuseGraph(), onnx_model(text, values | {"one": np.float32(1.5)}))
    assert near.changed == 0
    assert near.skipped == [("gelu, normalization, attention", "nothing in the graph has a form that they know")]


def test_nothing_to_fuse_gives_the_model_back():
    model = open_any(onnx_model("g (float[n,4] x) => (float[n,4] y) { y = MatMul(x, w) }", {"w": normal(4, 4)}))
    outcome = run_pass(FuseGraph(), model)
    assert (outcome.changed, outcome.model) == (0, model)


RESIDUAL = "g (float[n,4,8] x) => (float[n,4,8] y) { a = Add(x, b) y = LayerNormalization(a, s) }"
RESIDUAL_WEIGHTS = {"b": normal(4, 8), "s": normal(8)}


def test_on_cpus_additions_stay_outside_normalizations():
    outcome = run_pass(FuseGraph(), onnx_model(RESIDUAL, RESIDUAL_WEIGHTS))
    assert outcome.changed == 1
    assert outcome.changes == [("session", "SkipLayerNormFusion disabled: its kernel is slower on CPUs")]
    assert outcome.session == {DISABLED: "SkipLayerNormFusion"}


def test_optimizers_that_were_disabled_before_stay_disabled():
    from dataclasses import replace

    model = replace(open_any(onnx_model(RESIDUAL, RESIDUAL_WEIGHTS)), session={DISABLED: "GeluFusion", "other": "1"})
    assert run_pass(FuseGraph(), model).session == {DISABLED: "GeluFusion;SkipLayerNormFusion", "other": "1"}


def test_other_providers_keep_onnxruntimes_fusions():
    outcome = run_pass(FuseGraph(), onnx_model(RESIDUAL, RESIDUAL_WEIGHTS), target=Target(provider="cuda"))
    assert outcome.session == {}


def test_a_result_that_does_not_open_is_not_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("optkit.passes._fusion.rules._keep_flattening_apart", lambda model: None)
    model = open_any(attention(flat=True))
    outcome = run_pass(FuseGraph(), model)
    assert (outcome.changed, outcome.model) == (0, model)
    assert outcome.skipped[0][0] == "gelu, normalization, attention"
    assert outcome.skipped[0][1].startswith("onnxruntime cannot open the result: ")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of BERT with random weights, from the dynamo exporter, as a folder-less file."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        return_dict=False,
    )
    dims = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("seq", max=32)}
    ids = torch.randint(0, 50, (2, 9))
    path = tmp_path_factory.mktemp("bert") / "bert.onnx"
    torch.onnx.export(
        BertModel(config, add_pooling_layer=False).eval(),
        kwargs={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        dynamic_shapes={"input_ids": dims, "attention_mask": dims},
        output_names=["last_hidden_state"],
        dynamo=True,
        external_data=False,
        verbose=False,
    ).save(path)
    return path


def test_bert_from_the_dynamo_exporter(bert: Path):
    from optkit.passes.quantize_dynamic import QuantizeDynamic

    outcome = run_pass(FuseGraph(), bert)
    counts = ops_of(outcome.model)
    assert counts["com.microsoft.MultiHeadAttention"] == 2
    assert "com.microsoft.SkipLayerNormalization" not in counts and "com.microsoft.Attention" not in counts
    assert outcome.changed == 3
    assert outcome.model.signature == open_any(bert).signature
    mask = np.ones((3, 7), np.int64)
    mask[0, 4:] = 0
    inputs = {"input_ids": np.arange(21).reshape(3, 7), "attention_mask": mask}
    assert_same(outcome.model, open_any(bert), inputs, 1e-5)
    assert run_pass(QuantizeDynamic(), outcome.model).changed == 12
