"""``optkit passes``."""

from __future__ import annotations

from optkit.passes._registry import names
from tests.command import assert_refused, call


def test_list_names_every_pass_with_its_title() -> None:
    told = call("passes", "list")
    assert told.code == 0 and told.err == ""
    for name in names():
        assert name in told.out
    assert "Quantize weights to int8" in told.out
    body = call("passes", "list", "--json").body
    assert (body["verb"], body["ok"]) == ("passes list", True)
    assert [each["name"] for each in body["result"]] == names()


def test_show_prints_forms_options_and_defaults() -> None:
    told = call("passes", "show", "quantize-dynamic")
    assert told.code == 0
    for words in ("quantize-dynamic", "onnx to onnx; lossy", "per_channel", "boolean", "True", "exclude", "list of"):
        assert words in told.out
    line = "also takes: id (string), required (boolean), keep (measured | always), when ({form, provider})."
    assert line in " ".join(told.out.split())
    facts = call("passes", "show", "quantize-dynamic", "--json").body["result"]
    assert facts["forms"] == {"onnx": "onnx"} and facts["kind"] == "lossy"
    assert facts["options"]["per_channel"]["default"] is True and facts["options"]["per_channel"]["text"]


def test_every_pass_and_option_says_what_it_is_for() -> None:
    for facts in call("passes", "list", "--json").body["result"]:
        assert facts["title"].endswith(".") and facts["forms"]
        for name, option in facts["options"].items():
            assert len(option["text"]) > 15 and option["type"] != "any", (facts["name"], name)


def test_an_unknown_pass_gets_a_suggestion() -> None:
    told = call("passes", "show", "quantize-dynamik")
    assert_refused(told, 3, "no pass 'quantize-dynamik'", "export-onnx", fix="did you mean 'quantize-dynamic'?")
    assert call("passes", "show", "quantize-dynamik", "--json").body["error"]["kind"] == "recipe-error"
