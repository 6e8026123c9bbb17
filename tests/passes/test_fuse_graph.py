from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from optkit.model.model import Model
from optkit.model.target import Target
from optkit.passes.fuse_graph import FuseGraph
from tests.helpers import fresh_dir, normal, onnx_model, open_any, ops_of, run_onnx, run_pass

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
    assert outcome.changes[0] == ("com.microsoft.MultiHeadAttention", "0 -> 1")
    assert "Softmax" not in ops_of(outcome.model)
    assert ops_of(outcome.model)["MatMul"] == 4
    assert_same(outcome.model, model, X, 2e-6)


def test_attention_whose_rows_are_flattened_can_be_opened():
    model = open_any(attention(flat=True))
    outcome = run_pass(FuseGraph(), model)
    assert ("com.microsoft.MultiHeadAttention", "0 -> 1") in outcome.changes
    assert_same(outcome.model, model, X, 2e-6)


MASKED = """masked (float[batch,seq,32] x, bool[batch,1,1,seq] keep) => (float[batch,seq,32] y) {{
    q0 = MatMul(x, wq) q1 = Reshape(q0, split) q = Transpose<perm = [0,2,1,3]>(q1)
    k0 = MatMul(x, wk) k1 = Reshape(k0, split) k = Transpose<perm = [0,2,3,1]>(k1)
    v0 = MatMul(x, wv) v1 = Reshape(v0, split) v = Transpose<perm = [0,2,1,3]>(v1)
    m = Where(keep, zero, fill) qs = Mul(q, root) ks = Mul(k, root) s0 = MatMul(qs, ks) {scores}
    p0 = Softmax<axis = -1>(s) {guard} h = MatMul(p, v)
    t = Transpose<perm = [0,2,1,3]>(h) j = Reshape(t, join) y = MatMul(j, wo)
}}"""
GUARD = "isnan = IsNaN(p0) p = Where(isnan, zero, p0)"
LOWEST = float(np.finfo(np.float32).min)


def masked(fill: float, *, guard: bool, bias: bool = False) -> onnx.ModelProto:
    """Attention that adds ``fill`` where not ``keep``; ``guard`` = NaN becomes 0; ``bias`` = [1,4,5,5] is added too."""
    scores = "s1 = Add(s0, bias) s = Add(s1, m)" if bias else "s = Add(s0, m)"
    text = MASKED.format(scores=scores, guard=GUARD if guard else "p = Identity(p0)")
    constants = {"join": np.int64([0, 0, 32]), "zero": np.float32(0), "fill": np.float32(fill)}
    added = {"bias": normal(1, 4, 5, 5, seed=7)} if bias else {}
    return onnx_model(text, WEIGHTS | constants | added)


def masked_by_input(shape: str, root: float = 8**-0.25) -> onnx.ModelProto:
    """Attention that adds an input of ``shape``, and turns its rows before it joins them, so that sizes are read."""
    text = HEAD.format(rows="batch,seq", last="MatMul").replace("seq,32] x)", f"seq,32] x, float[{shape}] mask)")
    text = text.replace("p = Softmax<axis = -1>(s)", "sm = Add(s, mask) p = Softmax<axis = -1>(sm)")
    text = text.replace("j = Reshape(t, join)", "n = Shape<start = 2, end = 3>(h) r = Relu(t) j = Reshape(r, join)")
    return onnx_model("by_input " + text, WEIGHTS | {"join": np.int64([0, 0, 32]), "root": np.float32(root)})


def ragged() -> dict[str, Any]:
    """Three rows of 5: one that is masked all over, one with padding at its end, one without."""
    keep = np.ones((3, 1, 1, 5), bool)
    keep[0], keep[1, ..., 3:] = False, False
    return {"x": normal(3, 5, 32, seed=9), "keep": keep}


@pytest.mark.parametrize(("guard", "bias"), [(True, False), (False, False), (True, True)])
def test_rows_that_are_masked_all_over_give_what_they_gave(guard: bool, bias: bool):
    model = open_any(masked(LOWEST, guard=guard, bias=bias))
    outcome = run_pass(FuseGraph(), model)
    assert ("com.microsoft.MultiHeadAttention", "0 -> 1") in outcome.changes
    assert_same(outcome.model, model, ragged(), 2e-6)


def test_a_guard_against_nan_stays_where_the_mask_may_be_infinite():
    guarded, bare = open_any(masked(-np.inf, guard=True)), open_any(masked(-np.inf, guard=False))
    assert run_pass(FuseGraph(), guarded).model == guarded
    outcome = run_pass(FuseGraph(), bare)
    assert outcome.changed == 1
    assert np.isnan(run_onnx(bare, ragged())["y"][0]).all()
    assert_same(outcome.model, bare, ragged(), 2e-6)


