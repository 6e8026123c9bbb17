"""What is generated is fresh, and what optkit prints is what its generated schemas say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.command import ROOT, SAMPLES, Answer, call, write_data, write_mlp, write_recipe
from tests.generate import stale

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_the_generated_files_are_fresh() -> None:
    assert stale() == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_validates(path: Path) -> None:
    import yaml

    assert call("recipe", "validate", path).code == 0
    plain = yaml.safe_load(path.read_text())
    validator("recipes/schema.json").validate(plain)
    assert plain["name"] == path.stem
    assert plain["description"]
    assert "data" not in plain


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 1, "passes": ["quantise-dynamic"]},
        {"version": 1, "passes": [{"quantize-dynamic": {"per_chanel": True}}]},
        {"version": 1, "passes": ["simplify"], "limit": {"cosine": 0.9}},
        {"version": 2, "passes": ["simplify"]},
    ],
)
def test_the_recipe_schema_refuses_what_the_loader_refuses(wrong: dict[str, Any], tmp_path: Path) -> None:
    import yaml

    assert not validator("recipes/schema.json").is_valid(wrong)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(wrong))
    assert call("recipe", "validate", tmp_path / "recipe.yaml").code == 3


def validator(file: str) -> Draft202012Validator:
    schema = json.loads((ROOT / file).read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def result_validator(facts: str) -> Draft202012Validator:
    """For the envelope with a result of exactly that kind, where the envelope alone allows any."""
    schema = json.loads((ROOT / "docs" / "output.schema.json").read_text())
    assert facts in schema["$defs"]
    schema["properties"]["result"] = {"$ref": f"#/$defs/{facts}"}
    return Draft202012Validator(schema)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, data and a finished bundle of it."""
    folder = tmp_path_factory.mktemp("verbs")
    write_mlp(folder / "model.onnx")
    write_data(folder / "data.npz")
    write_recipe(folder / "recipe.yaml")
    flags = ("--recipe", folder / "recipe.yaml", "--data", folder / "data.npz", "--no-bench", "-o", folder / "bundle")
    assert call("optimize", folder / "model.onnx", *flags).code == 0
    return folder


def optimized(place: Path) -> Answer:
    """Timed too, by limits that hold however slow this small model becomes."""
    recipe = write_recipe(place / "timed.yaml", "quantize-dynamic: {keep: always}")
    flags = ("--recipe", recipe, "--data", place / "data.npz", "--limit", "speedup=0.001", "-o", place / "timed")
    return call("optimize", place / "model.onnx", *flags, "--json")


def optimized_in_vain(place: Path) -> Answer:
    flags = ("--recipe", place / "recipe.yaml", "--data", place / "data.npz", "--limit", "cosine=0.9999999")
    return call("optimize", place / "model.onnx", *flags, "--no-bench", "-o", place / "none", "--json")


def checked(place: Path) -> Answer:
    return call("check", place / "model.onnx", place / "bundle", "--data", place / "data.npz", "--json")


def checked_in_vain(place: Path) -> Answer:
    flags = ("--data", place / "data.npz", "--limit", "max_error=1e-6", "--json")
    return call("check", place / "model.onnx", place / "bundle", *flags)


def ran(place: Path) -> Answer:
    return call("run", place / "bundle", "--input", place / "data.npz", "--json")


def ran_against(place: Path) -> Answer:
    flags = ("--against", place / "model.onnx", "--input", place / "data.npz", "--json")
    return call("run", place / "bundle", *flags)


def benched(place: Path) -> Answer:
    flags = ("--budget", "0.2", "--launches", "1", "--noise-floor", "--load", "100", "--load-seconds", "0.1", "--json")
    return call("bench", place / "model.onnx", place / "bundle", "--input", place / "data.npz", *flags)


def ranked(place: Path) -> Answer:
    return call("sensitivity", place / "model.onnx", "--data", place / "data.npz", "--no-bench", "--json")


def inspected(place: Path) -> Answer:
    return call("inspect", place / "model.onnx", "--json")


def inspected_torch(place: Path) -> Answer:
    return call("inspect", SAMPLES / "digits_cnn.pt", "--json")


def diagnosed(place: Path) -> Answer:
    return call("doctor", "--json")


TYPED = (
    (optimized, "Manifest", 0),
    (optimized_in_vain, "Manifest", 4),
    (checked, "Verdict", 0),
    (checked_in_vain, "Verdict", 4),
    (ran, "RunFacts", 0),
    (ran_against, "Verdict", 0),
    (benched, "BenchFacts", 0),
    (ranked, "SensitivityFacts", 0),
    (inspected, "Inspection", 0),
    (inspected_torch, "Inspection", 0),
    (diagnosed, "Diagnosis", 0),
)


@pytest.mark.parametrize(("verb", "facts", "code"), TYPED, ids=lambda value: getattr(value, "__name__", None))
def test_what_a_verb_prints_is_what_the_schema_says(
    verb: Callable[[Path], Answer], facts: str, code: int, place: Path
) -> None:
    answer = verb(place)
    assert answer.code == code, answer.err
    result_validator(facts).validate(answer.body)
    validator("docs/output.schema.json").validate(answer.body)
    assert answer.body["exit_code"] == code


@pytest.mark.parametrize(
    "words",
    [
        ("optimize", "missing.onnx", "--json"),
        ("optimize", "missing.onnx", "--no-such-option", "--json"),
        ("optimize", SAMPLES / "digits_mlp.onnx", "--dry-run", "--json"),
        ("check", "missing.onnx", "missing.onnx", "--json"),
        ("run", SAMPLES / "digits_mlp.onnx", "--provider", "no-such", "--json"),
        ("inspect", "missing.onnx", "--json"),
        ("passes", "list", "--json"),
        ("passes", "show", "simplify", "--json"),
        ("recipe", "list", "--json"),
        ("recipe", "show", "int8", "--json"),
        ("recipe", "validate", "int8", "--json"),
        ("recipe", "validate", "int9", "--json"),
        ("sensitivity", "missing.onnx", "--json"),
        ("cache", "ls", "--json"),
        ("cache", "rm", "--json"),
    ],
    ids=lambda words: " ".join(map(str, words[:3])),
)
def test_every_verb_prints_the_envelope_also_on_failure(words: tuple[object, ...]) -> None:
    answer = call(*words)
    validator("docs/output.schema.json").validate(answer.body)
    assert (answer.body["exit_code"], answer.body["ok"]) == (answer.code, answer.code == 0)
    assert (answer.body["error"] is None) == (answer.code == 0)


def test_the_bundles_manifest_is_the_same_facts(place: Path) -> None:
    schema = json.loads((ROOT / "docs" / "output.schema.json").read_text())
    manifest = json.loads((place / "bundle" / "manifest.json").read_text())
    Draft202012Validator({"$defs": schema["$defs"], "$ref": "#/$defs/Manifest"}).validate(manifest)
