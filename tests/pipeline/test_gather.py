"""Where data, preprocessing and metric come from: flags, then the recipe, then data.yaml, which names no code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from optkit.data.spec import DataSource
from optkit.errors import DataError, UsageError
from optkit.model.model import Assets, Model
from optkit.model.target import Target
from optkit.pipeline.gather import complete_inputs, gather, open_splits, parse_data_flags
from optkit.recipe.recipe import Recipe
from tests.pipeline import toy
from tests.pipeline.toy import arrays

TEXT_ENTRY = {"kind": "text", "tokenizer": "tok"}


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model.open(toy.write_model(tmp_path / "model" / "m.onnx"))


def counts(folder: Path, **sizes: int) -> None:
    """NAME.npz with so many samples."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in sizes.items():
        np.savez(folder / f"{name}.npz", **arrays(count, count))


def data_yaml(model: Model, text: str) -> None:
    (model.path.parent / "data.yaml").write_text(text)


def test_flags_are_split_and_path_and_a_bare_path_is_evaluation() -> None:
    found = parse_data_flags(["calibration=c.npz", "e.npz"])
    assert {split: (source.spec.source, source.base, source.code) for split, source in found.items()} == {
        "calibration": ("c.npz", Path.cwd(), True),
        "evaluation": ("e.npz", Path.cwd(), True),
    }
    assert parse_data_flags({"fit": DataSource(source="f.npz", batch=3)})["fit"].spec.batch == 3
    assert parse_data_flags(None) == {}
    with pytest.raises(UsageError, match="there is no split 'validation'") as error:
        parse_data_flags(["validation=v.npz"])
    assert "calibration" in error.value.expected


def test_flags_win_over_the_recipe_and_the_recipe_over_the_file_beside_the_model(model: Model) -> None:
    data_yaml(model, "data: {calibration: a.npz, search: a.npz, evaluation: a.npz, fit: a.npz}\nmetric: mse")
    recipe = Recipe(data={"calibration": "b.npz", "search": "b.npz"}, metric="mae").rooted(Path("/recipes"))
    found = gather(model, recipe=recipe, flags=["calibration=c.npz"], metric="top1")
    assert {split: source.spec.source for split, source in found.sources.items()} == {
        "calibration": "c.npz",
        "search": "b.npz",
        "evaluation": "a.npz",
        "fit": "a.npz",
    }
    assert [found.sources[split].base for split in ("calibration", "search", "evaluation")] == [
        Path.cwd(),
        Path("/recipes"),
        model.path.parent,
    ]
    assert found.metric == "top1"
    assert gather(model, recipe=recipe).metric == "mae"
    assert gather(model).metric == "mse"


def test_only_flags_and_recipes_may_name_code(model: Model) -> None:
    data_yaml(model, "data: {evaluation: a.npz}\nmetric: mse")
    recipe = Recipe(data={"search": "b.npz"}, metric="mae")
    found = gather(model, recipe=recipe, flags=["fit=c.npz"])
    assert {split: source.code for split, source in found.sources.items()} == {
        "fit": True,
        "search": True,
        "evaluation": False,
    }
    assert (found.metric_code, gather(model).metric_code, gather(model, metric="top1").metric_code) == (
        True,
        False,
        True,
    )


@pytest.mark.parametrize(
    "text",
    [
        "data: {evaluation: 'os:getcwd'}",
        "data: {evaluation: {source: 'evil.py:fn', format: function}}",
        "metric: 'evil:Metric'",
    ],
)
def test_a_file_beside_the_model_that_names_code_is_refused(model: Model, text: str) -> None:
    (model.path.parent / "evil.py").write_text("raise SystemExit('it ran')")
    data_yaml(model, text)
    with pytest.raises(DataError, match="code is never run because a file lies beside a model"):
        gather(model)


def test_a_new_evaluation_split_takes_the_old_search_split_with_it(model: Model) -> None:
    data_yaml(model, "data: {search: a.npz, evaluation: a.npz, calibration: a.npz}")
    assert set(gather(model, flags=["e.npz"]).sources) == {"evaluation", "calibration"}
    assert set(gather(model, flags=["e.npz", "search=s.npz"]).sources) == {"evaluation", "calibration", "search"}
    assert set(gather(model, flags=["search=s.npz"]).sources) == {"evaluation", "calibration", "search"}


def test_paths_count_from_the_file_that_states_them(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, recipes = tmp_path / "here", tmp_path / "recipes"
    counts(here, same=3)
    counts(recipes, same=5)
    counts(model.path.parent, same=7)
    monkeypatch.chdir(here)
    data_yaml(model, "data: {evaluation: same.npz}")
    (recipes / "r.yaml").write_text("version: 1\nname: r\ndata: {calibration: same.npz}\npasses: [simplify]")
    found = gather(model, recipe=Recipe.load(recipes / "r.yaml"), flags=["search=same.npz"])
    splits = open_splits(model, found, Target(), seed=0, search=True)
    assert {name: data.count for name, data in splits.items()} == {"search": 3, "calibration": 5, "evaluation": 7}


def test_preprocessing_comes_from_the_recipe_the_model_or_the_file_in_this_order(model: Model) -> None:
    data_yaml(model, "preprocess: {x: {kind: text, tokenizer: beside}}")
    own = replace(model, assets=Assets({"x": TEXT_ENTRY}, Path("/own")))
    recipe = Recipe(preprocess={"x": {"kind": "text", "tokenizer": "recipes"}}).rooted(Path("/recipes"))
    found = [gather(own, recipe=recipe), gather(own), gather(model)]
    assert [(f.preprocess["x"]["tokenizer"], f.assets_dir) for f in found] == [
        ("recipes", Path("/recipes")),
        ("tok", Path("/own")),
        ("beside", model.path.parent),
    ]
    assert complete_inputs(model, found[2]).assets == Assets(found[2].preprocess, model.path.parent)


def test_it_is_said_where_data_were_found(model: Model) -> None:
    assert gather(model).notes == ()
    data_yaml(model, "data: {evaluation: a.npz}")
    assert gather(model).notes == (f"data from {model.path.parent / 'data.yaml'}",)


def test_a_comparison_opens_no_search_split(model: Model, tmp_path: Path) -> None:
    counts(tmp_path, e=20)
    found = gather(model, flags=[f"evaluation={tmp_path / 'e.npz'}"])
    splits = open_splits(model, found, Target(), seed=0, search=False)
    assert {name: (data.count, data.synthetic) for name, data in splits.items()} == {"evaluation": (20, False)}
    made_up = open_splits(model, gather(model), Target(shapes={"batch": 2}), seed=0, search=False)
    assert {name: (data.batch, data.synthetic) for name, data in made_up.items()} == {"evaluation": (2, True)}