def test_the_bound_of_a_mask_is_known_only_where_it_comes_from_constants():
    from optkit.passes._fusion.attention import largest
    from optkit.passes._ir import load_ir

    text = """g (bool[n] keep, float[n] x) => (float[n] known, float[n] small, float[n] high, float[n] unknown) {
        known = Where(keep, zero, low) c = Cast<to = 1>(keep) d = Sub(one, c) small = Mul(d, low)
        high = Add(known, small) unknown = Mul(x, one) }"""
    values = {"zero": np.float32(0), "one": np.float32(1), "low": np.float32(LOWEST)}
    graph = load_ir(open_any(onnx_model(text, values)).path).graph
    found = [float(largest(value)) for value in graph.outputs]
    assert found == [-LOWEST, np.inf, np.inf, np.inf]  # (1 - x) is at most 2 for all that the bound knows


def test_gelu_as_gpt2_spells_it():
    text = """g (float[n,8] x) => (float[n,8] y) {
        h = Mul(x, half) c = Pow(x, three) s = Mul(c, a) i = Add(x, s) b = Mul(i, root) t = Tanh(b) u = Add(t, one)
        y = Mul(h, u) }"""
    names = {"half": 0.5, "three": 3, "a": 0.044715, "root": np.sqrt(2 / np.pi), "one": 1}
    model = open_any(onnx_model(text, {name: np.float32(value) for name, value in names.items()}))
    outcome = run_pass(FuseGraph(), model)
    assert ops_of(outcome.model) == {"com.microsoft.FastGelu": 1}
    assert_same(outcome.model, model, {"x": normal(3, 8)}, 1e-6)


def test_rms_normalization_counts():
    text = """g (float[n,8] x) => (float[n,8] y) {
        s = Pow(x, two) m = ReduceMean<keepdims = 1, noop_with_empty_axes = 0>(s, last)
        a = Add(m, tiny) r = Sqrt(a) i = Reciprocal(r) z = Mul(x, i) y = Mul(w, z) }"""
    values = {"two": np.float32(2), "last": np.int64([-1]), "tiny": np.float32(1e-6), "w": normal(8)}
    model = open_any(onnx_model(text, values))
    outcome = run_pass(FuseGraph(), model)
    assert outcome.changed == 1
    assert ops_of(outcome.model) == {"SimplifiedLayerNormalization": 1}
    assert_same(outcome.model, model, {"x": normal(3, 8)}, 1e-6)


def test_gelu_is_fused_and_a_near_miss_is_not():
    text = """g (float[n,8] x) => (float[n,8] y) {
        d = Div(x, root) e = Erf(d) p = Add(e, one) m = Mul(x, p) y = Mul(m, half) }"""
    values = {"root": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5)}
    model = open_any(onnx_model(text, values))
    outcome = run_pass(FuseGraph(), model)
    assert ops_of(outcome.model) == {"com.microsoft.Gelu": 1}
    assert outcome.model.signature == model.signature
    assert_same(outcome.model, model, {"x": normal(3, 8)}, 1e-6)
    near = run_pass(FuseGraph(), onnx_model(text, values | {"one": np.float32(1.5)}))
    assert near.changed == 0
    assert near.skipped == [("gelu, normalization, attention", "nothing in the graph has a form that they make faster")]


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
    assert [families for families, _ in outcome.skipped] == ["gelu, normalization, attention"]
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


WIDTH = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = WIDTH | {"vocab_size": 1000, "max_position_embeddings": 64}


