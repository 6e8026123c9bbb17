"""Everything that can be refused is refused before any work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from optkit.errors import (
    DataError,
    ModelError,
    OptkitError,
    OutputError,
    PackageError,
    ProviderError,
    RecipeError,
    UsageError,
)
from optkit.evaluate.limits import Limits
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.passes._registry import find
from optkit.pipeline.cache import Cache
from optkit.pipeline.plan import Plan, chain, default_output, make_plan
from optkit.recipe.recipe import Recipe, Step, TargetSpec, When
from tests.helpers import onnx_model
from tests.pipeline import toy
from tests.pipeline.toy import arrays


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toy.write_model(tmp_path / "m.onnx")


def plan(model: Path | Model, *passes: Any, out: Path | None = None, write: bool = False, **options: Any) -> Plan:
    recipe = passes[0] if len(passes) == 1 and isinstance(passes[0], Recipe) else list(passes)
    return make_plan(model, recipe, out, options, write=write)  # type: ignore[arg-type]


def labelled(folder: Path, name: str = "e.npz", count: int = 40, **more: Any) -> Path:
    x = arrays(count, 6)["x"]
    np.savez(folder / name, x=x, labels=(x @ toy.WEIGHTS["w"]).argmax(1), **more)
    return folder / name


# Forms


def test_forms_are_followed_through_the_chain(tmp_path: Path) -> None:
    made = plan(toy.torch_model(tmp_path), toy.Surgery(factory=""), toy.ToyExport(), toy.ScaleBy())
    assert [(step.takes, step.gives) for step in made.steps] == [
        ("torch", "torch"),
        ("torch", "onnx"),
        ("onnx", "onnx"),
    ]
    assert made.job.exporter == toy.ToyExport()


def test_an_export_of_an_onnx_model_is_skipped_in_the_plan(model: Path) -> None:
    made = plan(model, toy.ToyExport(), toy.ScaleBy())
    assert [(step.takes, step.gives, step.skip) for step in made.steps] == [
        ("onnx", "onnx", "the model is ONNX already"),
        ("onnx", "onnx", ""),
    ]


def test_a_step_that_cannot_take_what_comes_is_refused_with_a_hint(tmp_path: Path, model: Path) -> None:
    with pytest.raises(RecipeError, match="'scale-by' takes onnx, but the model is in the form torch") as error:
        plan(toy.torch_model(tmp_path), toy.ScaleBy(), toy.ToyExport())
    assert "put '- export-onnx' before it" in error.value.fix
    with pytest.raises(RecipeError, match="'surgery' takes torch, but the model is in the form onnx"):
        plan(model, toy.Surgery(factory=""))


@pytest.mark.parametrize("passes", [[], [Step(id="e", options=toy.ToyExport(), when=When(provider="cuda"))]])
def test_a_chain_that_ends_as_torch_is_refused(tmp_path: Path, passes: list[Step]) -> None:
    with pytest.raises(RecipeError, match="The recipe leaves the model in the form torch") as error:
        plan(toy.torch_model(tmp_path), *passes)
    assert "export-onnx" in error.value.fix


def test_two_exporters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="more than one pass that exports torch to ONNX") as error:
        plan(toy.torch_model(tmp_path), toy.ToyExport(), toy.SecondExport())
    assert error.value.fix == "remove second-export"


# Packages, providers, applicability, output


def test_a_missing_package_is_named_with_its_cure(model: Path) -> None:
    with pytest.raises(PackageError, match="'needs-package' needs the package no_such_package_anywhere") as error:
        plan(model, toy.NeedsPackage())
    assert error.value.fix == "pip install no_such_package_anywhere"


def test_a_skipped_step_needs_nothing(model: Path) -> None:
    step = Step(id="x", options=toy.NeedsPackage(), when=When(provider="cuda"))
    assert plan(model, step).steps[0].skip == "only for provider cuda"


def test_a_step_that_cannot_work_on_this_model_is_refused(model: Path) -> None:
    with pytest.raises(RecipeError, match="'unfit' cannot work on this model: it is too round"):
        plan(model, toy.Unfit())


def test_a_step_for_another_target_is_refused_also_behind_an_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optkit.pipeline.plan.require", lambda provider: provider)
    for step in (toy.CpuOnly(), find("quantize-dynamic")()):
        with pytest.raises(RecipeError, match=r"cannot work on this model: .* not for cuda"):
            plan(toy.torch_model(tmp_path), toy.ToyExport(), step, provider="cuda")
    skipped = Step(id="cpu", options=toy.CpuOnly(), when=When(provider="cpu"))
    target = Target("cuda", 1)
    assert chain(Recipe(passes=[toy.ToyExport(), skipped]), toy.torch_model(tmp_path), target)[1].skip


def test_a_provider_that_is_not_there_is_refused(model: Path) -> None:
    with pytest.raises(ProviderError, match="nosuch"):
        plan(model, toy.ScaleBy(), provider="nosuch")
    with pytest.raises(ProviderError, match="nosuch"):
        plan(model, Recipe(passes=[toy.ScaleBy()], target=TargetSpec(provider="nosuch")))


def test_the_target_is_the_recipes_with_the_options_over_it(model: Path) -> None:
    recipe = Recipe(passes=[toy.ScaleBy()], target=TargetSpec(threads=3, shapes={"batch": 2}))
    assert plan(model, recipe).job.target.threads == 3
    over = plan(model, recipe, threads=1).job.target
    assert (over.provider, over.threads, over.shapes) == ("cpu", 1, {"batch": 2})
    free = plan(model, toy.ScaleBy())
    assert free.job.target.threads == 0, "nobody stated a number: the model may want one"
    assert 1 <= free.facts()["target"]["threads"] <= (os.cpu_count() or 1)


def test_an_output_that_exists_is_refused_first_of_all(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        plan(tmp_path / "no-such-model.onnx", toy.ScaleBy(), out=tmp_path / "out")


# Data


def test_without_data_there_are_made_up_ones_and_they_say_so(model: Path) -> None:
    splits = plan(model, toy.ScaleBy()).job.splits
    assert {name: (data.count, data.synthetic) for name, data in splits.items()} == {
        "evaluation": (16, True),
        "search": (16, True),
        "calibration": (16, True),
    }
    assert len({data.digest for data in splits.values()}) == 3


def test_made_up_data_follow_the_targets_shapes(model: Path) -> None:
    recipe = Recipe(passes=[toy.ScaleBy()], target=TargetSpec(shapes={"batch": 20}))
    evaluation = plan(model, recipe).job.splits["evaluation"]
    assert (evaluation.batch, evaluation.count) == (20, 20)


def test_calibration_on_made_up_data_needs_permission(model: Path) -> None:
    with pytest.raises(DataError, match="made-up ones give wrong ranges"):
        plan(model, toy.Calibrated())
    allowed = plan(model, toy.Calibrated(), allow_synthetic_calibration=True)
    assert allowed.job.split("calibration").synthetic


def test_search_is_carved_from_evaluation_which_shrinks_and_the_two_are_disjoint(model: Path, tmp_path: Path) -> None:
    made = plan(model, toy.ScaleBy(), data={"evaluation": labelled(tmp_path, count=60)})
    rows = {
        name: {tuple(row) for batch in made.job.splits[name].batches() for row in batch.inputs["x"].tolist()}
        for name in ("search", "evaluation")
    }
    everything = {tuple(row) for row in arrays(60, 6)["x"].tolist()}
    assert rows["search"].isdisjoint(rows["evaluation"])
    assert rows["search"] | rows["evaluation"] == everything
    assert (made.job.splits["search"].count, made.job.splits["evaluation"].count) == (18, 42)
    assert "calibration" in made.job.splits
    again = plan(model, toy.ScaleBy(), data={"evaluation": tmp_path / "e.npz"})
    assert again.job.splits["search"].digest == made.job.splits["search"].digest
    other = plan(model, toy.ScaleBy(), data={"evaluation": tmp_path / "e.npz"}, seed=1)
    assert other.job.splits["search"].digest != made.job.splits["search"].digest


def test_a_search_split_of_ones_own_leaves_evaluation_whole(model: Path, tmp_path: Path) -> None:
    data = {"evaluation": labelled(tmp_path, "e.npz", 40), "search": labelled(tmp_path, "s.npz", 8)}
    splits = plan(model, toy.ScaleBy(), data=data).job.splits
    assert (splits["search"].count, splits["evaluation"].count) == (8, 40)


@pytest.mark.parametrize(
    ("arrays_", "why"),
    [
        ({"z": np.zeros((4, 4), np.float32), "q": np.zeros((4, 4), np.float32)}, "x"),
        ({"x": np.zeros((4, 5), np.float32)}, "x"),
        ({"x": np.array([["a"] * 4] * 4)}, "x"),
        ({"x": np.zeros((0, 4), np.float32)}, "no samples"),
        ({"x": np.full((4, 4), np.nan, np.float32)}, "NaN|finite"),
    ],
)
def test_data_that_do_not_fit_are_refused(model: Path, tmp_path: Path, arrays_: dict[str, Any], why: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays_)
    with pytest.raises(DataError, match=why):
        plan(model, toy.ScaleBy(), data={"evaluation": tmp_path / "bad.npz"})


def test_a_split_that_does_not_exist_is_refused(model: Path) -> None:
    with pytest.raises(UsageError, match="there is no split 'test'"):
        plan(model, toy.ScaleBy(), data=["test=x.npz"])


# Metrics


@pytest.mark.parametrize("metric", [None, "top1"])
def test_a_limit_on_a_metric_needs_labels_and_a_metric(model: Path, tmp_path: Path, metric: str | None) -> None:
    np.savez(tmp_path / "bare.npz", **arrays(8))
    limits = Limits(metric_drop=0.01)
    for data in (None, {"evaluation": tmp_path / "bare.npz"}):
        with pytest.raises(DataError, match="cannot be checked without") as error:
            plan(model, toy.ScaleBy(), data=data, metric=metric, limits=limits)
        assert error.value.exit_code == 3
    if metric is None:
        with pytest.raises(DataError, match="cannot be checked without a metric"):
            plan(model, toy.ScaleBy(), data={"evaluation": labelled(tmp_path)}, limits=limits)
    else:
        assert plan(model, toy.ScaleBy(), data={"evaluation": labelled(tmp_path)}, metric=metric, limits=limits)


def test_a_metric_asked_for_on_the_spot_needs_labels(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", **arrays(8))
    with pytest.raises(DataError, match="The metric top1 cannot be checked without labelled evaluation data"):
        plan(model, toy.ScaleBy(), data={"evaluation": tmp_path / "bare.npz"}, metric="top1")


def test_an_unknown_metric_is_refused_in_the_plan(model: Path, tmp_path: Path) -> None:
    with pytest.raises(OptkitError, match="top7"):
        plan(model, toy.ScaleBy(), data={"evaluation": labelled(tmp_path)}, metric="top7")


# The signature, and what is written


def test_a_run_of_the_original_completes_the_signature(tmp_path: Path) -> None:
    model = toy.torch_model(tmp_path)
    bare = Model.open(model.path, factory=model.factory, signature="x=float32[batch,4]")
    assert bare.signature.outputs == ()
    made = plan(bare, toy.ToyExport(), cache=Cache(tmp_path / "c"))
    assert [str(spec) for spec in made.job.original.signature.outputs] == [
        "y=float32[batch,3]",
        "side=float32[batch,2]",
    ]


def test_inputs_come_from_the_recipe_or_the_data_where_the_model_is_silent(tmp_path: Path) -> None:
    model = toy.torch_model(tmp_path)
    bare = Model.open(model.path, factory=model.factory)
    with pytest.raises(ModelError, match="does not say what its inputs are") as error:
        plan(bare, toy.ToyExport())
    assert "--signature" in error.value.fix
    from_recipe = plan(bare, Recipe(passes=[toy.ToyExport()], inputs={"x": "float32[n,4]"}))
    assert str(from_recipe.job.original.signature.inputs[0]) == "x=float32[n,4]"
    np.savez(tmp_path / "e.npz", **arrays(8))
    from_data = plan(bare, toy.ToyExport(), data={"evaluation": tmp_path / "e.npz"})
    assert str(from_data.job.original.signature.inputs[0]) == "x=float32[batch,4]"


def test_a_dry_run_writes_nothing(model: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    made = plan(model, toy.ScaleBy(), out=tmp_path / "new" / "out", cache=Cache(tmp_path / "cache"))
    assert sorted(tmp_path.rglob("*")) == before
    facts = made.facts()
    assert facts["model"] == {"path": str(model), "form": "onnx", "kind": "onnx"}
    assert facts["steps"] == [{"id": "scale-by", "takes": "onnx", "gives": "onnx", "skip": ""}]
    assert facts["data"]["evaluation"] == {"source": "synthetic", "samples": 16, "batch": 8, "synthetic": True}
    assert facts["output"] == str(tmp_path / "new" / "out")


def test_a_real_run_keeps_the_originals_outputs_for_the_verdict(model: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    plan(model, toy.ScaleBy(), write=True, cache=cache)
    assert [entry.what for entry in cache.entries()] == ["outputs of m.onnx"] * 2


def test_a_model_that_does_not_run_is_refused_before_any_work(tmp_path: Path) -> None:
    text = "g (float[batch,4] x) => (float[batch,3] y) { y = MatMul(x, w) }"
    proto = onnx_model(text, {"w": toy.WEIGHTS["w"][:3]})
    onnx.save(proto, tmp_path / "bad.onnx")
    with pytest.raises((ModelError, DataError)):
        plan(tmp_path / "bad.onnx", toy.ScaleBy())


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("digits_cnn.pt", "digits_cnn.int8"),
        ("some/where/digits_cnn.ts.pt", "digits_cnn.int8"),
        ("my.v1.onnx", "my.v1.int8"),
        ("my.v2.ONNX", "my.v2.int8"),
        ("bundle.int8", "bundle.int8.int8"),
    ],
)
def test_the_default_output_is_the_models_stem_and_the_recipes_name(path: str, name: str) -> None:
    assert default_output(path, Recipe(name="int8")) == Path(name)


def test_the_default_output_of_a_link_is_named_like_the_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blob-1234").write_text("")
    (tmp_path / "nice.onnx").symlink_to(tmp_path / "blob-1234")
    assert default_output(tmp_path / "nice.onnx", Recipe(name="q")) == Path("nice.q")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    assert default_output(".", Recipe(name="q")) == Path("folder.q")
    with pytest.raises(UsageError, match="The output has no name"):
        default_output(".onnx", Recipe(name="q"))
