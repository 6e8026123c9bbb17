"""Zeros: how many, which ones, where they are not put, and that they last."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from optkit.data.yaml_file import parse_value
from optkit.errors import PassError
from optkit.model.load_torch import load_module
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.passes._prune.sparse import Weight, n_of_m, packed, smallest, spread, zeros
from optkit.passes._prune.weights import torch_weights
from optkit.passes.prune_magnitude import PruneMagnitude
from optkit.passes.quantize_dynamic import QuantizeDynamic
from optkit.passes.quantize_static import QuantizeStatic
from optkit.passes.quantize_weights import QuantizeWeights
from tests.command import SAMPLES
from tests.helpers import fresh_dir, normal, onnx_model, open_any, relative_error, run_onnx, run_pass

MLP = """mlp (float[batch,64] x) => (float[batch,32] y) {
    [first] m = MatMul(x, w1) r = Relu(m) [second] y = Gemm<transB = 1>(r, w2, b) }"""
WEIGHTS = {"w1": normal(64, 48, seed=1), "w2": normal(32, 48, seed=2, scale=0.1), "b": normal(32, seed=3)}
X = {"x": normal(8, 64, seed=4)}


def stored(model: Model) -> dict[str, np.ndarray]:
    return {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(model.path).graph.initializer}


def sample(name: str) -> Model:
    return Model.open(SAMPLES / f"{name}.safetensors", factory=f"{SAMPLES / 'models.py'}:{name}")


def holder(array: np.ndarray) -> Weight:
    return Weight("w", 1, lambda: array, lambda rule: None)


# The numbers


@pytest.mark.parametrize("shape", [(7,), (6, 5), (4, 3, 3, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_the_smallest_and_no_others_become_zero(shape, dtype):
    weights = normal(*shape).astype(dtype)
    count = weights.size // 3
    pruned = smallest(weights, count)
    order = np.argsort(np.abs(weights).reshape(-1))
    assert set(np.flatnonzero(pruned.reshape(-1) == 0)) == set(order[:count])
    kept = pruned != 0
    assert np.array_equal(pruned[kept], weights[kept])
    assert pruned.dtype == dtype


def test_of_equal_weights_only_as_many_as_asked_for():
    assert smallest(np.ones((2, 4), np.float32), 3).tolist() == [[0, 0, 0, 1], [1, 1, 1, 1]]
    assert zeros(smallest(normal(4, 4), 0)) == 0


@pytest.mark.parametrize("count", [0, 1, 100, 333, 720])
def test_shares_of_layers_are_those_of_one_sort(count):
    arrays = [normal(12, 20), normal(24, 10, seed=1, scale=0.01), np.round(normal(240, seed=2).reshape(8, 30), 1)]
    counts = spread([holder(each) for each in arrays], count)
    assert sum(counts) == count
    sizes = np.abs(np.concatenate([each.reshape(-1) for each in arrays]))
    kept = np.concatenate([smallest(each, n).reshape(-1) for each, n in zip(arrays, counts, strict=True)]) != 0
    largest = np.sort(sizes)[::-1][: len(sizes) - count]
    assert np.array_equal(np.sort(sizes[kept])[::-1], largest[largest > 0])


@pytest.mark.parametrize(("keep", "block"), [(2, 4), (1, 4), (4, 8)])
@pytest.mark.parametrize("axis", [0, 1])
def test_every_block_keeps_its_largest(keep, block, axis):
    weights = normal(16, 24, 3)
    pruned = n_of_m(weights, keep, block, axis)
    blocks = np.moveaxis(weights, axis, -1).reshape(-1, block)
    left = np.moveaxis(pruned, axis, -1).reshape(-1, block)
    assert ((left != 0).sum(axis=1) == keep).all()
    np.testing.assert_allclose(np.abs(left).sum(1), np.sort(np.abs(blocks), axis=1)[:, -keep:].sum(1), rtol=1e-6)
    assert np.array_equal(pruned[pruned != 0], weights[pruned != 0])


def test_zeros_compress():
    weights = normal(512, 512)
    dense, half = packed(weights), packed(smallest(weights, weights.size // 2))
    assert 0.85 * weights.nbytes < dense < weights.nbytes
    assert 0.5 * weights.nbytes < half < 0.7 * weights.nbytes
    assert packed(np.zeros((512, 512), np.float32)) < 0.01 * weights.nbytes


# ONNX


def test_a_share_of_every_layer():
    outcome = run_pass(PruneMagnitude(sparsity=0.75, scope="layer"), onnx_model(MLP, WEIGHTS))
    found = stored(outcome.model)
    for name in ("w1", "w2"):
        assert np.array_equal(found[name], smallest(WEIGHTS[name], WEIGHTS[name].size * 3 // 4))
    assert np.array_equal(found["b"], WEIGHTS["b"])
    assert outcome.changes == [
        ("first", "zeros 0.0% -> 75.0% of 3072"),
        ("second", "zeros 0.0% -> 75.0% of 1536"),
    ]
    hidden = np.maximum(X["x"] @ found["w1"], 0)
    assert relative_error(run_onnx(outcome.model, X)["y"], hidden @ found["w2"].T + WEIGHTS["b"]) < 1e-5
    assert any("no faster" in note for note in outcome.notes)
    assert any("compressed" in note for note in outcome.notes)


def test_global_spares_the_layer_of_large_weights():
    outcome = run_pass(PruneMagnitude(), onnx_model(MLP, WEIGHTS))
    found = stored(outcome.model)
    assert zeros(found["w1"]) + zeros(found["w2"]) == (64 * 48 + 32 * 48) // 2
    assert zeros(found["w2"]) / found["w2"].size > 0.95
    assert zeros(found["w1"]) / found["w1"].size < 0.3


def test_a_pattern_runs_along_the_inputs_however_they_are_stored():
    outcome = run_pass(PruneMagnitude(pattern="2:4"), onnx_model(MLP, WEIGHTS))
    found = stored(outcome.model)
    for blocks in (found["w1"].T.reshape(-1, 4), found["w2"].reshape(-1, 4)):
        assert ((blocks != 0).sum(axis=1) == 2).all()


def test_a_pattern_leaves_layers_that_it_does_not_fit():
    model = onnx_model(
        "g (float[n,3,8,8] x) => (float[n,8,4,4] y) { [one] a = Conv(x, v) [two] y = Conv(a, w) }",
        {"v": normal(8, 3, 3, 3), "w": normal(8, 8, 3, 3, seed=1)},
    )
    outcome = run_pass(PruneMagnitude(pattern="1:4"), model)
    assert outcome.skipped == [("one", "its 3 inputs are no multiple of 4")]
    found = stored(outcome.model)
    assert ((np.moveaxis(found["w"], 1, -1).reshape(-1, 4) != 0).sum(axis=1) == 1).all()
    assert zeros(found["v"]) == 0


def test_subgraphs_and_constant_nodes():
    model = onnx_model(
        "g (bool c, float[n,64] x) => (float[n,48] y) {"
        " y = If(c) <then_branch = t () => (float[n,48] a) { a = MatMul(x, w1) },"
        " else_branch = e () => (float[n,48] b)"
        " { k = Constant<value = float[64,2] {" + ", ".join(["1.0", "3.0"] * 64) + "}>()"
        " u = MatMul(x, k) b = MatMul(u, v) }> }",
        {"w1": WEIGHTS["w1"], "v": normal(2, 48, seed=9)},
    )
    outcome = run_pass(PruneMagnitude(scope="layer"), model)
    assert outcome.changed == 3
    for chosen, expected in (
        (True, X["x"] @ smallest(WEIGHTS["w1"], 1536)),
        (False, X["x"] @ np.float32([[0, 3]] * 64) @ smallest(normal(2, 48, seed=9), 48)),
    ):
        found = run_onnx(outcome.model, X | {"c": np.array(chosen)})["y"]
        assert relative_error(found, expected) < 1e-5


def test_embeddings_stay_also_where_the_output_layer_is_tied_to_them():
    model = onnx_model(
        """g (int64[n,m] ids) => (float[n,m,30] y) {
            e = Gather(w, ids) [mid] h = MatMul(e, v) t = Transpose<perm = [1, 0]>(w) [head] y = MatMul(h, t) }""",
        {"w": normal(30, 16), "v": normal(16, 16, seed=1)},
    )
    outcome = run_pass(PruneMagnitude(), model)
    assert outcome.skipped == [("head", "its weights are read by Gather too")]
    found = stored(outcome.model)
    assert (zeros(found["w"]), zeros(found["v"])) == (0, 128)


def test_weights_of_two_layers_are_pruned_once():
    text = "g (float[n,64] x) => (float[n,48] y) { [one] a = MatMul(x, w1) [two] b = MatMul(x, w1) y = Add(a, b) }"
    outcome = run_pass(PruneMagnitude(), onnx_model(text, {"w1": WEIGHTS["w1"]}))
    assert zeros(stored(outcome.model)["w1"]) == 1536
    assert outcome.skipped == [("two", "its weights are those of 'one'")]


def test_weights_in_a_file_of_their_own(monkeypatch):
    monkeypatch.setattr("optkit.model.onnx_file.EXTERNAL_ABOVE", 1000)
    path = fresh_dir() / "model.onnx"
    onnx.save(onnx_model(MLP, WEIGHTS), path, save_as_external_data=True, location="w.data", size_threshold=0)
    outcome = run_pass(PruneMagnitude(sparsity=0.9, scope="layer"), path)
    assert (outcome.model.path.parent / "model.onnx.data").is_file()
    assert zeros(stored(outcome.model)["w1"]) == round(0.9 * 3072)
    assert zeros(stored(Model.open(path))["w1"]) == 0


def test_excluded_layers_stay_and_typos_are_told():
    outcome = run_pass(PruneMagnitude(exclude=("fir.*", "sekond")), onnx_model(MLP, WEIGHTS))
    assert outcome.skipped == [("first", "excluded")]
    assert zeros(stored(outcome.model)["w1"]) == 0
    assert "exclude 'sekond' matches no layer; did you mean 'second'?" in outcome.notes


# Quantization afterwards


def as_integers(model: Model) -> list[np.ndarray]:
    """The int8 weights of the two layers, by size."""
    found = [each for each in stored(model).values() if each.dtype == np.int8 and each.ndim == 2]
    return sorted(found, key=lambda each: -each.size)


@pytest.mark.parametrize("quantize", [QuantizeDynamic(), QuantizeStatic()])
def test_zeros_stay_zeros_in_int8(quantize):
    pruned = run_pass(PruneMagnitude(sparsity=0.6, scope="layer"), onnx_model(MLP, WEIGHTS)).model
    data = {split: {"x": normal(32, 64, seed=5)} for split in ("calibration", "search")}
    integers = as_integers(run_pass(quantize, pruned, data=data).model)
    dense = as_integers(run_pass(quantize, onnx_model(MLP, WEIGHTS), data=data).model)
    for found, whole, name in zip(integers, dense, ("w1", "w2"), strict=True):
        kept = stored(pruned)[name]
        where = kept == 0 if found.shape == kept.shape else kept.T == 0
        assert (found[where] == 0).all()
        assert zeros(found) >= round(0.6 * found.size) > 2 * zeros(whole)
    compressed = [sum(map(packed, each)) for each in (integers, dense)]
    assert compressed[0] < 0.7 * compressed[1]


def test_zeros_stay_zeros_in_symmetric_blocks():
    pruned = run_pass(PruneMagnitude(pattern="2:4"), onnx_model(MLP, WEIGHTS)).model
    options = QuantizeWeights(bits=8, symmetric=True, format="qdq")
    made = run_pass(options, pruned, target=Target(threads=1)).model
    assert relative_error(run_onnx(made, X)["y"], run_onnx(pruned, X)["y"]) < 0.02
    codes = [each for each in stored(made).values() if each.dtype.kind in "iu" and each.size in (3072, 1536)]
    assert [zeros(each) >= each.size // 2 for each in codes] == [True, True]


# Torch


def test_the_cnn_keeps_its_accuracy_with_70_percent_zeros_of_all_its_weights():
    made = [run_pass(PruneMagnitude(sparsity=0.7, scope=scope), sample("digits_cnn")) for scope in ("global", "layer")]
    before, whole, each = [load_module(model) for model in (sample("digits_cnn"), *(done.model for done in made))]
    names = [name for name, _ in made[0].changes]
    assert names == ["features.0", "features.3", "classifier.1", "classifier.4"]
    shares = [
        [float((module.get_submodule(name).weight == 0).float().mean()) for name in names] for module in (whole, each)
    ]
    assert shares[0][0] < 0.2
    np.testing.assert_allclose(shares[1], 0.7, atol=0.005)
    assert torch.equal(whole.features[1].weight, before.features[1].weight)
    images, labels = searched()
    with torch.no_grad():
        right = [float((part(images)["logits"].argmax(1) == labels).float().mean()) for part in (before, whole, each)]
    assert right[0] - 0.01 <= right[1]
    assert right[2] < right[1] - 0.2


def test_torch_and_onnx_samples_get_the_same_zeros():
    live = load_module(run_pass(PruneMagnitude(sparsity=0.7), sample("digits_mlp")).model)
    graph = run_pass(PruneMagnitude(sparsity=0.7), SAMPLES / "digits_mlp.onnx")
    images, _ = searched()
    with torch.no_grad():
        expected = live(images)["logits"].numpy()
    assert relative_error(run_onnx(graph.model, {"image": images.numpy()})["logits"], expected) < 1e-5


def searched() -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of the digits' search split."""
    with np.load(SAMPLES / "data" / "digits_search.npz") as file:
        return torch.from_numpy(file["image"]), torch.from_numpy(file["labels"])


