"""``optkit run`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from optkit.cli.app import app
from optkit.model.manifest import Decision, Manifest
from optkit.pipeline.optimize import optimize
from tests.helpers import normal, onnx_model
from tests.pipeline import toy

TEXT = "g (float[batch,4] x) => (float[batch,3] logits) { logits = MatMul(x, w) }"


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    onnx.save(onnx_model(TEXT, {"w": normal(4, 3)}), tmp_path / "m.onnx")
    onnx.save(onnx_model(TEXT, {"w": normal(4, 3, seed=5)}), tmp_path / "other.onnx")
    np.savez(tmp_path / "x.npz", x=normal(6, 4))


def test_it_prints_outputs_and_placement_and_writes(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["run", "m.onnx", "--input", "x.npz", "-o", "y.npz"])
    assert result.exit_code == 0, result.output
    for words in ("logits", "[6, 3]", "1 MatMul", "6 samples of", "Written: y.npz"):
        assert words in result.stdout
    assert result.stderr == ""
    assert np.load("y.npz")["logits"].shape == (6, 3)


def test_json_of_a_run_and_of_a_comparison() -> None:
    run = json.loads(CliRunner().invoke(app, ["run", "m.onnx", "-i", "x.npz", "--json"]).stdout)
    assert (run["verb"], run["ok"], run["result"]["placement"]) == ("run", True, {"cpu": {"MatMul": 1}})
    compared = CliRunner().invoke(app, ["run", "m.onnx", "-i", "x.npz", "--against", "m.onnx", "--json"])
    verdict = json.loads(compared.stdout)["result"]
    assert verdict["held"] is True and verdict["measured_on"]["samples"] == 6


def test_a_miss_exits_4_with_the_verdict() -> None:
    result = CliRunner().invoke(app, ["run", "other.onnx", "-i", "x.npz", "--against", "m.onnx", "--json"])
    body = json.loads(result.stdout)
    assert (result.exit_code, body["exit_code"], body["result"]["held"]) == (4, 4, False)
    assert "cosine" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nothing.onnx"], 3, "There is no such model"),
        (["m.onnx", "--provider", "cuda"], 3, "'cuda' is not there"),
        (["m.onnx", "-i", "nothing.npz"], 3, "do not exist"),
        (["m.onnx", "-o", "x.npz"], 3, "exists already"),
        (["m.onnx", "--limit", "cosine=1"], 2, "--against ORIGINAL"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(arguments: list[str], code: int, words: str) -> None:
    result = CliRunner().invoke(app, ["run", *arguments])
    assert (result.exit_code, result.stdout) == (code, "")
    assert words in result.stderr and "Traceback" not in result.stderr


def test_against_is_shown_below_the_run() -> None:
    result = CliRunner().invoke(app, ["run", "m.onnx", "-i", "x.npz", "--against", "m.onnx"])
    assert result.exit_code == 0
    assert result.stdout.index("What ran where") < result.stdout.index("All limits held")


@pytest.mark.parametrize("verb", [["run", "-i", "x.npz"], ["check", "m.onnx"], ["run", "--against", "m.onnx"]])
def test_decisions_of_another_machine_are_told_once_on_stderr_and_in_the_result(
    tmp_path: Path, verb: list[str]
) -> None:
    toy.write_model(tmp_path / "m.onnx")
    optimize("m.onnx", toy.ScaleBy(), "out", bench=False)
    decision = Decision(what="x", kept=True, speedup=1.2, low=1.1, high=1.3, reason="faster")
    manifest = Manifest.model_validate_json(Path("out/manifest.json").read_bytes())
    steps = (manifest.steps[0].model_copy(update={"decisions": (decision,)}),)
    there = manifest.environment.model_copy(update={"cpu": "Other CPU"})
    Path("out/manifest.json").write_text(
        manifest.model_copy(update={"steps": steps, "environment": there}).model_dump_json()
    )
    result = CliRunner().invoke(app, [*verb, "out"])
    assert result.exit_code == 0 and result.stdout.count("measured on Other CPU") == 1
    assert result.stderr.count("note: The decision of this bundle was measured on Other CPU") == 1
    as_json = CliRunner().invoke(app, [*verb, "out", "--json"])
    assert len(json.loads(as_json.stdout)["result"]["notes"]) == 1
    assert as_json.stderr == result.stderr and as_json.stderr.count("\n") == 1
