"""``optkit recipe``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from optkit.recipe.recipe import Recipe
from tests.command import ROOT, SHIPPED_RECIPES, assert_refused, call, write_recipe


def test_list() -> None:
    told = call("recipe", "list")
    assert told.code == 0 and all(name in told.out for name in ("fp32", "int8", "int8-static", "convolutions"))
    facts = call("recipe", "list", "--json").body["result"]
    assert [each["name"] for each in facts] == SHIPPED_RECIPES
    assert all(Path(each["path"]).is_file() and each["description"] for each in facts)


def test_show_prints_the_file_and_resolved_every_default() -> None:
    assert call("recipe", "show", "int8").out == (ROOT / "recipes" / "int8.yaml").read_text()
    told = call("recipe", "show", "int8", "--resolved")
    plain = yaml.safe_load(told.out)
    assert told.code == 0 and plain == Recipe.load("int8").resolved()
    assert "reduce_range" in told.out and "required: false" in told.out
    changed = call("recipe", "show", "int8", "--set", "passes.quantize-dynamic.per_channel=false", "--json").body
    assert changed["result"]["passes"][3]["quantize-dynamic"]["per_channel"] is False


def test_validate(tmp_path: Path) -> None:
    told = call("recipe", "validate", "int8")
    steps = "export-onnx, simplify, fuse-before, quantize-dynamic, fuse-after, tune-session"
    assert told.code == 0 and f"int8 is valid: {steps}" in told.out
    recipe = write_recipe(tmp_path / "r.yaml", "quantize-dynamic: {per_chanel: true}")
    told = call("recipe", "validate", recipe)
    assert_refused(told, 3, f"{recipe}:4:24: The pass", "'per_chanel'", fix="did you mean 'per_channel'?")
    body = call("recipe", "validate", recipe, "--json").body
    assert (body["verb"], body["error"]["line"], body["error"]["column"]) == ("recipe validate", 4, 24)
    write_recipe(recipe, "export-onnx", "export-onnx: {id: second}")
    assert_refused(call("recipe", "validate", recipe), 3, "more than one pass that exports", fix="remove export-onnx")


def test_schema_is_the_file_in_the_repository() -> None:
    told = call("recipe", "schema")
    assert told.code == 0 and json.loads(told.out) == json.loads((ROOT / "recipes" / "schema.json").read_text())


def test_init_starts_a_recipe_that_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = call("recipe", "init")
    assert told.code == 0 and told.out == "Written: recipe.yaml\n"
    assert call("recipe", "validate", "recipe.yaml").code == 0
    assert Recipe.load("recipe.yaml").name == "recipe"
    assert call("recipe", "init", "s.yaml", "--from", "int8-static", "--json").body["result"] == {"file": "s.yaml"}
    assert_refused(call("recipe", "init"), 3, "recipe.yaml exists already", fix="another name")
    assert_refused(call("recipe", "init", "x.yaml", "--from", "int9"), 3, "no recipe 'int9'", fix="'int8'")
