"""The wheel and the source archive: what is in them, and the wheel at work in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import optkit
from tests.command import ROOT, SHIPPED_RECIPES, write_data, write_mlp

RECIPES = sorted(path.name for path in (ROOT / "recipes").iterdir())


@dataclass(frozen=True)
class Built:
    """What ``python -m build`` made: the wheel comes from the source archive, not from the checkout."""

    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT))
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return Built(sdist, wheel)


@pytest.fixture(scope="module")
def environment(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh virtual environment with the wheel in it, installed without network; dependencies come from this one."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    flags = ("--disable-pip-version-check", "--no-index", "--no-deps", "--quiet")
    run(sys.executable, "-m", "pip", "--python", str(folder), "install", *flags, str(built.wheel))
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    site(folder).joinpath("zz_borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")
    yield folder


def site(environment: Path) -> Path:
    return next(environment.glob("lib/python*/site-packages"))


def run(*command: str, cwd: Path | None = None) -> str:
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_the_recipes_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        names = wheel.namelist()
        metadata = wheel.read(f"optkit-{optkit.__version__}.dist-info/METADATA").decode()
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "optkit").rglob("*.py")}
    shipped = {f"optkit/recipes/{name}" for name in RECIPES}
    assert {name for name in names if ".dist-info/" not in name} == {*modules, *shipped, "optkit/py.typed"}
    assert f"optkit-{optkit.__version__}.dist-info/licenses/LICENSE" in names
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert {"cpu", "gpu", "torch", "hf", "data"} <= {
        line.partition(": ")[2] for line in metadata.splitlines() if line.startswith("Provides-Extra")
    }


def test_the_source_archive_holds_what_the_wheel_is_made_of(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        paths = [Path(*Path(name).parts[1:]) for name in archive.getnames()]
    tops = {path.parts[0] for path in paths}
    allowed = {"optkit", "recipes", "README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "PKG-INFO", ".gitignore"}
    assert {"optkit", "recipes", "README.md", "LICENSE", "pyproject.toml", "PKG-INFO"} <= tops <= allowed
    assert sorted(path.name for path in paths if path.parts[0] == "recipes") == RECIPES


def test_the_installed_recipes_come_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    command = str(environment / "bin" / "optkit")
    listed = json.loads(run(command, "recipe", "list", "--json", cwd=tmp_path))["result"]
    folder = site(environment) / "optkit" / "recipes"
    assert {Path(entry["path"]).parent for entry in listed} == {folder}
    assert [entry["name"] for entry in listed] == SHIPPED_RECIPES
    assert sorted(path.name for path in folder.iterdir()) == RECIPES
    for name in RECIPES:
        assert (folder / name).read_bytes() == (ROOT / "recipes" / name).read_bytes()
    assert "int8-static" in run(command, "recipe", "list", cwd=tmp_path)
    valid = run(command, "recipe", "validate", "int8", cwd=tmp_path)
    assert valid == "int8 is valid: export-onnx, simplify, fuse-before, quantize-dynamic, fuse-after, tune-session\n"


def test_the_installed_command_answers_from_anywhere(environment: Path, tmp_path: Path) -> None:
    command = str(environment / "bin" / "optkit")
    assert run(command, "--version", cwd=tmp_path) == f"optkit {optkit.__version__}\n"
    assert run(str(environment / "bin" / "python"), "-m", "optkit", "--version", cwd=tmp_path).startswith("optkit ")
    passes = json.loads(run(command, "passes", "list", "--json", cwd=tmp_path))["result"]
    own = {path.stem.replace("_", "-") for path in (ROOT / "optkit" / "passes").glob("[a-z]*.py")}
    assert {entry["name"] for entry in passes} == own
    assert json.loads(run(command, "recipe", "schema", cwd=tmp_path)) == json.loads(
        (ROOT / "recipes" / "schema.json").read_text()
    )


def test_the_installed_command_optimizes(environment: Path, tmp_path: Path) -> None:
    write_mlp(tmp_path / "model.onnx")
    write_data(tmp_path / "data.npz")
    command = str(environment / "bin" / "optkit")
    options = ("--recipe", "int8", "--data", "data.npz", "--no-bench", "--json")
    found = json.loads(run(command, "optimize", "model.onnx", *options, cwd=tmp_path))
    assert found["ok"] is True
    assert (tmp_path / "model.int8" / "model.onnx").is_file()
