from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

import optkit
from optkit.errors import DataError, RecipeError
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.passes.freeze_shapes import FreezeShapes
from optkit.pipeline.cache import Cache
from optkit.pipeline.compare import compare
from optkit.pipeline.context import bench_dataset
from optkit.pipeline.infer import infer
from optkit.pipeline.plan import make_plan
from tests.helpers import (
    fresh_dir,
    normal,
    onnx_model,
    open_any,
    ops_of,
    relative_error,
    run_onnx,
    run_pass,
    session_of,
)

SAMPLES = Path(__file__).parents[2] / "sample_models"
HEADS = """g (float[batch,seq,8] x) => (float[batch,seq,8] y, float[rows,4] z) {
    s = Shape(x)
    n = Gather<axis = 0>(s, zero)
    l = Gather<axis = 0>(s, one)
    n1 = Unsqueeze(n, axis)
    l1 = Unsqueeze(l, axis)
    to = Concat<axis = 0>(n1, l1, heads, minus)
    h = Reshape(x, to)
    t = Transpose<perm = [0, 2, 1, 3]>(h)
    e = Exp(t)
    u = Transpose<perm = [0, 2, 1, 3]>(e)
    back = Concat<axis = 0>(n1, l1, minus)
    r = Reshape(u, back)
    y = MatMul(r, w)
    z = Reshape(y, flat)
}"""
WEIGHTS = {
    "zero": np.int64(0),
    "one": np.int64(1),
    "axis": np.array([0]),
    "heads": np.array([2]),
    "minus": np.array([-1]),
    "flat": np.array([-1, 4]),
    "w": normal(8, 8, seed=1),
}


def sizes(model: Model) -> list[str]:
    return [str(spec) for spec in (*model.signature.inputs, *model.signature.outputs)]


def test_sizes_reach_inputs_outputs_and_what_was_computed_from_them() -> None:
    model = open_any(onnx_model(HEADS, WEIGHTS))
    outcome = run_pass(FreezeShapes(dims={"batch": 3, "seq": 5}), model)
    assert outcome.changes[:2] == [("batch", "fixed at 3"), ("seq", "fixed at 5")]
    assert dict(outcome.changes)["Shape"] == "1 -> 0"
    assert sizes(outcome.model) == ["x=float32[3,5,8]", "y=float32[3,5,8]", "z=float32[30,4]"]
    assert ops_of(outcome.model) == {"Reshape": 3, "Transpose": 2, "Exp": 1, "MatMul": 1}
    x = {"x": normal(3, 5, 8, seed=2)}
    for name, array in run_onnx(model, x).items():
        np.testing.assert_allclose(run_onnx(outcome.model, x)[name], array, rtol=1e-6)
    onnx.checker.check_model(outcome.model.path, full_check=True)


def test_one_dimension_can_stay_dynamic() -> None:
    model = open_any(onnx_model(HEADS, WEIGHTS))
    outcome = run_pass(FreezeShapes(dims={"seq": 5}), model)
    assert outcome.changed == 1
    assert sizes(outcome.model)[:2] == ["x=float32[batch,5,8]", "y=float32[batch,5,8]"]
    for rows in (1, 4):
        x = {"x": normal(rows, 5, 8, seed=rows)}
        np.testing.assert_allclose(run_onnx(outcome.model, x)["y"], run_onnx(model, x)["y"], rtol=1e-6)


def test_other_sizes_are_refused_by_onnxruntime_afterwards() -> None:
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

    outcome = run_pass(FreezeShapes(dims={"batch": 3}), onnx_model(HEADS, WEIGHTS))
    with pytest.raises(InvalidArgument, match="Got: 2 Expected: 3"):
        session_of(outcome.model.path).run(None, {"x": normal(2, 5, 8)})


def test_without_dims_the_targets_shapes_count() -> None:
    target = Target("cpu", 1, {"batch": 2, "frames": 7})
    outcome = run_pass(FreezeShapes(), onnx_model(HEADS, WEIGHTS), target=target)
    assert sizes(outcome.model)[0] == "x=float32[2,seq,8]"


@pytest.mark.parametrize(
    ("text", "shapes", "note"),
    [
        ("g (float[2,4] x) => (float[2,4] y) { y = Relu(x) }", {}, "all sizes of the inputs are fixed already"),
        (
            "g (float[n,t] x) => (float[n,t] y) { y = Relu(x) }",
            {},
            "neither dims nor the target's shapes give sizes; the dynamic dimensions are n, t",
        ),
        (
            "g (float[n,t] x) => (float[n,t] y) { y = Relu(x) }",
            {"seq": 3},
            "no size is given for any: the dynamic dimensions are n, t",
        ),
    ],
)
def test_nothing_to_freeze_is_no_change(text: str, shapes: dict[str, int], note: str) -> None:
    outcome = run_pass(FreezeShapes(), onnx_model(text), target=Target("cpu", 1, shapes))
    assert (outcome.changed, outcome.notes) == (0, [note])


