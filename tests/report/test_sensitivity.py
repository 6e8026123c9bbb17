"""The table of sensitive layers: what is known is shown, and nothing else."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from optkit.model.manifest import MetricResult
from optkit.report.json import dump, output_schema
from optkit.report.sensitivity import LayerEffect, SensitivityFacts, sensitivity_lines, sensitivity_table
from tests.report.facts import limit, verdict

TOP1 = MetricResult(
    name="top1",
    better="higher",
    original=0.95,
    result=0.94,
    drop=0.01,
    low=0.0,
    high=0.02,
    bound=0.018,
    samples=24,
    smallest_provable=0.008,
)


def layer(name: str, error: float = 0.01, **more: Any) -> LayerEffect:
    sqnr = -20 * math.log10(error) if 0 < error < math.inf else -math.inf
    return LayerEffect(
        **{"name": name, "operator": "MatMul", "error": error, "sqnr_db": sqnr, "among": 1, "parameters": 1200, **more}
    )


def facts_of(*layers: LayerEffect, **more: Any) -> SensitivityFacts:
    found = verdict(limit("cosine", held=False), metrics=(TOP1,))
    given = {"model": "m.onnx", "recipe": "int8", "why": "", "step": "quantize-dynamic", "sentence": "quantize-dynamic"}
    return SensitivityFacts(**{**given, "layers": layers, "quantized": found, "measured_on": found.measured_on, **more})


def test_columns_of_which_nothing_is_known_are_left_out() -> None:
    bare = sensitivity_table(facts_of(layer("a", 0.1), layer("b")))
    assert bare.heads == ("layer", "operator", "output error", "SQNR dB", "parameters")
    assert bare.rows == (("a", "MatMul", "10.00%", "20.0", "1200"), ("b", "MatMul", "1.00%", "40.0", "1200"))
    full = sensitivity_table(facts_of(layer("a", drop=0.004, share=0.25), layer("b", among=3)))
    assert full.heads[4:] == ("group of", "drop of top1", "parameters", "time")
    assert full.rows[0][4:] == ("-", "0.0040", "1200", "25.0%") and full.rows[1][4:] == ("3", "-", "1200", "-")


def test_what_is_not_shown_is_counted() -> None:
    facts = facts_of(*(layer(str(index)) for index in range(5)))
    assert len(sensitivity_table(facts, 2).rows) == 2
    assert next(sensitivity_lines(facts, 2)) == "3 more layers: --top 5, or --json."
    assert "more layer" not in " ".join(sensitivity_lines(facts, 5))


def test_lines_say_how_on_what_and_why() -> None:
    lines = list(sensitivity_lines(facts_of(layer("a"), why="the model has no convolutions", notes=("mind the gap",))))
    assert lines[0].startswith("Each layer was quantized alone: ")
    assert lines[1:3] == ["Recipe int8: the model has no convolutions.", "mind the gap"]
    assert any(line.startswith("top1 ") for line in lines) and "samples of" in lines[-1]
    groups = list(sensitivity_lines(facts_of(layer("a", among=2))))
    assert "groups of neighbours" in groups[0]


def test_without_layers_there_is_only_the_reason() -> None:
    facts = facts_of(quantized=None, notes=("nothing to quantize",))
    assert sensitivity_table(facts).rows == ()
    assert list(sensitivity_lines(facts)) == ["There is no layer to rank.", "nothing to quantize"]


def test_infinite_errors_are_told_and_are_valid_json() -> None:
    facts = facts_of(layer("a", math.inf))
    assert sensitivity_table(facts).rows[0][2:4] == ("NaN or infinite", "1200")
    assert '"layers.0.error": "inf"' in dump(facts)


@pytest.mark.parametrize("field", ["layers", "exclude", "quantized", "measured_on", "why"])
def test_the_schema_of_the_answer_has_it(field: str) -> None:
    assert field in output_schema()["$defs"]["SensitivityFacts"]["properties"]


@pytest.mark.parametrize("error", [0.0, math.inf])
def test_infinite_figures_are_null_and_the_schema_allows_it(error: float) -> None:
    exact = layer("a", sqnr_db=math.inf if error == 0 else -math.inf).model_copy(update={"error": error})
    body = json.loads(dump(facts_of(exact)))
    assert body["layers"][0]["sqnr_db"] is None and "layers.0.sqnr_db" in body["nonfinite"]
    schema = output_schema()
    Draft202012Validator({"$defs": schema["$defs"], "$ref": "#/$defs/SensitivityFacts"}).validate(body)


def test_one_layer_is_not_all_layers() -> None:
    assert any(line.startswith("With this layer quantized") for line in sensitivity_lines(facts_of(layer("a"))))
    both = sensitivity_lines(facts_of(layer("a"), layer("b")))
    assert any(line.startswith("With all 2 layers quantized") for line in both)
