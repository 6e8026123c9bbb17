"""``optkit bench`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from optkit.bench.measure import Rules
from optkit.cli.app import app
from optkit.cli.render import show_table
from optkit.cli.render_bench import show_bench
from optkit.report.bench import bench_tables
from tests.command import assert_refused, assert_same_in_json, call
from tests.helpers import normal, onnx_model
from tests.report.test_bench import bench_facts, candidate, point

QUICK = ("--budget", "0.2", "--launches", "1")
TEXT = "g (float[batch,4] x) => (float[batch,3] logits) { logits = MatMul(x, w) }"


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.chdir(tmp_path)
    onnx.save(onnx_model(TEXT, {"w": normal(4, 3)}), tmp_path / "m.onnx")


def test_it_prints_tables_and_writes_markdown(tmp_path: Path) -> None:
    told = call("bench", "m.onnx", "m.onnx", *QUICK, "--markdown", "report.md")
    assert told.code == 0, told.err
    for words in ("Latency", "m.onnx (2)", "baseline", "Before the steady state", "Fed: synthetic, x float32[8,4]"):
        assert words in told.out, words
    assert told.err == ""
    report = (tmp_path / "report.md").read_text()
    assert report.startswith("# optkit bench: baseline m.onnx") and "| m.onnx (2) |" in report


def test_json_holds_the_facts_and_the_raw_samples() -> None:
    load = ("--load", "100/s", "--load-seconds", "0.1")
    told = call("bench", "m.onnx", *QUICK, "--dims", "batch=1,2", "--threads", "1", "--seed", "7", *load, "--json")
    assert (told.code, told.body["verb"], told.body["ok"]) == (0, "bench", True), told.err
    points = told.body["result"]["points"]
    assert [(each["dims"], each["threads"]) for each in points] == [({"batch": 1}, 1), ({"batch": 2}, 1)]
    (each,) = points[0]["candidates"]
    assert sum(map(len, each["samples_ms"])) == each["steady"]["calls"]
    assert [len(each["load"][0]["samples_ms"]) for each in points] == [10, 10]
    assert told.body["result"]["seed"] == 7


def test_no_samples_leaves_them_out() -> None:
    body = call("bench", "m.onnx", *QUICK, "--no-samples", "--json").body
    assert body["result"]["points"][0]["candidates"][0]["samples_ms"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nothing.onnx",), 3, "There is no such model"),
        (("m.onnx@opnvino",), 2, "There is no engine 'opnvino'"),
        (("m.onnx", "--dims", "seq=8"), 2, "The dimension 'seq' does not exist."),
        (("m.onnx", "--dims", "batch"), 2, "a number is missing"),
        (("m.onnx", "--budget", "0"), 2, "--budget 0 makes no sense."),
        (("m.onnx", "--load", "-5/s"), 2, "--load -5/s: that is no rate."),
        (("m.onnx", "--session", "spinning"), 2, "that is no entry"),
        (("m.onnx", "--session", "spinning=0"), 2, "There is no session option 'spinning'"),
        (("m.onnx", "--session", "execution_mode=2"), 2, "execution_mode does not take '2'"),
        (("m.onnx", "--threads", "0"), 2, "'0' is no whole number"),
        (("m.onnx", "--input", "nothing.npz"), 3, "do not exist"),
        (("m.onnx", "--provider", "cuda", *QUICK), 3, "m.onnx: The execution provider 'cuda' is not there."),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(arguments: tuple[str, ...], code: int, words: str) -> None:
    told = call("bench", *arguments)
    assert_refused(told, code, words)
    kind = {2: "usage-error", 3: json.loads(call("bench", *arguments, "--json").out)["error"]["kind"]}[code]
    assert_same_in_json(call("bench", *arguments, "--json"), told, kind)


def test_no_model_is_a_wrong_command_line() -> None:
    told = call("bench")
    assert told.code == 2 and "MODEL" in told.err and told.out == ""


def test_points_measured_before_a_failure_are_shown(tmp_path: Path) -> None:
    text = "g (float[batch,4] x) => (float[2,2] y) { s = Constant<value_ints=[2,2]>() y = Reshape(x, s) }"
    onnx.save(onnx_model(text), tmp_path / "one.onnx")
    told = call("bench", "one.onnx", "--dims", "batch=1,3", *QUICK)
    assert told.code == 3 and "onnxruntime failed" in told.err
    assert "Latency" in told.out and "batch=1" in told.out and "batch=3" not in told.out


def test_the_help_states_the_defaults_that_hold() -> None:
    text = " ".join(CliRunner().invoke(app, ["bench", "--help"], env={"COLUMNS": "200"}).stdout.split())
    rules = Rules()
    for default in (rules.budget_s, rules.precision, rules.margin, rules.launches, rules.seed):
        assert f"(default: {default:g})" in text


def test_a_narrow_terminal_gets_paragraphs_and_no_figure_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    facts = bench_facts(point(candidate("a.onnx"), candidate("b.onnx@openvino", 1.25, engine="openvino")))
    terminal = Console(width=60, highlight=False, force_terminal=True, color_system=None)
    show_table(terminal, bench_tables(facts)[0])
    text = capsys.readouterr().out
    assert "┃" not in text and max(map(len, text.splitlines())) <= 60
    flat = " ".join(text.split())
    for words in ("b.onnx@openvino", "median ms 1.6", "ratio 1.250x [1.240, 1.260]", "verdict faster"):
        assert words in flat, words


def test_a_pipe_gets_whole_rows(capsys: pytest.CaptureFixture[str]) -> None:
    long = "a-rather-long-name-of-a-model-as-people-have-them.onnx"
    facts = bench_facts(point(candidate("a.onnx"), candidate(long, 1.25)), warnings=("Beware.",))
    show_bench(facts)
    lines = capsys.readouterr().out.splitlines()
    assert any(long in line and "1.250x [1.240, 1.260]" in line and "faster" in line for line in lines)
    assert "Warning: Beware." in lines
