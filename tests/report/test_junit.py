"""JUnit XML, read back by another parser."""

from __future__ import annotations

from xml.etree import ElementTree

from optkit.report.junit import junit, junit_error
from tests.report.facts import limit, verdict


def parsed(text: str) -> ElementTree.Element:
    root = ElementTree.fromstring(text)
    assert root.tag == "testsuites"
    suite = root.find("testsuite")
    assert suite is not None
    return suite


def test_a_case_a_limit() -> None:
    limits = (
        limit("cosine", held=True, where="logits", measured=0.9999),
        limit("agreement", held=False, where="logits"),
        limit("speedup", held=None, limit="not-slower", measured=None, kind="budget", note="not timed: --no-bench"),
    )
    suite = parsed(junit(verdict(*limits), "optkit check m.onnx"))
    counts = {key: suite.get(key) for key in ("name", "tests", "failures", "errors", "skipped")}
    assert counts == {"name": "optkit check m.onnx", "tests": "3", "failures": "1", "errors": "0", "skipped": "1"}
    held, missed, skipped = suite.findall("testcase")
    assert held.get("name") == "cosine >= 0.99 logits" and held.find("failure") is None
    failure, skip = missed.find("failure"), skipped.find("skipped")
    assert failure is not None and failure.get("message") == "measured 0.9, limit >= 0.99"
    assert skip is not None and skip.get("message") == "not timed: --no-bench"
    assert "24 samples of e.npz" in next(p.get("value", "") for p in suite.iter("property"))


def test_problems_are_failures() -> None:
    suite = parsed(junit(verdict(held=False, problems=("the output 'y' holds NaN",)), "s"))
    (case,) = suite.findall("testcase")
    failure = case.find("failure")
    assert failure is not None and failure.get("message") == "the output 'y' holds NaN"


def test_a_run_that_could_not_be_judged() -> None:
    suite = parsed(junit_error("There is no such model.\nFix: see: ls .", "optkit check m.onnx"))
    assert (suite.get("errors"), suite.get("tests")) == ("1", "1")
    error = suite.find("testcase/error")
    assert error is not None and "There is no such model." in error.get("message", "")


def test_characters_that_xml_cannot_hold() -> None:
    odd = "\x1b[31mred\x00 <&> \udcff \ufffe 図"
    for text in (junit_error(odd, odd), junit(verdict(limit("cosine", held=False, where=odd, note=odd)), odd)):
        suite = parsed(text)
        assert "\x1b" not in text and "\x00" not in text and "図" in (suite.get("name") or "")
    assert junit_error(odd, "s").encode("utf-8")