class Odd(nn.Module):
    """Layers of which only some can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(12, 8), nn.Linear(8, 12, bias=False)
        self.head.weight = self.words.weight
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up = nn.ConvTranspose1d(8, 4, 2)
        self.low = nn.Linear(8, 8).bfloat16()


def test_which_layers_of_a_module_are_pruned():
    from optkit.passes._prune.weights import torch_weights

    torch.manual_seed(0)
    module = Odd()
    found = torch_weights(module, ["up"])
    assert [(each.label, each.axis) for each in found.weights] == [
        *(("one", 1), ("mix", 1), ("mix.out_proj", 1), ("low", 1)),
    ]
    assert found.skipped == [
        ("head", "its weight is also that of 'words', which is no such layer"),
        ("two", "its weight is that of 'one'"),
        ("normed", "its weight is computed, as by a parametrization"),
        ("up", "excluded"),
    ]
    for each in found.weights:
        each.prune(lambda weights: smallest(weights, weights.size // 2))
    assert module.two.weight is module.one.weight
    weights = module.one.weight, module.mix.in_proj_weight, module.low.weight
    assert [int((each == 0).sum()) for each in weights] == [32, 96, 32]
    assert module.low.weight.dtype == torch.bfloat16


def test_a_transformers_conv1d_keeps_the_pattern_along_its_inputs(tmp_path):
    import transformers

    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": 11, "n_positions": 16}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "hf")
    outcome = run_pass(PruneMagnitude(pattern="2:4"), Model.open(tmp_path / "hf"))
    assert [name for name, _ in outcome.skipped] == ["lm_head"]
    loaded = load_module(outcome.model)
    weight = loaded.transformer.h[0].attn.c_attn.weight.detach().numpy()
    assert weight.shape == (8, 24)
    assert ((weight.T.reshape(-1, 4) != 0).sum(axis=1) == 2).all()
    assert outcome.changed == 4


# What is refused


@pytest.mark.parametrize(
    ("text", "weights", "why"),
    [
        ("g (float[n,4] x) => (float[n,4] y) { y = Relu(x) }", {}, "no linear layer or convolution"),
        ("g (float[n,4] x, float[4,4] w) => (float[n,4] y) { y = MatMul(x, w) }", {}, "its second input is computed"),
        (
            "g (float[n,8] x) => (float[n,8] y) { y = MatMul(x, w) }",
            {"w": np.eye(8, dtype=np.float32)},
            r"87\.5% of the weights that could be pruned are zero already",
        ),
        (
            "g (float[n,2] x) => (float[n,2] y) { y = MatMul(x, w) }",
            {"w": np.full((2, 2), np.nan, np.float32)},
            "infinite or NaN",
        ),
    ],
)
def test_nothing_to_prune_is_an_error_with_its_reason(text, weights, why):
    with pytest.raises(PassError, match=why):
        run_pass(PruneMagnitude(), onnx_model(text, weights))


def test_pruned_twice_is_an_error():
    once = run_pass(PruneMagnitude(), onnx_model(MLP, WEIGHTS)).model
    with pytest.raises(PassError, match=r"50\.0% of the weights that could be pruned are zero already"):
        run_pass(PruneMagnitude(sparsity=0.5), once)


def test_exports_cannot_be_written_back():
    model = open_any(SAMPLES / "digits_mlp.ts.pt")
    assert "TorchScript cannot be changed" in PruneMagnitude().applies(model, Target())
    assert PruneMagnitude().applies(sample("digits_mlp"), Target()) == ""
    assert PruneMagnitude().applies(open_any(SAMPLES / "digits_mlp.onnx"), Target()) == ""


@pytest.mark.parametrize("pattern", ["4:2", "2:2", "0:4", "2-4", "half", 3])
def test_what_is_no_pattern(pattern):
    with pytest.raises(ValidationError, match=r"N:M|string"):
        PruneMagnitude(pattern=pattern)


def test_a_pattern_needs_no_quotes():
    assert PruneMagnitude(pattern=parse_value("2:4")).pattern == "2:4"
    assert PruneMagnitude(pattern="2:4").sentence() == "prune-magnitude: {pattern: '2:4'}"


def test_a_pattern_is_a_share_already():
    with pytest.raises(ValidationError, match="exclude each other"):
        PruneMagnitude(pattern="2:4", sparsity=0.5)


def test_a_transposed_weight_that_others_read_stays():
    text = """net (float[batch,64] x) => (float[batch,48] y) {
        t = Transpose<perm = [1, 0]>(w) m = MatMul(x, t) s = ReduceSum<keepdims = 0>(t) y = Add(m, s) }"""
    with pytest.raises(PassError, match="its weights are read by ReduceSum too"):
        run_pass(PruneMagnitude(), onnx_model(text, {"w": normal(48, 64)}))


def test_doubles_keep_all_their_digits():
    module = nn.Sequential(nn.Linear(8, 16)).double()
    before = module[0].weight.detach().clone()
    (found,) = torch_weights(module, ()).weights
    found.prune(lambda weights: smallest(weights, 64))
    after = module[0].weight.detach()
    assert int((after == 0).sum()) == 64
    assert torch.equal(after[after != 0], before[after != 0])
