"""``optkit profile`` on the command line; the measuring itself is replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from optkit.cli.app import app
from optkit.cli.render_profile import fitting
from optkit.pipeline.candidates import About
from optkit.pipeline.profile import Conditions
from optkit.report.json import output_schema
from optkit.report.profile import profile_tables
from tests.bench.toy_profile import profiled
from tests.command import assert_refused, call
from tests.report.test_profile import facts_of


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def stand_in(model: str, **options: Any) -> Any:
        found.update(options, model=model)
        return facts_of(profiled())

    monkeypatch.setattr("optkit.pipeline.profile.profile", stand_in)
    return found


def test_options_reach_the_pipeline(asked: dict[str, Any]) -> None:
    words = ["--dims", "batch=8", "--dims", "seq=32", "--threads", "2", "--session", "session.a=b", "--provider", "cpu"]
    more = ["--against", "o.onnx", "--trace", "t.json", "--force", "--input", "x.npz"]
    result = CliRunner().invoke(app, ["profile", "m.onnx", *words, *more])
    assert result.exit_code == 0, result.output
    assert (asked["model"], asked["against"]) == ("m.onnx", "o.onnx")
    assert asked["conditions"] == Conditions(Path("x.npz"), None, {"batch": 8, "seq": 32}, 2)
    assert (asked["trace"], asked["force"]) == (Path("t.json"), True)
    assert asked["about"] == About(provider="cpu", session={"session.a": "b"})


def test_it_prints_tables_and_sentences(asked: dict[str, Any], tmp_path: Path) -> None:
    report = tmp_path / "r.md"
    result = CliRunner().invoke(app, ["profile", "m.onnx", "--top", "2", "--markdown", str(report)])
    assert result.exit_code == 0 and result.stderr == ""
    for words in ("the 2 longest of 3 nodes", "wide", "40% mem", "a call takes 1 ms", "at most 0.597 ms"):
        assert words in result.stdout
    assert "the 2 longest of 3 nodes" in report.read_text()


@pytest.mark.parametrize(
    ("width", "last"), [(200, "inputs"), (119, "GB/s"), (60, "Gop/s"), (50, "of limit"), (20, "of limit")]
)
def test_narrow_terminals_show_fewer_columns_of_nodes(width: int, last: str) -> None:
    nodes = profile_tables(facts_of(profiled()))[1]
    assert fitting(nodes, width).heads[-1] == last


def test_json_has_all_nodes_and_fits_its_schema(asked: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    body = json.loads(CliRunner().invoke(app, ["profile", "m.onnx", "--top", "1", "--json"]).stdout)
    assert (body["verb"], body["ok"], len(body["result"]["model"]["nodes"])) == ("profile", True, 3)
    schema = output_schema()
    assert {"$ref": "#/$defs/ProfileFacts"} in schema["properties"]["result"]["anyOf"]
    jsonschema.validate(body["result"], {"$ref": "#/$defs/ProfileFacts", "$defs": schema["$defs"]})


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["no.onnx"], 3, "There is no such model"),
        (["no.onnx", "--dims", "batch=1,8"], 2, "a profile is of one size"),
        (["no.onnx", "--dims", "batch"], 2, "a number is missing"),
        (["no.onnx", "--trace", "no/t.json"], 3, "its folder does not exist"),
        (["no.onnx", "--data", "a.npz", "--input", "b.npz"], 2, "both say what to run on"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(arguments: list[str], code: int, words: str) -> None:
    assert_refused(call("profile", *arguments), code, words)