def test_dimensions_that_are_not_there_are_refused_with_a_suggestion() -> None:
    model = open_any(onnx_model(HEADS, WEIGHTS))
    reason = FreezeShapes(dims={"bach": 1}).applies(model, Target())
    assert reason == "it has no dynamic dimension 'bach', but batch, seq; did you mean 'batch'?"
    assert FreezeShapes(dims={"batch": 1}).applies(model, Target()) == ""
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        FreezeShapes(dims={"batch": 0})


def test_dimensions_without_a_name_are_frozen_by_the_name_that_they_are_shown_with() -> None:
    model = open_any(onnx_model("g (float[?,?] x) => (float[?,?] y) { y = Relu(x) }"))
    assert sizes(model)[0] == "x=float32[batch,x_dim1]"
    outcome = run_pass(FreezeShapes(dims={"batch": 2, "x_dim1": 3}), model)
    assert sizes(outcome.model) == ["x=float32[2,3]", "y=float32[2,3]"]


def test_sums_of_names_are_fixed_with_their_parts() -> None:
    proto = onnx_model("g (float[n,p] x, float[n,s] z) => (float[n,q] y) { y = Concat<axis = 1>(x, z) }")
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "p + s"
    outcome = run_pass(FreezeShapes(dims={"p": 3, "s": 2}), proto)
    assert sizes(outcome.model)[-1] == "y=float32[n,5]"


def test_subgraphs_see_the_sizes() -> None:
    text = """g (float[n,4] x) => (float[n,4] y) {
        sum = ReduceSum<keepdims = 0>(x)
        c = Greater(sum, zero)
        y = If (c) <
            then_branch = t () => (float[n,4] p) { s = Shape(x) o = Expand(one, s) p = Add(x, o) },
            else_branch = e () => (float[n,4] q) { q = Neg(x) }
        >
    }"""
    model = open_any(onnx_model(text, {"zero": np.float32(0), "one": np.float32(1)}))
    outcome = run_pass(FreezeShapes(dims={"n": 2}), model)
    assert "Shape" not in ops_of(outcome.model)
    for sign in (-1, 1):
        x = {"x": sign * np.abs(normal(2, 4))}
        np.testing.assert_array_equal(run_onnx(outcome.model, x)["y"], run_onnx(model, x)["y"])


def write_linear(path: Path, rows: str) -> Path:
    text = f"g (float[{rows},4] x) => (float[{rows},3] y) {{ y = MatMul(x, w) }}"
    onnx.save(onnx_model(text, {"w": normal(4, 3, seed=1)}), path)
    return path


def write_data(path: Path, count: int = 10) -> dict[str, Any]:
    np.savez(path, x=normal(count, 4, seed=2))
    return {"evaluation": str(path), "search": str(path)}


@pytest.mark.parametrize("rows", ["batch", "4"])
def test_a_last_batch_that_is_not_full_counts_with_its_real_samples(tmp_path: Path, rows: str) -> None:
    """Frozen at 4 or fixed at 4 from the start: 10 samples are fed as 4, 4 and 2 that are filled up to 4."""
    path, data = write_linear(tmp_path / "m.onnx", rows), write_data(tmp_path / "e.npz")
    recipe = [FreezeShapes(dims={"batch": 4})] if rows == "batch" else ["simplify"]
    manifest = optkit.optimize(path, recipe, tmp_path / "out", data=data, bench=False, threads=1)
    assert manifest.verdict.held
    assert (manifest.verdict.measured_on.samples, manifest.verdict.measured_on.batch) == (10, 4)
    assert [output.rows for output in manifest.verdict.outputs] == [10]
    if rows == "batch":
        assert manifest.steps[0].status == "changed"
        assert "everything is measured at batch=4, which the recipe fixes" in manifest.notes
        assert Model.open(tmp_path / "out").signature.inputs[0].shape == (4, 4)


def test_the_bundle_can_be_checked_and_run_afterwards(tmp_path: Path) -> None:
    path, data = write_linear(tmp_path / "m.onnx", "batch"), write_data(tmp_path / "e.npz")
    out = tmp_path / "out"
    optkit.optimize(path, FreezeShapes(dims={"batch": 4}), out, data=data, bench=False, threads=1)
    verdict = compare(path, out, data=data)
    assert verdict.held and verdict.measured_on.batch == 4
    assert [output.rows for output in verdict.outputs] == [10]
    ran = infer(out, inputs=tmp_path / "e.npz", output=tmp_path / "y.npz")
    assert ran.facts.data.samples == 10
    with np.load(tmp_path / "e.npz") as given, np.load(tmp_path / "y.npz") as found:
        np.testing.assert_allclose(found["y"], given["x"] @ normal(4, 3, seed=1), rtol=1e-5)


