"""``optkit check --batch-invariance``: in the table, as JSON, in reports for CI."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from optkit.passes.quantize_dynamic import QuantizeDynamic
from tests.command import call, write_data, write_mlp
from tests.helpers import run_pass

WORDS = "Shift by batch neighbours"


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An int8 model made of ``m.onnx``, in the current folder, with data ``x.npz``."""
    monkeypatch.chdir(tmp_path)
    write_mlp(tmp_path / "m.onnx")
    write_data(tmp_path / "x.npz")
    return run_pass(QuantizeDynamic(), tmp_path / "m.onnx").model.path


def test_the_table_says_which_depends(result: Path) -> None:
    told = call("check", "m.onnx", result, "--data", "x.npz", "--batch-invariance", "--limit", "cosine=0.9")
    assert told.code == 0, "it is a measurement and no limit"
    row = next(line for line in told.out.splitlines() if "logits" in line and "independent" in line)
    assert "0 independent" in row and "depends" in row
    assert WORDS in told.out and "16 samples in their batches of 8, against as many copies of each" in told.out


def test_json_has_the_figures_and_nothing_unasked(result: Path) -> None:
    asked = ("check", "m.onnx", result, "--data", "x.npz", "--limit", "cosine=0.9", "--json")
    assert call(*asked).body["result"]["batch_invariance"] is None
    found = call(*asked, "--batch-invariance").body["result"]["batch_invariance"]
    (logits,) = found["outputs"]
    assert (found["samples"], logits["name"], logits["original"]) == (16, "logits", 0.0)
    assert 1e-4 < logits["result"] < 1


def test_reports_for_ci_have_it(result: Path) -> None:
    asked = ("check", "m.onnx", result, "--data", "x.npz", "--limit", "cosine=0.9", "--batch-invariance")
    assert call(*asked, "--markdown", "r.md", "--junit", "r.xml").code == 0
    text = Path("r.md").read_text()
    assert f"## {WORDS}" in text and "| logits | 0 independent |" in text
    properties = {each.get("name"): each.get("value") for each in ElementTree.parse("r.xml").iter("property")}
    assert properties["batch_shift logits"].startswith("original 0 independent, result 0.0")
    assert "measured_on" in properties
