from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

import optkit
from optkit.model.model import Model
from optkit.passes.cast_fp16 import CastFp16
from tests.helpers import normal, onnx_model, open_any, ops_of, relative_error, run_onnx, run_pass

SAMPLES = Path(__file__).parents[2] / "sample_models"
NET = """net (float[batch,1,8,8] x) => (float[batch,10] y) {
    [conv] c = Conv<pads = [1, 1, 1, 1]>(x, k, kb)
    r = Relu(c)
    f = Flatten(r)
    [norm] n = LayerNormalization(f, scale, shift)
    [head] y = Gemm(n, w, b)
}"""
WEIGHTS = {
    "k": normal(4, 1, 3, 3, seed=1),
    "kb": normal(4, seed=2),
    "scale": normal(256, seed=3),
    "shift": normal(256, seed=4),
    "w": normal(256, 10, seed=5, scale=0.1),
    "b": normal(10, seed=6),
}
X = {"x": normal(8, 1, 8, 8, seed=7)}


def test_the_outputs_stay_within_a_thousandth_and_keep_names_and_types() -> None:
    model = open_any(onnx_model(NET, WEIGHTS))
    outcome = run_pass(CastFp16(), model, data={"search": X})
    assert dict(outcome.changes) == dict.fromkeys(("Conv", "Relu", "Flatten", "Gemm"), "1 in float16")
    reason = "LayerNormalization is kept in float32, as torch's autocast does with sums and steep functions"
    assert outcome.skipped == [("norm", reason)]
    assert outcome.notes == ["1 nodes stay in float32; values were watched on 2 samples of memory"]
    assert outcome.model.signature == model.signature
    found = run_onnx(outcome.model, X)["y"]
    assert found.dtype == np.float32
    assert 1e-6 < relative_error(found, run_onnx(model, X)["y"]) < 1e-3
    assert outcome.model.lineage == ("cast-fp16",)


def test_the_weights_of_what_is_cast_take_half_the_bytes() -> None:
    outcome = run_pass(CastFp16(), onnx_model(NET, WEIGHTS), data={"search": X})
    sizes = {each.name: len(each.raw_data) for each in onnx.load(outcome.model.path).graph.initializer}
    assert sizes["w_float16"] == WEIGHTS["w"].nbytes // 2
    assert sizes["scale"] == WEIGHTS["scale"].nbytes


def test_excluded_nodes_stay_and_a_pattern_that_fits_none_is_told() -> None:
    outcome = run_pass(CastFp16(exclude=("co.*", "hed")), onnx_model(NET, WEIGHTS), data={"search": X})
    assert ("conv", "excluded") in outcome.skipped
    assert "exclude 'hed' matches no node; did you mean 'head'?" in outcome.notes
    with pytest.raises(ValidationError, match="no regular expression"):
        CastFp16(exclude=("(",))


@pytest.mark.parametrize(
    "text",
    [
        "g (float[n,4] x) => (float[n,4] y) { s = Softmax(x) y = Relu(s) }",
        "g (int64[n,4] x) => (int64[n,4] y) { y = Add(x, x) }",
    ],
)
def test_a_model_without_weights_to_cast_is_left_alone(text: str) -> None:
    model = open_any(onnx_model(text))
    inputs = {"x": np.ones((2, 4), np.float32 if "float" in text else np.int64)}
    outcome = run_pass(CastFp16(), model, data={"search": inputs})
    assert (outcome.changed, outcome.model) == (0, model)
    assert outcome.notes == ["nothing to cast: no float32 weights that could be float16"]


def test_a_transformer_with_masks_agrees_on_the_cpu() -> None:
    model = Model.open(SAMPLES / "reviews_transformer.onnx")
    rng = np.random.default_rng(0)
    names = [spec.name for spec in model.signature.inputs]
    ids = rng.integers(3, 90, (6, 24))
    mask = (np.arange(24) < rng.integers(4, 24, (6, 1))).astype(np.int64)
    inputs = {name: mask if "mask" in name else ids * mask for name in names}
    outcome = run_pass(CastFp16(), model, data={"search": inputs})
    assert {"MatMul", "Gelu", "Gemm"} <= dict(outcome.changes).keys()
    assert {reason.split(" ")[0] for _, reason in outcome.skipped} == {"LayerNormalization", "Softmax", "ReduceSum"}
    assert relative_error(run_onnx(outcome.model, inputs)["logits"], run_onnx(model, inputs)["logits"]) < 5e-3


def test_optimize_keeps_it_where_nothing_is_timed(tmp_path: Path) -> None:
    manifest = optkit.optimize(SAMPLES / "digits_mlp.onnx", CastFp16(), tmp_path / "out", bench=False, threads=1)
    (step,) = manifest.steps
    assert step.status == "changed"
    assert step.drift is not None and step.drift.cosine is not None and step.drift.cosine > 0.99999
    assert manifest.verdict.held
    assert manifest.result.size_bytes < 0.55 * manifest.original.size_bytes
    assert ops_of(tmp_path / "out" / "model.onnx")["Cast"] == 2
