"""``optkit check``: the verdict alone, its codes, whose limits count, reports for CI."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from tests.command import MLP, assert_refused, call, write_data, write_mlp, write_recipe
from tests.helpers import normal, onnx_model


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models ``m``, ``near`` and ``far``, data ``x.npz``, and the int8 bundle ``out`` with the limit cosine 0.97."""
    folder = tmp_path_factory.mktemp("check")
    write_mlp(folder / "m.onnx")
    write_data(folder / "x.npz")
    weights = {"w0": normal(8, 16) + 2e-3 * normal(8, 16, seed=7), "w1": normal(16, 4, seed=1)}
    onnx.save(onnx_model(MLP, weights), folder / "near.onnx")
    write_mlp(folder / "far.onnx", seed=5)
    recipe = write_recipe(folder / "r.yaml", more="limits: {cosine: 0.97}\n")
    asked = (folder / "m.onnx", "-r", recipe, "--data", folder / "x.npz", "-o", folder / "out", "--no-bench")
    assert call("optimize", *asked).code == 0
    return folder


@pytest.fixture
def here(places: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(places)
    return places


def limits(*argv: object) -> dict[str, str]:
    """Limit -> as asked, of a check."""
    body = call("check", *argv, "--json").body
    return {limit["name"]: limit["limit"] for limit in body["result"]["limits"]}


def test_the_same_model_passes(here: Path) -> None:
    told = call("check", "m.onnx", "m.onnx", "--data", "x.npz")
    assert (told.code, told.err) == (0, "")
    for words in ("logits", "cosine", ">= 0.99", "All limits held", "24 samples of x.npz"):
        assert words in told.out


def test_another_model_is_found_out(here: Path) -> None:
    told = call("check", "m.onnx", "far.onnx", "--data", "x.npz")
    assert told.code == 4 and "misses its limits: cosine of logits" in told.err
    assert "MISSED: cosine" in told.out, "the figures are shown all the same"
    body = call("check", "m.onnx", "far.onnx", "--data", "x.npz", "--json").body
    assert (body["verb"], body["exit_code"], body["error"]["kind"]) == ("check", 4, "accuracy-missed")
    assert body["result"]["held"] is False and body["result"]["outputs"][0]["cosine"] < 0.99


def test_size_and_speed(here: Path) -> None:
    told = call("check", "m.onnx", "near.onnx", "--data", "x.npz", "--limit", "size_ratio=0.5")
    assert told.code == 5 and "size_ratio" in told.err
    told = call("check", "m.onnx", "far.onnx", "--data", "x.npz", "--limit", "size_ratio=0.5")
    assert told.code == 4 and "size_ratio" in told.err and "cosine" in told.err


def test_a_stated_speed_limit_is_timed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optkit.pipeline.stopwatch.FULL_S", (0.2, 0.2))
    told = call("check", "m.onnx", "near.onnx", "--data", "x.npz", "--limit", "speedup=1000", "--json")
    (limit,) = [each for each in told.body["result"]["limits"] if each["name"] == "speedup"]
    assert told.code == 5 and limit["held"] is False and 0.1 < limit["measured"] < 10


def test_limits_come_from_flags_then_the_manifest_then_defaults(here: Path) -> None:
    assert limits("m.onnx", "near.onnx", "--data", "x.npz")["cosine"] == ">= 0.99"
    assert limits("m.onnx", "out", "--data", "x.npz")["cosine"] == ">= 0.97"
    flagged = limits("m.onnx", "out", "--data", "x.npz", "--limit", "cosine=0.9", "--limit", "max_error=9")
    assert (flagged["cosine"], flagged["max_error"]) == (">= 0.9", "<= 9")


def test_data_of_the_bundle_are_used_where_none_are_given(here: Path) -> None:
    body = call("check", "m.onnx", "near.onnx", "--json").body
    assert body["result"]["measured_on"]["synthetic"] is True
    told = call("check", "m.onnx", "near.onnx")
    assert told.code == 0 and "SYNTHETIC" in told.out


def test_a_bundle_of_exact_passes_is_held_to_float_noise(here: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", "simplify")
    asked = ("optimize", "m.onnx", "-r", recipe, "--data", "x.npz", "-o", tmp_path / "out", "--no-bench")
    assert call(*asked).code == 0
    assert limits("m.onnx", tmp_path / "out", "--data", "x.npz")["max_error"] == "<= 0.001"
    assert call("check", "near.onnx", tmp_path / "out", "--data", "x.npz").code == 4


def test_a_bundle_whose_model_was_exchanged_is_refused(here: Path, tmp_path: Path) -> None:
    shutil.copytree("out", tmp_path / "out")
    shutil.copy("near.onnx", tmp_path / "out" / "model.onnx")
    told = call("check", "m.onnx", tmp_path / "out", "--data", "x.npz")
    assert_refused(told, 3, "of another model", fix="give its model alone")
    told = call("check", "m.onnx", tmp_path / "out" / "model.onnx", "--data", "x.npz")
    assert told.code == 0 and "limit by default" in told.out


def test_a_bundle_of_a_pass_that_is_not_installed_here(here: Path, tmp_path: Path) -> None:
    shutil.copytree("out", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    manifest["steps"][0]["name"] = "somebody-elses-pass"
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    assert call("check", "m.onnx", tmp_path / "out", "--data", "x.npz").code == 0


def test_a_manifest_of_another_tool_beside_a_model(here: Path, tmp_path: Path) -> None:
    shutil.copy("m.onnx", tmp_path / "m.onnx")
    (tmp_path / "manifest.json").write_text('{"name": "my web app", "icons": []}')
    assert call("check", "m.onnx", tmp_path / "m.onnx", "--data", "x.npz").code == 0
    (tmp_path / "manifest.json").write_text('["nothing of ours"]')
    assert call("check", "m.onnx", tmp_path / "m.onnx", "--data", "x.npz").code == 0


def test_a_damaged_manifest(here: Path, tmp_path: Path) -> None:
    shutil.copytree("out", tmp_path / "out")
    text = (tmp_path / "out" / "manifest.json").read_text()
    (tmp_path / "out" / "manifest.json").write_text(text[:500])
    assert_refused(call("check", "m.onnx", tmp_path / "out"), 3, "manifest", "cannot be used", fix="again")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MLP.replace("logits", "scores"), "logits"),
        (MLP.replace("float[batch,4] logits", "double[batch,4] logits").replace("logits =", "l =")[:-1]
         + " logits = Cast <to = 11> (l) }", "float64"),
        (MLP.replace("logits = MatMul(r, w1)", "l = MatMul(r, w1) zero = Sub(l, l) logits = Div(l, zero)"), "logits"),
    ],
    ids=["name", "dtype", "nan"],
)  # fmt: skip
def test_what_no_tolerance_excuses(here: Path, tmp_path: Path, text: str, words: str) -> None:
    write_mlp(tmp_path / "m.onnx", text=text)
    told = call("check", "m.onnx", tmp_path / "m.onnx", "--data", "x.npz", "--limit", "cosine=-1")
    assert told.code == 4 and words in told.err
    assert call("check", "m.onnx", tmp_path / "m.onnx", "--data", "x.npz", "--json").body["result"]["problems"]


