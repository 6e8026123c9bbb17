"""Report files a CI step asks for: JUnit, Markdown, and the job summary of GitHub Actions."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optkit.errors import OutputError


def report_writer(
    suite: str, junit: Path | None, markdown: Path | None, words: Callable[[Any], str]
) -> Callable[[Any, BaseException | None], None]:
    """A function that writes the asked files from a result or an error.

    Args:
        suite: name of the JUnit suite.
        junit: path, or None.
        markdown: path, or None.
        words: the Markdown text of a result (a manifest or a verdict).
    """

    def write(result: Any, error: BaseException | None) -> None:
        facts = getattr(error, "facts", None) if result is None else result
        summary = os.environ.get("GITHUB_STEP_SUMMARY")
        if junit is None and markdown is None and not summary:
            return
        text = words(facts) if facts is not None else f"# {suite}\n\n**Failed.** {error}\n"
        if junit is not None:
            _write(junit, _junit(suite, facts, error))
        if markdown is not None:
            _write(markdown, text)
        if summary:
            _write(Path(summary), text, append=True)

    return write


def manifest_words(manifest: Any) -> str:
    """The Markdown text of a manifest."""
    from optkit.report.markdown import markdown

    return markdown(manifest)


def _junit(suite: str, facts: Any, error: BaseException | None) -> str:
    from optkit.report.junit import junit, junit_error

    return junit_error(str(error), suite) if facts is None else junit(getattr(facts, "verdict", facts), suite)


def _write(path: Path, text: str, *, append: bool = False) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if append else "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        raise OutputError(
            f"The report {path} cannot be written: {error.strerror}.",
            expected="a path you may write to",
            fix="choose another path",
        ) from error
