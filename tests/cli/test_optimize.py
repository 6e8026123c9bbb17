"""``optkit optimize`` on the command line: the facts, the files, limits and their codes, reports for CI."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from optkit.bench.measure import Rules
from optkit.model.manifest import Manifest
from optkit.recipe.recipe import Recipe
from tests.command import SAMPLES, assert_refused, beside, call, write_data, write_mlp, write_recipe
from tests.helpers import ops_of

Asked = tuple[object, ...]


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    """A command line with small model, recipe, data and the output ``out``."""
    model, recipe = write_mlp(tmp_path / "m.onnx"), write_recipe(tmp_path / "r.yaml")
    return (model, "-r", recipe, "--data", write_data(tmp_path / "x.npz"), "-o", tmp_path / "out", "--no-bench")


@pytest.fixture
def timed(tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The same with short measurements, and a step that stays even where it is slower."""
    monkeypatch.setattr("optkit.pipeline.stopwatch.FULL_S", (0.2, 0.2))
    monkeypatch.setattr("optkit.pipeline.stopwatch.COARSE", Rules(budget_s=0.1, launches=1))
    write_recipe(tmp_path / "r.yaml", "quantize-dynamic: {keep: always}")
    return tuple(word for word in asked if word != "--no-bench")


def test_the_facts_as_json_and_the_bundle(tmp_path: Path, asked: Asked) -> None:
    told = call("optimize", *asked, "--json")
    assert (told.code, told.err) == (0, "")
    body, out = told.body, tmp_path / "out"
    assert {key: body[key] for key in ("schema", "verb", "ok", "exit_code", "error")} == {
        "schema": 1,
        "verb": "optimize",
        "ok": True,
        "exit_code": 0,
        "error": None,
    }
    manifest = Manifest.model_validate(body["result"])
    assert [(step.id, step.status) for step in manifest.steps] == [("quantize-dynamic", "changed")]
    assert manifest.original.path == str(tmp_path / "m.onnx") and manifest.output == str(out)
    assert manifest.original.digest == manifest.baseline.digest != manifest.result.digest
    assert manifest.verdict.held and manifest.verdict.measured_on.source == str(tmp_path / "x.npz")
    assert manifest.verdict.measured_on.samples + 7 == 24, "30 % went to the search split"
    assert manifest.timing is None and "--no-bench" in manifest.timing_note
    parts = ["manifest.json", "model.onnx", "open_model.py", "recipe.yaml", "report.md"]
    assert sorted(path.name for path in out.iterdir()) == parts
    assert ops_of(out / "model.onnx")["MatMulInteger"] == 2
    stored = json.loads((out / "manifest.json").read_text())
    assert {**stored, "nonfinite": {}} == body["result"]
    assert (out / "model.onnx").stat().st_size == manifest.result.size_bytes


def test_the_same_for_people(tmp_path: Path, asked: Asked) -> None:
    told = call("optimize", *asked)
    assert (told.code, told.err) == (0, "")
    for words in ("quantize-dynamic", "MatMulInteger", "cosine", "All limits held", "not checked", "--no-bench", "out"):
        assert words in told.out
    report = (tmp_path / "out" / "report.md").read_text()
    assert "quantize-dynamic" in report and "**Passed.**" in report


def test_data_are_found_beside_the_model(tmp_path: Path) -> None:
    write_recipe(tmp_path / "r.yaml")
    told = call("optimize", SAMPLES / "digits_mlp.onnx", "-r", tmp_path / "r.yaml", "-o", tmp_path / "o", "--no-bench")
    assert told.code == 0 and "digits_evaluation.npz" in told.out and "top1" in told.out
    manifest = Manifest.model_validate_json((tmp_path / "o" / "manifest.json").read_text())
    (metric,) = manifest.verdict.metrics
    assert (metric.name, metric.samples) == ("top1", 450) and abs(metric.original - 0.971) < 0.001


