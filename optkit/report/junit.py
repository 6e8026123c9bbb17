"""A verdict as JUnit XML: one test case a limit, for the CI systems that show such."""

from __future__ import annotations

from collections.abc import Mapping

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from optkit.model.manifest import LimitResult, Verdict
from optkit.report.batch import batch_table
from optkit.report.tables import measured_on, number


def junit(verdict: Verdict, suite: str) -> str:
    """The verdict's limits and problems as a test suite named ``suite``."""
    cases = [_case(limit, suite) for limit in verdict.limits]
    cases += [_problem(problem, suite) for problem in verdict.problems]
    shifts = {f"batch_shift {name}": told for name, *told in batch_table(verdict).rows}
    words = {name: f"original {before}, result {after}" for name, (before, after) in shifts.items()}
    return _xml(suite, cases, {"measured_on": measured_on(verdict)} | words)


def junit_error(message: str, suite: str) -> str:
    """A run that could not be judged at all."""
    case = TestCase("optkit", classname=_printable(suite))
    case.result = [Error(_printable(message))]
    return _xml(suite, [case], {})


def _xml(suite: str, cases: list[TestCase], properties: Mapping[str, str]) -> str:
    tests = TestSuite(_printable(suite))
    tests.add_testcases(cases)
    for name, words in properties.items():
        tests.add_property(_printable(name), _printable(words))
    xml = JUnitXml()
    xml.add_testsuite(tests)
    text: bytes | str = xml.tostring()
    return text.decode() if isinstance(text, bytes) else text


def _case(limit: LimitResult, suite: str) -> TestCase:
    case = TestCase(_printable(f"{limit.name} {limit.limit} {limit.where}".strip()), classname=_printable(suite))
    words = f"measured {number(limit.measured, 6)}, limit {limit.limit}" + (f" ({limit.note})" if limit.note else "")
    if limit.held is None:
        case.result = [Skipped(_printable(limit.note) or "not checked")]
    elif not limit.held:
        case.result = [Failure(_printable(words))]
    case.system_out = _printable(words)
    return case


def _problem(problem: str, suite: str) -> TestCase:
    case = TestCase("outputs", classname=_printable(suite))
    case.result = [Failure(_printable(problem))]
    return case


def _printable(text: str) -> str:
    """Without the control characters that XML cannot hold at all."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)
