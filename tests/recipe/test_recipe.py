"""A recipe as an object: the same from YAML and from Python, resolved to plain data that loads again."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from optkit.data.spec import DataSource
from optkit.passes.quantize_dynamic import QuantizeDynamic
from optkit.passes.quantize_static import QuantizeStatic
from optkit.passes.simplify import Simplify
from optkit.recipe.load import load_recipe, shipped
from optkit.recipe.recipe import Recipe, Step, absolute
from optkit.recipe.schema import recipe_schema

FULL = """\
version: 1
name: full
description: Everything at once.
inputs: {x: 'float32[batch,3]'}
data:
  evaluation: e.npz
  search: {source: made.py:search, samples: 4}
  calibration: {source: images, format: images, labels: labels.csv}
preprocess: {x: {kind: text, tokenizer: tok}}
outputs: {y: {pool: mean}}
metric: {name: score.py:Mine, args: {a: 1}}
target: {provider: cpu, threads: 2, shapes: {batch: 4}}
passes:
  - simplify
  - quantize-dynamic: {id: first, keep: always, required: true, when: {form: onnx}, exclude: [head]}
  - quantize-dynamic
limits:
  cosine: 1e-1
  speedup: not-slower
  metric_drop: {max: 1e-2, by: bound}
  labelled: {agreement: 0.9}
"""


@pytest.fixture
def full(tmp_path: Path) -> Recipe:
    for name in ("e.npz", "made.py", "labels.csv", "score.py"):
        (tmp_path / name).touch()
    for name in ("images", "tok"):
        (tmp_path / name).mkdir()
    (tmp_path / "full.yaml").write_text(FULL)
    return load_recipe(str(tmp_path / "full.yaml"))


def again(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe's own text, loaded from another folder."""
    folder.mkdir()
    (folder / "again.yaml").write_text(recipe.text())
    return load_recipe(str(folder / "again.yaml"))


def test_resolved_loads_again_and_is_the_same(full: Recipe, tmp_path: Path) -> None:
    copy = again(full, tmp_path / "elsewhere")
    assert copy.resolved() == full.resolved()
    assert copy.passes == full.passes and copy.limits == full.limits and copy.target == full.target


@pytest.mark.parametrize("name", list(shipped()))
def test_shipped_recipes_too(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    copy = again(recipe, tmp_path / "copy")
    assert copy.resolved() == recipe.resolved() and copy.passes == recipe.passes


def test_paths_become_absolute_so_that_a_bundle_can_repeat_it(full: Recipe, tmp_path: Path) -> None:
    plain = full.resolved()
    assert plain["data"]["evaluation"]["source"] == str(tmp_path / "e.npz")
    assert plain["data"]["search"]["source"] == f"{tmp_path / 'made.py'}:search"
    assert plain["data"]["calibration"]["labels"] == str(tmp_path / "labels.csv")
    assert plain["preprocess"]["x"]["tokenizer"] == str(tmp_path / "tok")
    assert plain["metric"] == {"name": f"{tmp_path / 'score.py'}:Mine", "args": {"a": 1}}


def test_what_is_no_file_stays_as_it_is(tmp_path: Path) -> None:
    for reference in ("gone.npz", "pkg.module:fn", "gone.py:fn", "labels", "/no/where.npz"):
        assert absolute(reference, tmp_path) == reference


def test_resolved_spells_out_every_default(full: Recipe) -> None:
    plain = full.resolved()
    simple, first, second = plain["passes"]
    assert simple == {"simplify": {"id": "simplify", "required": False, "keep": "measured", **Simplify().model_dump()}}
    assert first["quantize-dynamic"]["id"] == "first" and first["quantize-dynamic"]["when"] == {"form": "onnx"}
    assert second["quantize-dynamic"]["per_channel"] is True
    assert plain["limits"]["metric_drop"] == {"max": 0.01, "by": "bound"}
    assert list(plain)[:3] == ["version", "name", "description"]
    assert yaml.safe_load(full.text()) == plain


def test_yaml_and_python_say_the_same() -> None:
    text = "passes: [simplify, {quantize-dynamic: {per_channel: false, keep: always}}]"
    entries = yaml.safe_load(text)["passes"]
    step = Step(id="quantize-dynamic", options=QuantizeDynamic(per_channel=False), keep="always")
    assert Recipe(passes=entries) == Recipe(passes=[Simplify(), step])
    assert Recipe(passes=[Simplify()]).passes[0] == Step.of("simplify") == Step.of({"simplify": None})


def test_two_steps_of_one_id_are_refused_in_python_too() -> None:
    with pytest.raises(ValueError, match="two steps have the id 'simplify'"):
        Recipe(passes=[Simplify(), Simplify()])


def test_a_chain_is_exact_when_every_pass_is() -> None:
    assert Recipe(passes=[Simplify()]).exact
    assert not Recipe(passes=[Simplify(), QuantizeDynamic()]).exact
    assert not Recipe(passes=[QuantizeStatic()]).exact


def test_a_bare_path_is_a_source() -> None:
    assert Recipe(data={"evaluation": "e.npz"}).data == {"evaluation": DataSource(source="e.npz")}


def test_the_schema_knows_every_key_and_option() -> None:
    schema = recipe_schema()
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert schema["additionalProperties"] is False and schema["required"] == ["passes"]
    options = schema["$defs"]["quantize-dynamic"]
    assert {"per_channel", "ops", "id", "required", "keep", "when"} <= set(options["properties"])
    assert options["additionalProperties"] is False
    for name, option in options["properties"].items():
        assert option.get("description"), name
    names = [entry["const"] for entry in schema["properties"]["passes"]["items"]["anyOf"] if "const" in entry]
    assert {"export-onnx", "simplify", "fuse-graph", "quantize-dynamic", "quantize-static"} <= set(names)
