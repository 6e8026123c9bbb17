"""What was asked for against what the model and the chain have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optkit.errors import UsageError
from optkit.model.model import Form
from optkit.model.signature import Signature, TensorSpec
from optkit.passes.to_ort_format import ToOrtFormat
from optkit.pipeline.asked import check_ending, check_shapes
from optkit.pipeline.plan import make_plan
from optkit.recipe.recipe import Recipe, TargetSpec
from tests.pipeline import toy

TEXT = Signature((TensorSpec("ids", "int64", ("n", "past + seq")),), ())


@pytest.mark.parametrize(
    ("passes", "name", "what", "fix"),
    [
        ([ToOrtFormat()], "x.onnx", "an ORT file", "x.ort"),
        ([toy.ScaleBy()], "x.ort", "an ONNX file", "x.onnx"),
        ([], "x.ort", "an ONNX file", "x.onnx"),
    ],
)
def test_the_outputs_ending_is_that_of_the_result(
    tmp_path: Path, passes: list[Any], name: str, what: str, fix: str
) -> None:
    model = toy.write_model(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=f"to be {name}, but the result of the recipe is {what}") as caught:
        make_plan(model, Recipe(passes=passes), tmp_path / name, {}, write=False)
    assert caught.value.fix == f"-o {tmp_path / fix}, or a folder: -o {tmp_path / 'x'}"


@pytest.mark.parametrize(("name", "form"), [("x.onnx", "onnx"), ("x.ort", "ort"), ("x", "ort"), ("x.v1", "onnx")])
def test_fitting_endings_and_folders_pass(name: str, form: Form) -> None:
    check_ending(Path(name), form)


def test_a_typo_in_the_targets_shapes_stops_the_plan(tmp_path: Path) -> None:
    recipe = Recipe(passes=[toy.ScaleBy()], target=TargetSpec(shapes={"bach": 4}))
    with pytest.raises(UsageError, match="The dimension 'bach' in the target's shapes does not exist") as caught:
        make_plan(toy.write_model(tmp_path / "m.onnx"), recipe, None, {}, write=False)
    assert (caught.value.expected, caught.value.fix) == (
        "one of the dynamic dimensions: batch",
        "did you mean 'batch'?",
    )


def test_names_in_sums_and_batch_for_the_samples_are_dimensions() -> None:
    check_shapes({"n": 2, "seq": 3, "past": 1, "batch": 2}, TEXT)


def test_a_model_without_dynamic_dimensions_has_none_to_size() -> None:
    fixed = Signature((TensorSpec("x", "float32", (2, 3)),), ())
    with pytest.raises(UsageError, match="'batch'") as caught:
        check_shapes({"batch": 4}, fixed)
    assert caught.value.expected == "none: all sizes are fixed"
    check_shapes({"any": 4}, Signature((TensorSpec("x", "float32", None),), ()))