def test_a_second_run_comes_from_the_cache(asked: Asked) -> None:
    first = call("optimize", *asked, "--json").body["result"]
    second = call("optimize", *asked, "--force", "--json").body["result"]
    assert [step["cached"] for step in second["steps"]] == [True]
    assert second["verdict"] == first["verdict"] and second["result"]["digest"] == first["result"]["digest"]


def test_the_recipe_in_the_bundle_makes_the_same_model_again(tmp_path: Path, asked: Asked) -> None:
    first = call("optimize", *asked, "--json").body["result"]
    moved = shutil.move(tmp_path / "out", tmp_path / "moved")
    again = ("optimize", tmp_path / "m.onnx", "-r", Path(moved) / "recipe.yaml", "-o", tmp_path / "again", "--no-bench")
    second = call(*again, "--json").body["result"]
    assert second["result"]["digest"] == first["result"]["digest"] and second["recipe"] == first["recipe"]
    ran = call("run", moved, "--input", tmp_path / "x.npz", "--json").body
    assert ran["ok"] and ran["result"]["outputs"][0]["shape"] == [24, 4]


def test_the_bundle_knows_what_the_flags_said(tmp_path: Path, asked: Asked) -> None:
    more = ("--limit", "cosine=0.95", "--set", "limits.agreement=0.9", "--threads", "1")
    result = call("optimize", *asked, *more, "--json").body["result"]
    recipe = Recipe.load(tmp_path / "out" / "recipe.yaml")
    assert recipe.resolved() == result["recipe"]
    assert (recipe.limits.cosine, recipe.limits.agreement, recipe.target.threads) == (0.95, 0.9, 1)
    assert recipe.data["evaluation"].source == str(tmp_path / "x.npz")
    checked = call("check", tmp_path / "m.onnx", tmp_path / "out", "--json").body["result"]
    assert {limit["name"]: limit["limit"] for limit in checked["limits"]}["cosine"] == ">= 0.95"
    assert checked["measured_on"]["source"] == str(tmp_path / "x.npz")


def test_the_default_output_is_named_after_model_and_recipe(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert call("optimize", *asked[:5], "--no-bench").code == 0
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["m.small"]


def test_a_dry_run_checks_everything_and_writes_nothing(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))
    before = sorted(tmp_path.iterdir())
    told = call("optimize", *asked, "--dry-run")
    assert (told.code, told.err) == (0, "")
    for words in ("quantize-dynamic", "x=float32[batch,8]", "logits", "x.npz", "nothing was written"):
        assert words in told.out
    plan = call("optimize", *asked, "--dry-run", "--json").body["result"]
    assert plan["steps"] == [{"id": "quantize-dynamic", "takes": "onnx", "gives": "onnx", "skip": ""}]
    assert plan["data"]["evaluation"]["samples"] == 17 and plan["output"] == str(tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before
    assert call("optimize", *asked, "--dry-run", "--provider", "cuda").code == 3
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert "exists already" in call("optimize", *asked, "--dry-run").err


def test_a_dry_run_of_a_torch_model_writes_nothing_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))
    told = call("optimize", SAMPLES / "digits_mlp.pt", "-r", "int8", "-o", tmp_path / "out", "--dry-run", "--json")
    plan = told.body["result"]
    assert plan["steps"][0]["gives"] == "onnx" and plan["outputs"] == ["logits=float32[batch,10]"]
    assert list(tmp_path.iterdir()) == []


def test_set_overrides_the_recipe(asked: Asked) -> None:
    sets = ("--set", "passes.quantize-dynamic.per_channel=false", "--set", "limits.cosine=0.5")
    result = call("optimize", *asked, *sets, "--json").body["result"]
    assert result["steps"][0]["config"]["per_channel"] is False
    assert result["recipe"]["passes"][0]["quantize-dynamic"]["per_channel"] is False
    assert next(limit["limit"] for limit in result["verdict"]["limits"] if limit["name"] == "cosine") == ">= 0.5"