def test_reports_for_ci(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    files = ("--junit", tmp_path / "j.xml", "--markdown", tmp_path / "m.md")
    assert call("check", "m.onnx", "near.onnx", "--data", "x.npz", *files).code == 0
    suite = ElementTree.parse(tmp_path / "j.xml").find("testsuite")
    assert suite is not None and (suite.get("failures"), suite.get("skipped")) == ("0", "1")
    assert call("check", "m.onnx", "far.onnx", "--data", "x.npz", *files).code == 4
    suite = ElementTree.parse(tmp_path / "j.xml").find("testsuite")
    assert suite is not None and suite.get("failures") in ("1", "2")
    text = (tmp_path / "m.md").read_text()
    assert text.startswith("# optkit check: m.onnx against far.onnx") and "**Failed.**" in text
    summary = (tmp_path / "summary.md").read_text()
    assert summary.count("# optkit check") == 2 and summary.endswith(text)
    assert call("check", "m.onnx", "none.onnx", *files).code == 3
    suite = ElementTree.parse(tmp_path / "j.xml").find("testsuite")
    assert suite is not None and suite.get("errors") == "1"


def test_labels_and_a_metric(here: Path, tmp_path: Path) -> None:
    x = np.load("x.npz")["x"]
    data = write_data(tmp_path / "l.npz", x=x, labels=np.random.default_rng(0).integers(0, 4, len(x)))
    told = call("check", "m.onnx", "near.onnx", "--data", data, "--metric", "top1", "--limit", "metric_drop=0.05")
    assert told.code == 0 and "top1" in told.out and "smallest provable" in told.out
    told = call("check", "m.onnx", "near.onnx", "--data", data, "--limit", "metric_drop=0.05")
    assert_refused(told, 3, "metric_drop cannot be checked without a metric", fix="--metric top1")
