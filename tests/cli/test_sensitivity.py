"""``optkit sensitivity`` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from rich.console import Console

from optkit.cli import render_sensitivity
from optkit.cli.render_sensitivity import show_sensitivity
from optkit.passes.quantize_dynamic import QuantizeDynamic
from tests.command import Answer, assert_refused, assert_same_in_json, call, write_data, write_mlp, write_recipe
from tests.report.test_sensitivity import facts_of, layer


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))


def ask(tmp_path: Path, *more: object) -> Answer:
    model, data = write_mlp(tmp_path / "m.onnx"), write_data(tmp_path / "x.npz")
    return call("sensitivity", model, "--data", data, "--no-bench", *more)


def test_the_table_ends_with_a_line_to_paste(tmp_path: Path) -> None:
    told = ask(tmp_path)
    assert told.code == 0 and told.err == ""
    (line,) = [line for line in told.out.splitlines() if line.startswith("exclude: ")]
    (name,) = yaml.safe_load(line)["exclude"]
    assert any(name in row and "MatMul" in row and "%" in row for row in told.out.splitlines())
    recipe = write_recipe(tmp_path / "r.yaml", f"quantize-dynamic: {{{line}}}")
    told = ask(tmp_path, "-r", recipe, "--json")
    assert told.code == 0
    result = told.body["result"]
    assert len(result["layers"]) == 1 and result["skipped"] == [{"where": name, "what": "excluded"}]


def test_json_has_everything(tmp_path: Path) -> None:
    body = ask(tmp_path, "--json", "--set", "passes.quantize-dynamic.per_channel=false").body
    result = body["result"]
    assert (body["verb"], body["ok"], result["step"]) == ("sensitivity", True, "quantize-dynamic")
    assert "per_channel: false" in result["sentence"]
    assert len(result["layers"]) == 2 and result["layers"][0]["error"] >= result["layers"][1]["error"] > 0
    assert result["quantized"]["limits"] and result["measured_on"]["split"] == "search"


def test_top_shows_fewer(tmp_path: Path) -> None:
    assert "1 more layer: --top 2, or --json." in ask(tmp_path, "--top", "1").out


def test_a_missed_limit_is_shown_and_is_no_failure(tmp_path: Path) -> None:
    told = ask(tmp_path, "--limit", "cosine=0.9999999")
    assert told.code == 0 and "MISSED" in told.out


def test_what_is_wrong_is_told_as_everywhere(tmp_path: Path) -> None:
    told = ask(tmp_path, "--step", "nowhere")
    assert_refused(told, 3, "has no step 'nowhere'", "quantize-dynamic", fix="--step quantize-dynamic")
    assert_same_in_json(ask(tmp_path, "--step", "nowhere", "--json"), told, "recipe-error")
    assert_refused(call("sensitivity", tmp_path / "none.onnx"), 3, "none.onnx")


@pytest.mark.parametrize("width", [200, 80, 40])
def test_the_line_to_paste_is_whole_on_any_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def terminal() -> Console:
        return Console(highlight=False, width=width, force_terminal=True, color_system=None)

    monkeypatch.setattr(render_sensitivity, "console", terminal)
    names = tuple(f"/model/encoder/layer.{index}/attention/[{index}]/MatMul" for index in range(3))
    show_sensitivity(facts_of(*map(layer, names), exclude=names), 15)
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith("exclude: ")]
    assert tuple(yaml.safe_load(line)["exclude"]) == names == QuantizeDynamic(exclude=names).exclude


def test_in_a_pipe_no_name_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    name = "/model/" + "very_long/" * 20 + "MatMul"
    show_sensitivity(facts_of(layer(name)), 15)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "MatMul" in line]
    assert name in row and "1.00%" in row
