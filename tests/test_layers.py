"""What import-linter cannot know: the rules for pass files, over whatever files there are."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from optkit.passes._base import FRAME_KEYS
from optkit.passes._registry import find, own_names

ROOT = Path(__file__).parents[1]
PASSES = ROOT / "optkit" / "passes"
PUBLIC = sorted(PASSES.glob("[a-z]*.py"))
SHARED = sorted(path for path in PASSES.glob("_*/**/*.py")) + sorted(PASSES.glob("_[a-z]*.py"))
ALLOWED = ("optkit.data", "optkit.model", "optkit.errors", "optkit.passes._")


def imported(path: Path) -> Iterator[str]:
    """Every module of optkit that a file names in an import, at any depth; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "optkit")


def stem(path: Path) -> str:
    return path.stem


def test_the_folders_are_where_this_file_looks():
    assert {"export_onnx", "quantize_static"} <= {path.stem for path in PUBLIC}
    assert {"_ir", "_base", "qdq"} <= {path.stem for path in SHARED}


@pytest.mark.parametrize("path", PUBLIC, ids=stem)
def test_a_pass_imports_no_other_pass(path: Path):
    found = [name for name in imported(path) if name.startswith("optkit.passes")]
    assert found and [name for name in found if not name.startswith("optkit.passes._")] == []


@pytest.mark.parametrize("path", PUBLIC, ids=stem)
def test_a_pass_is_a_short_file_with_a_title_and_a_test(path: Path):
    text = path.read_text()
    assert len(text.splitlines()) <= 150
    tree = ast.parse(text)
    name = "".join(part.capitalize() for part in path.stem.split("_"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    assert len(classes) == 1, f"no class {name}"
    for node in (tree, classes[0]):
        first = (ast.get_docstring(node) or "").partition("\n")[0]
        assert first.endswith(".") and 20 < len(first) <= 100
    assert (ROOT / "tests" / "passes" / f"test_{path.name}").is_file()


@pytest.mark.parametrize("path", SHARED, ids=stem)
def test_shared_parts_of_passes_import_only_from_below(path: Path):
    assert [name for name in imported(path) if not name.startswith(ALLOWED)] == []
    assert len(path.read_text().splitlines()) < 250


def test_import_linter_knows_all_shared_parts():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    listed = next(each["source_modules"] for each in contracts if each["type"] == "forbidden")
    there = {path.relative_to(PASSES).parts[0].removesuffix(".py") for path in SHARED}
    assert set(listed) == {f"optkit.passes.{name}" for name in there}


@pytest.mark.parametrize("name", own_names())
def test_no_option_of_a_pass_is_named_as_what_every_entry_has(name: str):
    assert not set(FRAME_KEYS) & find(name).model_fields.keys()
