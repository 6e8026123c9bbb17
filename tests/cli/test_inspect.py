"""``optkit inspect`` and ``optkit doctor`` on the command line, and what their --help imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from optkit.cli.app import app
from tests.helpers import normal, onnx_model

HEAVY = "torch", "onnx", "onnxruntime", "onnxscript", "numpy", "transformers"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    text = "g (float[batch,4] x) => (float[batch,3] y) { y = MatMul(x, w) }"
    onnx.save(onnx_model(text, {"w": normal(4, 3)}), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_inspect_prints_tables(model: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", str(model)])
    assert (result.exit_code, result.stderr) == (0, "")
    for words in ("most likely", "x=float32[batch,4]", "MatMul", "int8-static", "parameters"):
        assert words in result.stdout


def test_inspect_as_json(model: Path) -> None:
    body = json.loads(CliRunner().invoke(app, ["inspect", str(model), "--json"]).stdout)
    assert (body["verb"], body["ok"], body["result"]["summary"]["parameters"]) == ("inspect", True, 12)


def test_a_broken_model_exits_3(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "m.onnx"), "--json"])
    assert (result.exit_code, json.loads(result.stdout)["error"]["kind"]) == (3, "model-error")


def test_doctor_reports_and_exits_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("OPTKIT_CACHE_SIZE", "much")
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 0
    for words in ("Versions", "Processor features", "Extras", "Problems", "OPTKIT_CACHE_SIZE=much"):
        assert words in shown.stdout
    body = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert (body["ok"], body["result"]["processor"]["threads"] >= 1) == (True, True)


@pytest.mark.parametrize("verb", ["run", "inspect", "doctor"])
def test_help_imports_nothing_heavy(verb: str) -> None:
    code = (
        "import sys; from optkit.cli.app import app\n"
        f"try: app(['{verb}', '--help'])\n"
        "except SystemExit: pass\n"
        f"found = {set(HEAVY)!r} & sys.modules.keys(); sys.exit(f'imported: {{found}}' if found else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