def test_a_missed_accuracy_limit(tmp_path: Path, asked: Asked) -> None:
    told = call("optimize", *asked, "--limit", "cosine=0.99999999")
    assert told.code == 4 and beside(tmp_path / "out") == []
    for words in ("misses its limits", "cosine of logits", "'quantize-dynamic' cost most", "17 samples", "x.npz"):
        assert words in told.err, told.err
    passing = told.err.split("--limit cosine=")[1].split(",")[0].split()[0]
    assert call("optimize", *asked, "--limit", f"cosine={passing}").code == 0, "the limit that would have passed does"
    assert "MISSED: cosine" in told.out and "Written" not in told.out


def test_a_missed_accuracy_limit_as_json(tmp_path: Path, asked: Asked) -> None:
    told = call("optimize", *asked, "--limit", "cosine=0.99999999", "--json")
    body = told.body
    assert (told.code, body["ok"], body["exit_code"]) == (4, False, 4)
    assert body["error"]["kind"] == "accuracy-missed" and beside(tmp_path / "out") == []
    assert body["result"]["verdict"]["held"] is False and body["result"]["output"] is None
    assert body["result"]["verdict"]["would_pass"]["cosine"] > 0.99


@pytest.mark.parametrize("limit", ["size_mb=0.001", "size_ratio=0.1"])
def test_a_missed_size_limit(tmp_path: Path, asked: Asked, limit: str) -> None:
    told = call("optimize", *asked, "--limit", limit)
    assert told.code == 5 and limit.partition("=")[0] in told.err and beside(tmp_path / "out") == []
    assert call("optimize", *asked, "--limit", limit, "--json").body["error"]["kind"] == "budget-missed"


def test_a_missed_speed_limit_and_both(tmp_path: Path, timed: Asked) -> None:
    told = call("optimize", *timed, "--limit", "speedup=1000", "--json")
    assert told.code == 5 and beside(tmp_path / "out") == []
    result = told.body["result"]
    assert result["timing"]["result"]["low"] < 1000 and result["timing"]["peak_mb"] > 10
    assert "speedup" in told.body["error"]["message"] and "cosine" not in told.body["error"]["message"]
    told = call(
        "optimize", *timed, "--limit", "speedup=1000", "--limit", "cosine=0.99999999", "--limit", "size_mb=1e-6"
    )
    assert told.code == 4 and all(name in told.err for name in ("speedup", "cosine of logits", "size_mb"))
    assert beside(tmp_path / "out") == []


def test_a_metric_limit(tmp_path: Path, asked: Asked) -> None:
    labels = np.random.default_rng(0).integers(0, 4, 24)
    data = write_data(tmp_path / "l.npz", x=np.load(tmp_path / "x.npz")["x"], labels=labels)
    more = ("--data", data, "--metric", "top1", "--limit", "metric_drop={max: 0.5, by: bound}")
    told = call("optimize", *asked, *more, "--json")
    (metric,) = told.body["result"]["verdict"]["metrics"]
    assert (told.code, metric["name"], metric["samples"]) == (0, "top1", 17)
    missed = call("optimize", *asked, *more[:-1], "metric_drop={max: -0.2, by: point}", "--force")
    assert missed.code == 4 and "metric_drop" in missed.err
    hopeless = call("optimize", *asked, *more[:-1], "metric_drop={max: 0.001, by: bound}", "--force")
    assert_refused(hopeless, 3, "17 evaluation samples", "0.17", "2995 samples", fix="by: point")