def test_made_up_inputs_have_the_frozen_sizes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(onnx_model(HEADS, WEIGHTS), path)
    manifest = optkit.optimize(path, FreezeShapes(dims={"batch": 5, "seq": 3}), bench=False, threads=1)
    assert manifest.steps[0].status == "changed"
    assert manifest.verdict.held and manifest.verdict.measured_on.batch == 5


def test_the_targets_shapes_are_part_of_what_is_cached(tmp_path: Path) -> None:
    path, cache = write_linear(tmp_path / "m.onnx", "batch"), Cache(tmp_path / "cache")
    for rows in (2, 3):
        recipe = optkit.Recipe.model_validate({"passes": ["freeze-shapes"], "target": {"shapes": {"batch": rows}}})
        out = tmp_path / f"out{rows}"
        optkit.optimize(path, recipe, out, cache=cache, bench=False, threads=1)
        assert Model.open(out).signature.inputs[0].shape == (rows, 4)


def test_what_is_timed_has_the_frozen_sizes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(onnx_model(HEADS, WEIGHTS), path)
    recipe = optkit.Recipe.model_validate(
        {"passes": [{"freeze-shapes": {"dims": {"seq": 6}}}], "target": {"shapes": {"batch": 2, "seq": 4}}}
    )
    job = make_plan(path, recipe, None, {"cache": Cache(tmp_path / "cache")}).job
    assert next(bench_dataset(job).batches()).inputs["x"].shape == (2, 6, 8)


def test_the_sample_axis_stays_where_the_name_was(tmp_path: Path) -> None:
    """[seq, batch, 4]: with both sizes fixed nothing tells the batch any more, the original still does."""
    path = tmp_path / "m.onnx"
    text = "g (float[seq,batch,4] x) => (float[seq,batch,3] y) { y = MatMul(x, w) }"
    onnx.save(onnx_model(text, {"w": normal(4, 3)}), path)
    np.savez(tmp_path / "e.npz", x=normal(6, 10, 4))
    data = {"evaluation": str(tmp_path / "e.npz"), "search": str(tmp_path / "e.npz")}
    manifest = optkit.optimize(path, FreezeShapes(dims={"batch": 4, "seq": 6}), data=data, bench=False, threads=1)
    assert manifest.steps[0].status == "changed"
    assert (manifest.verdict.measured_on.samples, manifest.verdict.measured_on.batch) == (10, 4)


def test_texts_are_padded_to_the_frozen_length(tmp_path: Path) -> None:
    recipe = FreezeShapes(dims={"batch": 8, "seq": 64})
    manifest = optkit.optimize(SAMPLES / "reviews_transformer.onnx", recipe, tmp_path / "out", bench=False, threads=1)
    assert [step.status for step in manifest.steps] == ["changed"]
    assert manifest.verdict.held
    assert Model.open(tmp_path / "out").signature.inputs[0].shape == (8, 64)


def test_texts_longer_than_the_frozen_length_stop_the_plan(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has \d+ tokens.*, but 'input_ids' takes 16") as caught:
        make_plan(
            SAMPLES / "reviews_transformer.onnx", FreezeShapes(dims={"seq": 16}), tmp_path / "out", {}, write=False
        )
    assert "`max_length: 16`" in caught.value.fix and caught.value.fix.endswith("fixes seq=16")


def test_data_of_another_length_are_refused_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(onnx_model(HEADS, WEIGHTS), path)
    np.savez(tmp_path / "e.npz", x=normal(6, 7, 8))
    recipe = FreezeShapes(dims={"seq": 5})
    with pytest.raises(DataError) as caught:
        optkit.optimize(path, recipe, tmp_path / "out", data={"evaluation": str(tmp_path / "e.npz")}, bench=False)
    assert caught.value.message.startswith("Axis 1 of the data for the input 'x' has size 7")
    assert caught.value.fix.endswith("; here the recipe, or the result, fixes seq=5")


def test_an_unknown_name_stops_the_plan(tmp_path: Path) -> None:
    path = write_linear(tmp_path / "m.onnx", "batch")
    with pytest.raises(RecipeError, match="no dynamic dimension 'bacth', but batch") as caught:
        optkit.optimize(path, FreezeShapes(dims={"bacth": 4}), tmp_path / "out", bench=False)
    assert caught.value.fix == "did you mean 'batch'?"


def test_weights_beside_the_model_stay_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optkit.model.onnx_file.EXTERNAL_ABOVE", 1000)
    path = fresh_dir() / "model.onnx"
    proto = onnx_model("g (float[n,64] x) => (float[n,64] y) { y = MatMul(x, w) }", {"w": normal(64, 64)})
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin")
    outcome = run_pass(FreezeShapes(dims={"n": 2}), path)
    x = {"x": normal(2, 64, seed=1)}
    assert relative_error(run_onnx(outcome.model, x)["y"], run_onnx(path, x)["y"]) == 0
