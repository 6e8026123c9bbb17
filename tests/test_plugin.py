"""Third-party passes: a package with an entry point of the group ``optkit.passes``, as pip would install it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from tests.command import ROOT, Answer, finish, start, write_data, write_mlp, write_recipe
from tests.helpers import normal, run_onnx

SOURCE = '''\
"""A pass of a third party."""

from optkit import Pass
from optkit.passes._base import Outcome

from acme_passes.arithmetic import FACTOR


class HalveWeights(Pass):
    """Scale the output layer's weights."""

    forms = {"onnx": "onnx"}
    kind = "lossy"
    for_speed = False

    layer: str = "w1"
    """Name of the initializer."""

    def __call__(self, model, ctx):
        import onnx

        proto = onnx.load(model.path)
        weight = next(found for found in proto.graph.initializer if found.name == self.layer)
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * FACTOR, self.layer))
        onnx.save(proto, ctx.workdir / "model.onnx")
        made = model.derive(ctx.workdir / "model.onnx", "onnx", self.sentence())
        return Outcome(made, 1, changes=[(self.layer, f"times {FACTOR}")])
'''
BROKEN = "import a_package_that_is_not_there\n"
NAMELESS = """\
from optkit import Pass


class Other(Pass):
    'A pass by another name.'

    forms = {}
    kind = "exact"


class KeepFew(Pass):
    'A pass with an option that every entry of a recipe has already.'

    forms = {}
    kind = "exact"
    keep: int = 3
"""


class Installed:
    """A folder like site-packages with the package in it, and ``optkit`` on top."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = folder / "site"
        self.package = self.site / "acme_passes"
        self.package.mkdir(parents=True)
        for name, text in {
            "__init__.py": "",
            "arithmetic.py": "FACTOR = 1.001\n",
            "halve_weights.py": SOURCE,
            "broken.py": BROKEN,
            "nameless.py": NAMELESS,
        }.items():
            (self.package / name).write_text(text)
        info = self.site / "acme_passes-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-passes\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(
            "[optkit.passes]\n"
            "halve-weights = acme_passes.halve_weights:HalveWeights\n"
            "broken-pass = acme_passes.broken:BrokenPass\n"
            "misnamed-pass = acme_passes.nameless:Other\n"
            "keep-few = acme_passes.nameless:KeepFew\n"
        )
        write_mlp(folder / "model.onnx")
        write_data(folder / "data.npz")
        self.recipe("halve-weights")

    def recipe(self, *passes: str) -> None:
        write_recipe(self.folder / "recipe.yaml", *passes)

    def call(self, *argv: object) -> Answer:
        """``optkit ARGV...`` in a process that sees the package."""
        env = {"PYTHONPATH": f"{self.site}:{ROOT}", "OPTKIT_CACHE": str(self.folder / "cache")}
        return finish(start(*argv, env=env, cwd=self.folder))

    def optimize(self) -> Answer:
        flags = ("--data", "data.npz", "--no-bench", "--force", "--json", "-o", "out")
        return self.call("optimize", "model.onnx", "--recipe", "recipe.yaml", *flags)


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    return Installed(tmp_path)


def test_a_plugin_is_listed_and_shown_beside_the_own_passes(installed: Installed) -> None:
    listed = {entry["name"]: entry for entry in installed.call("passes", "list", "--json").body["result"]}
    assert {"halve-weights", "quantize-dynamic", "export-onnx"} <= set(listed)
    assert listed["halve-weights"]["title"] == "Scale the output layer's weights."
    shown = installed.call("passes", "show", "halve-weights")
    assert shown.code == 0
    assert "Name of the initializer." in shown.out


def test_a_recipe_with_a_plugin_validates_and_its_options_are_checked(installed: Installed) -> None:
    assert installed.call("recipe", "validate", "recipe.yaml").out == "recipe.yaml is valid: halve-weights\n"
    installed.recipe("halve-weights: {layr: w0}")
    wrong = installed.call("recipe", "validate", "recipe.yaml")
    assert wrong.code == 3
    assert "recipe.yaml:4:" in wrong.err and "layer" in wrong.err


def test_a_plugin_runs_is_named_in_the_lineage_and_its_edits_are_seen(installed: Installed) -> None:
    answer = installed.optimize()
    assert answer.code == 0, answer.err
    step = answer.body["result"]["steps"][0]
    assert (step["name"], step["status"], step["cached"]) == ("halve-weights", "changed", False)
    assert step["changes"] == [{"where": "w1", "what": "times 1.001"}]
    assert json.loads((installed.folder / "out" / "manifest.json").read_text())["steps"][0]["name"] == "halve-weights"
    assert "halve-weights" in (installed.folder / "out" / "recipe.yaml").read_text()
    scaled = run_onnx(installed.folder / "out" / "model.onnx", {"x": normal(4, 8)})["logits"]
    original = run_onnx(installed.folder / "model.onnx", {"x": normal(4, 8)})["logits"]
    assert scaled == pytest.approx(original * 1.001, rel=1e-5)

    assert installed.optimize().body["result"]["steps"][0]["cached"] is True

    module = installed.package / "halve_weights.py"
    module.write_text(module.read_text().replace("* FACTOR", "* (FACTOR - 0.002)"))
    again = installed.optimize().body["result"]["steps"][0]
    assert again["cached"] is False

    (installed.package / "arithmetic.py").write_text("FACTOR = 1.004\n")
    step = installed.optimize().body["result"]["steps"][0]
    assert (step["cached"], step["changes"][0]["what"]) == (False, "times 1.004")
    weights = {each.name: each for each in onnx.load(installed.folder / "out" / "model.onnx").graph.initializer}
    assert onnx.numpy_helper.to_array(weights["w1"]) == pytest.approx(normal(16, 4, seed=1) * 1.002, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "broken-pass",
            "The pass 'broken-pass' of acme_passes.broken:BrokenPass cannot be imported: ModuleNotFoundError",
        ),
        ("misnamed-pass", "The pass 'misnamed-pass' of acme_passes.nameless:Other calls itself 'other'"),
        ("keep-few", "The pass 'keep-few' of acme_passes.nameless:KeepFew has an option named 'keep', which every"),
    ],
)
def test_a_plugin_that_does_not_work_is_told_where_it_is_used_and_only_there(
    installed: Installed, name: str, sentence: str
) -> None:
    listed = installed.call("passes", "list", "--json")
    assert listed.code == 0
    problems = {entry["name"]: entry.get("problem", "") for entry in listed.body["result"]}
    assert problems[name].startswith(sentence)
    assert problems["halve-weights"] == ""
    assert installed.optimize().code == 0

    installed.recipe(name)
    for used in (installed.optimize(), installed.call("recipe", "validate", "recipe.yaml", "--json")):
        assert used.code == 3
        assert used.body["error"]["message"].startswith(sentence)
        assert used.body["error"]["fix"]
        assert "Traceback" not in used.err


def test_the_list_for_people_says_which_plugins_are_broken(installed: Installed) -> None:
    listed = installed.call("passes", "list")
    assert listed.code == 0
    assert listed.out.count("BROKEN") == 3