def test_a_metric_of_ones_own_counts_from_the_recipe(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    code = (
        "class Largest:\n    unit = ''\n    better = 'higher'\n    needs_labels = False\n"
        "    def per_sample(self, inputs, outputs, labels):\n"
        "        return outputs['logits'].max(axis=1).astype(float)\n"
    )
    (folder / "score.py").write_text(code)
    recipe = write_recipe(folder / "r.yaml", more="metric: score.py:Largest\n")
    monkeypatch.chdir(tmp_path)
    told = call("optimize", asked[0], "-r", recipe, *asked[3:], "--json")
    (metric,) = told.body["result"]["verdict"]["metrics"]
    assert told.code == 0 and metric["name"].endswith("Largest") and abs(metric["drop"]) < 0.2


def test_a_required_step_without_effect(tmp_path: Path, asked: Asked) -> None:
    write_recipe(tmp_path / "r.yaml", "quantize-dynamic: {required: true, exclude: ['.*']}")
    told = call("optimize", *asked)
    assert_refused(told, 3, "'quantize-dynamic' is required but had no effect", "one change", fix="remove 'required'")
    assert call("optimize", *asked, "--json").body["error"]["kind"] == "pass-error"
    write_recipe(tmp_path / "r.yaml", "quantize-dynamic: {exclude: ['.*']}")
    told = call("optimize", *asked, "--json")
    assert told.code == 0 and told.body["result"]["steps"][0]["status"] == "no effect"


def test_steps_that_are_not_meant_for_this_model_or_machine(tmp_path: Path, asked: Asked) -> None:
    write_recipe(tmp_path / "r.yaml", "export-onnx", "simplify: {when: {provider: cuda}}", "quantize-dynamic")
    steps = call("optimize", *asked, "--json").body["result"]["steps"]
    assert [(step["status"], step["reason"]) for step in steps] == [
        ("skipped", "the model is ONNX already"),
        ("skipped", "only for provider cuda"),
        ("changed", ""),
    ]


def test_reports_for_ci(tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("# Before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    files = ("--junit", tmp_path / "reports" / "j.xml", "--markdown", tmp_path / "m.md")
    assert call("optimize", *asked, *files).code == 0
    suite = ElementTree.parse(tmp_path / "reports" / "j.xml").find("testsuite")
    assert suite is not None and (suite.get("failures"), suite.get("errors")) == ("0", "0")
    assert suite.get("name") == "optkit optimize m.onnx"
    assert "**Passed.**" in (tmp_path / "m.md").read_text()
    assert summary.read_text() == "# Before\n" + (tmp_path / "m.md").read_text()
    assert call("optimize", *asked, *files, "--force", "--limit", "cosine=0.99999999").code == 4
    suite = ElementTree.parse(tmp_path / "reports" / "j.xml").find("testsuite")
    assert suite is not None and suite.get("failures") == "1"
    assert "**Failed.**" in (tmp_path / "m.md").read_text() and summary.read_text().count("**Failed.**") == 1


def test_reports_of_a_run_that_could_not_be_judged(tmp_path: Path, asked: Asked) -> None:
    files = ("--junit", tmp_path / "j.xml", "--markdown", tmp_path / "m.md")
    assert call("optimize", tmp_path / "no.onnx", *asked[1:], *files).code == 3
    suite = ElementTree.parse(tmp_path / "j.xml").find("testsuite")
    assert suite is not None and suite.get("errors") == "1"
    assert "There is no such model" in (tmp_path / "j.xml").read_text()
    assert "**Failed.**" in (tmp_path / "m.md").read_text()


def test_without_data_the_numbers_say_so(tmp_path: Path, asked: Asked) -> None:
    told = call("optimize", *asked[:3], *asked[5:])
    assert told.code == 0 and "SYNTHETIC" in told.out
    assert Manifest.model_validate_json((tmp_path / "out" / "manifest.json").read_text()).verdict.measured_on.synthetic


def test_python_takes_the_same(tmp_path: Path, asked: Asked) -> None:
    import optkit

    recipe = Recipe.load(tmp_path / "r.yaml")
    manifest = optkit.optimize(tmp_path / "m.onnx", recipe, bench=False, data=[str(tmp_path / "x.npz")])
    told = call("optimize", *asked, "--json").body["result"]
    assert manifest.result.digest == told["result"]["digest"] and manifest.output is None
    assert optkit.compare(tmp_path / "m.onnx", tmp_path / "out").held
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"))
