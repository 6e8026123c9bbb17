"""What the README shows is run: its commands on the sample models, its Python, and the names in its tables."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from optkit.cli.app import app
from optkit.recipe.load import shipped
from tests.command import ROOT, SAMPLES, call
from tests.timing import Stopwatch

README = (ROOT / "README.md").read_text()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the sample models in it, as the README's reader stands in; the clock is left out of it."""
    shutil.copytree(SAMPLES, tmp_path / "sample_models", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    Stopwatch(1.0).installed(monkeypatch)
    return tmp_path


def commands(prefix: str) -> list[list[str]]:
    """The words of each console line that starts with ``prefix``."""
    return [shlex.split(line) for line in re.findall(rf"^\$ ({re.escape(prefix)}.*)$", README, re.MULTILINE)]


def test_the_commands_on_sample_models_work_as_written(checkout: Path) -> None:
    shown = [words[1:] for words in commands(".venv/bin/optkit")]
    assert [words[0] for words in shown] == ["optimize", "run", "check"]
    for words in shown:
        told = call(*words)
        assert told.code == 0, told.err
    assert sorted(path.name for path in (checkout / "digits_cnn.int8").iterdir()) == [
        "manifest.json",
        "model.onnx",
        "open_model.py",
        "recipe.yaml",
        "report.md",
    ]


def test_the_python_snippet_runs(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(snippet, "README.md", "exec"), {})
    held, size, speedup = capsys.readouterr().out.split()
    assert held == "True" and speedup == "1.0"
    assert int(size) == (checkout / "out" / "digits" / "model.onnx").stat().st_size


def test_the_first_two_commands_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    first = [words[1] for words in commands("make")]
    assert first == ["demo", "test"] and targets.issuperset(first)


def test_the_tables_name_every_verb_and_recipe() -> None:
    verbs = {group.name for group in app.registered_groups} | {
        (each.name or each.callback.__name__) for each in app.registered_commands if each.callback
    }
    section = README.split("## Verbs")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)", section, re.MULTILINE)) == verbs
    assert set(re.findall(r"^\| `([\w-]+)` \|", README.split("## Recipes")[1].split("\n## ")[0], re.MULTILINE)) == set(
        shipped()
    )


def test_the_recipe_shown_is_the_shipped_one() -> None:
    (shown,) = re.findall(r"```yaml\n(version: 1\nname: int8.*?)```", README, re.DOTALL)
    without = [line for line in shipped()["int8"].read_text().splitlines() if not line.startswith("description")]
    assert shown.splitlines() == without


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
