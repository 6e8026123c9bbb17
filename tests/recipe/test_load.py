"""From a name or a file to a Recipe: mistakes with their place and a suggestion, overrides, copies."""

from __future__ import annotations

from pathlib import Path

import pytest

from optkit.errors import OutputError, RecipeError, UsageError
from optkit.passes.quantize_dynamic import QuantizeDynamic
from optkit.recipe.load import find_recipe, load_recipe, shipped, write_copy
from tests.command import ROOT, SHIPPED_RECIPES, plugins

HEAD = "version: 1\npasses:\n"


def load(tmp_path: Path, text: str, *sets: str):  # type: ignore[no-untyped-def]
    (tmp_path / "r.yaml").write_text(text)
    return load_recipe(str(tmp_path / "r.yaml"), sets)


@pytest.mark.parametrize(
    ("text", "place", "words", "fix"),
    [
        (f"{HEAD}  - quantize-dynamik\n", "3:5", "no pass 'quantize-dynamik'", "did you mean 'quantize-dynamic'?"),
        (f"{HEAD}  - simplify\n  - zzz: {{a: 1}}\n", "4:5", "no pass 'zzz'", "see: optkit passes list"),
        (
            f"{HEAD}  - quantize-dynamic: {{per_chanel: true}}\n",
            "3:24",
            "'quantize-dynamic' has no option 'per_chanel'",
            "did you mean 'per_channel'?",
        ),
        (f"{HEAD}  - simplify: {{kepe: always}}\n", "3:16", "has no option 'kepe'", "did you mean 'keep'?"),
        (f"{HEAD}  - quantize-dynamic:\n      per_channel: 7\n", "4:7", "(given: 7)", "optkit passes show quantize"),
        (f"{HEAD}  - simplify: {{keep: sometimes}}\n", "3:16", "'measured' or 'always'", "see: optkit recipe schema"),
        (f"{HEAD}  - simplify: {{when: {{forms: onnx}}}}\n", "3:23", "no key 'forms'", "did you mean 'form'?"),
        (f"{HEAD}  - simplify: {{when: {{form: onx}}}}\n", "3:23", "(given: 'onx')", "did you mean 'onnx'?"),
        (f"{HEAD}  - simplify: {{1: 2}}\n", "3:16", "no key '1'", "rename or remove it"),
        (f"{HEAD}  - 3\n", "3:5", "This step is no pass", "one pass an entry"),
        (f"{HEAD}  - [simplify]\n", "3:5", "This step is no pass", "one pass an entry"),
        (f"{HEAD}  - {{simplify: {{}}, id: x}}\n", "3:5", "This step is no pass", "one pass an entry"),
        (f"{HEAD}  - simplify: fast\n", "3:5", "This step is no pass", "one pass an entry"),
        (f"{HEAD}  - simplify\n  - simplify\n", "4:5", "Two steps have the id 'simplify'", "{id: simplify-2}"),
        (f"{HEAD}  - simplify\nlimit: {{cosine: 1}}\n", "4:1", "no key 'limit'", "did you mean 'limits'?"),
        (f"{HEAD}  - simplify\n1: 2\n", "4:1", "no key '1'", "rename or remove it"),
        (f"{HEAD}  - simplify\nlimits: {{cosin: 1}}\n", "4:10", "no key 'cosin'", "did you mean 'cosine'?"),
        (f"{HEAD}  - simplify\nlimits:\n  labelled: {{metric_drp: 1}}\n", "5:14", "'metric_drp'", "'metric_drop'"),
        (f"{HEAD}  - simplify\nlimits: {{cosine: high}}\n", "4:10", "limits.cosine: ", "see: optkit recipe schema"),
        (f"{HEAD}  - simplify\nlimits:\n", "4:1", "limits: ", "see: optkit recipe schema"),
        (f"{HEAD}  - simplify\ndata: {{evaluate: x.npz}}\n", "4:8", "no key 'evaluate'", "did you mean 'evaluation'?"),
        (f"{HEAD}  - simplify\ndata: {{search: {{source: x, label: y}}}}\n", "4:28", "no key 'label'", "'labels'?"),
        (f"{HEAD}  - simplify\ntarget: {{threads: -1}}\n", "4:10", "greater than or equal to 0", "schema"),
        (f"{HEAD}  - simplify\ninputs: {{x: 'float99[b]'}}\n", "4:10", "'x=float99[b]' cannot be read", "--signature"),
        (f"{HEAD}  - simplify\npreprocess: {{x: {{kind: imag}}}}\n", "4:14", "preprocess.x", "correct the entry"),
        (f"{HEAD}  - simplify\nmetric: topone\n", "4:1", "no metric 'topone'", "did you mean 'top5'?"),
        (f"{HEAD}  - simplify\nmetric: {{name: f1, args: {{positiv: 1}}}}\n", "4:1", "'positiv'", "'positive'?"),
        (f"{HEAD}  - simplify\noutputs: {{y: {{pol: mean}}}}\n", "4:15", "no key 'pol'", "did you mean 'pool'?"),
        ("version: 2\npasses: [simplify]\n", "1:1", "version: Input should be 1", "schema"),
        ("version: 1\npasses: simplify\n", "2:1", "under 'passes' is no list", "a line of its own"),
        ("version: 1\npasses: []\n", "2:1", "has no passes", "a line of its own"),
        ("name: x\n", "1:1", "has no passes", "a line of its own"),
        ("", "1", "empty or no mapping", "optkit recipe init"),
        ("- simplify\n", "1", "empty or no mapping", "optkit recipe init"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, place: str, words: str, fix: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text)
    error = caught.value
    assert str(error).startswith(f"{tmp_path / 'r.yaml'}:{place}: "), str(error)
    assert words in error.message and fix in error.fix and error.expected


def test_alternatives_are_listed(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, f"{HEAD}  - quantize-dynamic: {{per_chanel: true}}\n")
    assert (
        caught.value.expected
        == "one of exclude, repair, per_channel, ops, lstm_on_inputs, reduce_range, id, required, keep, when"
    )


@pytest.mark.parametrize(
    ("text", "words", "fix"),
    [
        ("passes.quantize-dynamic.per_chanel=true", "no option 'per_chanel'", "did you mean 'per_channel'?"),
        ("passes.quantize-dynamic.per_channel=7", "(given: 7)", "optkit passes show quantize-dynamic"),
        ("passes.quantise-dynamic.per_channel=true", "no step 'quantise-dynamic'", "did you mean 'quantize-dynamic'?"),
        ("passes.quantize-dynamic=true", "names no option", "name step and option"),
        ("limits.cosin=1", "no key 'cosin'", "did you mean 'cosine'?"),
        ("limits.cosine.x=1", "limits.cosine", "see"),
        ("description.x=1", "'description' is no mapping", "whole value"),
        ("limits.cosine", "cannot be read", "equals sign"),
        ("=1", "cannot be read", "equals sign"),
        ("limits..cosine=1", "cannot be read", "equals sign"),
        ("limits.cosine=[1", "cannot be read", "look at"),
        ("name=2020-13-45", "month must be in 1..12", "look at"),
        ("version=9", "version: ", "schema"),
    ],
)
def test_wrong_overrides_are_wrong_usage_and_blame_the_override(
    tmp_path: Path, text: str, words: str, fix: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, f"{HEAD}  - quantize-dynamic\ndescription: small\n", text)
    error = caught.value
    assert error.message.startswith(f"--set {text}") and error.file is None and error.exit_code == 2
    assert words in error.message and fix in error.fix and error.expected


def test_overrides(tmp_path: Path) -> None:
    text = f"{HEAD}  - simplify\n  - quantize-dynamic: {{id: quick}}\nlimits:\n"
    sets = (
        "passes.quick.per_channel=false",
        "passes.simplify.required=true",
        "passes.quick.when.form=onnx",
        "limits.cosine=1e-1",
        "limits.labelled.metric_drop={max: 5e-3, by: bound}",
        "target.threads=3",
        "name=other",
    )
    recipe = load(tmp_path, text, *sets)
    first, second = recipe.passes
    assert first.required and second.options == QuantizeDynamic(per_channel=False) and second.when.form == "onnx"
    assert (recipe.limits.cosine, recipe.target.threads, recipe.name) == (0.1, 3, "other")
    assert recipe.limits.labelled.metric_drop.max == 0.005
    assert load(tmp_path, text, *sets, "name=a", "name=b").name == "b", "the later one wins"


def test_a_mistake_in_the_file_is_not_blamed_on_an_override(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, f"{HEAD}  - simplify\nlimits: {{cosin: 1}}\n", "limits.agreement=0.9")
    assert caught.value.line == 4


def test_a_path_goes_before_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("int8") == find_recipe("int8.yaml") == ROOT / "recipes" / "int8.yaml"
    Path("int8.yaml").write_text(f"{HEAD}  - simplify\n")
    assert find_recipe("int8.yaml") == Path("int8.yaml")
    assert find_recipe("int8") == ROOT / "recipes" / "int8.yaml"
    with pytest.raises(RecipeError, match="no recipe 'itn8'") as caught:
        find_recipe("itn8")
    assert caught.value.fix == "did you mean 'int8'?" and "fp32, int4, int8" in caught.value.expected


def test_every_shipped_recipe_loads_and_says_what_it_does() -> None:
    assert list(shipped()) == SHIPPED_RECIPES
    for name, path in shipped().items():
        recipe = load_recipe(str(path))
        assert recipe.name == name and recipe.description.endswith(".") and recipe.passes
        assert recipe.data == {}, "shipped recipes hold no data paths"


def test_a_copy_loads_under_its_own_name(tmp_path: Path) -> None:
    for stem, name in (("mine", "mine"), ("2024", "2024"), ("no", "no"), ("my recipe", "my-recipe"), ("a: b", "a-b")):
        target = write_copy("int8", tmp_path / f"{stem}.yaml")
        recipe = load_recipe(str(target))
        assert recipe.name == name and recipe.passes == load_recipe("int8").passes
    with pytest.raises(OutputError, match="exists already"):
        write_copy("int8", tmp_path / "mine.yaml")
    with pytest.raises(OutputError, match="cannot be written"):
        write_copy("int8", tmp_path / "no" / "folder.yaml")


@pytest.mark.parametrize("name", ["../../evil", "a b", "..", "''"])
def test_a_name_is_a_plain_word(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="is no plain word") as caught:
        load(tmp_path, f"version: 1\nname: {name}\npasses:\n  - simplify\n")
    assert caught.value.place.endswith("r.yaml:2:1")


def test_third_party_passes_are_entries_like_any_other(tmp_path: Path) -> None:
    from typing import ClassVar

    from optkit.passes._base import Pass

    class PolishWeights(Pass):
        """Polish the weights."""

        forms: ClassVar = {"onnx": "onnx"}
        kind: ClassVar = "exact"
        shine: int = 1
        """How much."""

    with plugins(polish=PolishWeights):
        recipe = load(tmp_path, f"{HEAD}  - polish-weights: {{shine: 3}}\n")
        assert recipe.passes[0].options == PolishWeights(shine=3) and recipe.exact
        with pytest.raises(RecipeError, match="'polish-weights' has no option 'shin'") as caught:
            load(tmp_path, f"{HEAD}  - polish-weights: {{shin: 3}}\n")
        assert caught.value.place.endswith("r.yaml:3:22")
