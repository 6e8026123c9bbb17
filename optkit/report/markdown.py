"""A Manifest, or a verdict alone, as Markdown fit for a pull request."""

from __future__ import annotations

import shlex

from optkit.model.bundle import is_alone
from optkit.model.manifest import Manifest, StepRecord, Verdict
from optkit.report.batch import batch_lines, batch_table
from optkit.report.decisions import decisions_table
from optkit.report.snippet import open_model
from optkit.report.tables import (
    Table,
    fidelity_table,
    limits_table,
    measured_on,
    verdict_line,
)
from optkit.report.waterfall import timing_lines, waterfall

MOST_LEFT_ALONE = 10
"""Places of one step that the report lists; the manifest has all."""


def markdown(manifest: Manifest) -> str:
    """The whole report: verdict, result, passes, what was left alone, outputs, limits, environment."""
    here = manifest.environment
    title = f"# optkit: {manifest.original.path} with the recipe {manifest.recipe_name}"
    parts = [title, _verdict(manifest.verdict), table_markdown(waterfall(manifest))]
    parts += [
        " ".join(timing_lines(manifest)),
        table_markdown(decisions_table(manifest)),
        _notes(manifest),
        _left_alone(manifest),
        table_markdown(fidelity_table(manifest.verdict)),
        table_markdown(limits_table(manifest.verdict)),
    ]
    parts.append(_session(manifest))
    if manifest.output is not None and not is_alone(manifest.output):
        parts.append(f"The same again:\n\n```sh\n{command(manifest)}\n```")
    packages = ", ".join(f"{name} {version}" for name, version in here.packages.items())
    parts.append(f"optkit {here.optkit}, Python {here.python}, {here.cpu}, {here.cores} cores; {packages}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _session(manifest: Manifest) -> str:
    """The options that the result wants, and, where it was written, how plain onnxruntime opens it with them."""
    parts = []
    if manifest.session:
        entries = "\n".join(f"- `{key}` = `{value}`" for key, value in manifest.session.items())
        parts.append(f"onnxruntime session options this model wants (a key with a dot is a config entry):\n\n{entries}")
    if manifest.output is not None:
        where = "" if is_alone(manifest.output) else " (`open_model.py`)"
        parts.append(f"In plain onnxruntime with the same options{where}:\n\n```python\n{open_model(manifest)}```")
    return "\n\n".join(parts)


def command(manifest: Manifest) -> str:
    """The command line that does the same again: the bundle's recipe, and what was given beside it."""
    words = ["optkit", "optimize", manifest.original.path, "--recipe", f"{manifest.output}/recipe.yaml"]
    for name, value in manifest.options.items():
        flag = name.replace("_", "-")
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return shlex.join(words)


def verdict_markdown(verdict: Verdict, original: str, result: str) -> str:
    """The report of a comparison."""
    parts = [f"# optkit check: {original} against {result}", _verdict(verdict)]
    parts += [_metrics(verdict), table_markdown(fidelity_table(verdict)), table_markdown(limits_table(verdict))]
    parts += [table_markdown(batch_table(verdict)), *batch_lines(verdict)]
    parts += [f"Note: {note}" for note in verdict.notes]
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdict(verdict: Verdict) -> str:
    word = "Passed" if verdict.held else "Failed"
    return f"**{word}.** {verdict_line(verdict)} {measured_on(verdict)}"


def _metrics(verdict: Verdict) -> str:
    lines = [
        f"- {m.name}: {m.original:.4f} -> {m.result:.4f}, drop {m.drop:.4f} [{m.low:.4f}, {m.high:.4f}] "
        f"on {m.samples}; one-sided 95 % bound {m.bound:.4f}, smallest provable budget {m.smallest_provable:.4f}"
        for m in verdict.metrics
    ]
    return "\n".join(lines)


def _notes(manifest: Manifest) -> str:
    lines = [f"- {step.id}: {note}" for step in manifest.steps for note in step.notes]
    lines += [f"- {note}" for note in manifest.notes]
    return "Notes:\n\n" + "\n".join(lines) if lines else ""


def _left_alone(manifest: Manifest) -> str:
    lists = ["\n".join(_skipped(step, manifest.output)) for step in manifest.steps if step.skipped]
    return "## Left alone\n\n" + "\n".join(lists) if lists else ""


def _skipped(step: StepRecord, output: str | None) -> list[str]:
    lines = [f"- {step.id}: {_one_line(each.where)}: {_one_line(each.what)}" for each in step.skipped[:MOST_LEFT_ALONE]]
    more = len(step.skipped) - len(lines)
    where = "`--json`" if output is None or is_alone(output) else "`manifest.json`"
    return [*lines, f"- {step.id}: and {more} more in {where}"] if more else lines


def _one_line(text: str) -> str:
    return " ".join(text.split())


def table_markdown(table: Table) -> str:
    """A table with its title as a heading; nothing where it has no rows."""
    if not table.rows:
        return ""
    head = "| " + " | ".join(table.heads) + " |"
    line = "|" + " --- |" * len(table.heads)
    rows = ["| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in row) + " |" for row in table.rows]
    return "\n".join([*([f"## {table.title}", ""] if table.title else []), head, line, *rows])