def tiny(kind: str) -> Any:
    """One layer with random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    if kind == "vit":
        config = transformers.ViTConfig(**WIDTH, image_size=16, patch_size=4)
        return transformers.ViTForImageClassification(config)
    if kind == "gpt2":
        gpt2 = transformers.GPT2Config(vocab_size=1000, n_embd=32, n_layer=1, n_head=4, n_positions=64)
        return transformers.GPT2LMHeadModel(gpt2)
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, num_key_value_heads=2))
    return transformers.BertModel(transformers.BertConfig(**TEXT))


def exported(kind: str) -> Model:
    """What our own export makes of it: no shapes of inner tensors, dimensions called batch and seq."""
    from optkit.passes.export_onnx import ExportOnnx
    from tests.passes.test_export_onnx import Ctx

    folder, module = fresh_dir(), tiny(kind)
    for index, weight in enumerate(module.parameters()):  # fresh normalizations are all ones, and exported as nothing
        weight.data += normal(*weight.shape, seed=index, scale=0.1)
    module.save_pretrained(folder)
    source = Model.open(folder)
    return ExportOnnx(exporter="dynamo")(source, Ctx(source, folder)).model


def batch_of(model: Model) -> dict[str, Any]:
    """Four samples; ids are padded by 0 to 3 at the end."""
    if [spec.name for spec in model.signature.inputs] == ["pixel_values"]:
        return {"pixel_values": normal(4, 3, 16, 16)}
    ids = np.random.default_rng(0).integers(0, 1000, (4, 9))
    return {"input_ids": ids, "attention_mask": (np.arange(9) < 9 - np.arange(4)[:, None]).astype(np.int64)}


@pytest.mark.parametrize(
    ("kind", "gelus", "projections"),
    [("bert", 1, 6), ("vit", 1, 6), ("gpt2", 1, 0), ("llama", 0, 7)],
)
def test_what_our_own_export_gives_is_fused(kind: str, gelus: int, projections: int):
    from optkit.passes.simplify import Simplify

    export = exported(kind)
    for model in (export, run_pass(Simplify(), export).model):
        outcome = run_pass(FuseGraph(), model)
        counts = ops_of(outcome.model)
        assert counts["com.microsoft.MultiHeadAttention"] == 1
        assert not counts.keys() & {"Softmax", "Pow", "Erf"}
        assert counts.get("Gelu", 0) + counts.get("com.microsoft.FastGelu", 0) == gelus
        assert counts["MatMul"] >= projections
        inputs = batch_of(model)
        found, expected = run_onnx(outcome.model, inputs), run_onnx(model, inputs)
        for name, array in expected.items():
            assert np.abs(found[name] - array).max() <= 1e-5 * array.std()


def test_two_inputs_whose_dimensions_differ_in_name_are_not_taken_for_one_size():
    from optkit.passes._fusion.shapes import infer_symbolic_shapes
    from optkit.passes._ir import load_ir

    text = "g (float[n,{a}] x, float[n,{b}] z) => (float[n,{a}] y) {{ s = Add(x, z) y = Relu(s) }}"

    def inner(a: str, b: str) -> str:
        graph = load_ir(open_any(onnx_model(text.format(a=a, b=b), {})).path)
        infer_symbolic_shapes(graph)
        return str(next(iter(graph.graph)).outputs[0].shape)

    assert (inner("seq", "seq"), inner("seq", "other")) == ("[n,seq]", "None")


def test_shapes_follow_the_inputs_through_slices_and_reshapes():
    from optkit.passes._fusion.shapes import infer_symbolic_shapes
    from optkit.passes._ir import load_ir

    text = """g (float[batch,seq,32] x) => (float[batch,seq,32] y) {
        n = Shape<start = 1, end = 2>(x) b = Shape<start = 0, end = 1>(x) p = Slice(table, zero, n, zero, one)
        a = Add(x, p) s = Concat<axis = 0>(b, n, rest) r = Reshape(a, s) t = Transpose<perm = [0,2,1,3]>(r)
        u = Transpose<perm = [0,2,1,3]>(t) y = Reshape(u, join) }"""
    values = {"table": normal(64, 32), "zero": np.int64([0]), "one": np.int64([1])}
    values |= {"rest": np.int64([4, 8]), "join": np.int64([0, 0, 32])}
    model = load_ir(open_any(onnx_model(text, values)).path)
    infer_symbolic_shapes(model)
    shapes = {value.name: str(value.shape) for node in model.graph for value in node.outputs}
    assert (shapes["a"], shapes["t"]) == ("[batch,seq,32]", "[batch,4,seq,8]")


def test_sizes_are_read_before_a_transpose():
    from optkit.passes._fusion.attention import free_transposes
    from optkit.passes._ir import load_ir, save_ir

    text = """g (float[a,b,c] x) => (float[p,q,r] y, int64[3] all, int64[1] last) {
        t = Transpose<perm = [1,2,0]>(x) s = Shape(t) l = Shape<start = -1>(t) y = Relu(t)
        all = Identity(s) last = Identity(l) }"""
    model = open_any(onnx_model(text, {}))
    graph, path = load_ir(model.path), fresh_dir() / "model.onnx"
    free_transposes(graph)
    save_ir(graph, path)
    assert [node.inputs[0].name for node in graph.graph if node.op_type == "Shape"] == ["x", "x"]
    found = run_onnx(Model.open(path), {"x": normal(2, 3, 4)})
    assert (found["all"].tolist(), found["last"].tolist()) == ([3, 4, 2], [2])


def test_a_mask_of_the_right_size_is_not_copied():
    model = open_any(masked_by_input("batch,4,seq,seq"))
    assert "Expand" not in ops_of(run_pass(FuseGraph(), model).model)
    inputs = {"x": normal(2, 5, 32, seed=9), "mask": normal(2, 4, 5, 5, seed=8)}
    assert_same(run_pass(FuseGraph(), model).model, model, inputs, 2e-6)


def test_a_mask_of_one_row_is_grown():
    model = open_any(masked_by_input("batch,1,1,seq"))
    outcome = run_pass(FuseGraph(), model)
    assert ops_of(outcome.model)["Expand"] == 1
    inputs = {"x": normal(2, 5, 32, seed=9), "mask": normal(2, 1, 1, 5, seed=8)}
    assert_same(outcome.model, model, inputs, 2e-6)


@pytest.mark.parametrize(("shape", "changed"), [("batch,4,seq,seq", 0), (None, 1)])
def test_attention_with_a_mask_but_no_scale_stays_as_it_is(shape: str | None, changed: int):
    weights = WEIGHTS | {"root": np.float32(1), "join": np.int64([0, 0, 32])}
    plain = onnx_model("plain " + HEAD.format(rows="batch,seq", last="MatMul"), weights)
    assert run_pass(FuseGraph(), masked_by_input(shape, root=1.0) if shape else plain).changed == changed
