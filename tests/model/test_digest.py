"""Content digests."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper, parser

from optkit.model.digest import digest_model, model_files, sha256_files
from optkit.model.imports import reachable_files
from optkit.model.model import Model
from optkit.model.onnx_file import save_onnx


def write(folder: Path, *, value: float = 1.0, external: bool = True, name: str = "m.onnx") -> Model:
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[batch, 2] x) => (float[batch, 300] y) { y = MatMul(x, w) }'
    )
    model.graph.initializer.append(numpy_helper.from_array(np.full((2, 300), value, np.float32), "w"))
    folder.mkdir(exist_ok=True)
    save_onnx(model, folder / name, external=external)
    return Model(folder / name, "onnx", "onnx")


def weights(tmp_path: Path, factory: str) -> Model:
    (tmp_path / "w.pt").write_bytes(b"weights")
    return Model(tmp_path / "w.pt", "torch", "weights", factory=factory)


def test_one_file_has_the_digest_of_sha256sum(tmp_path: Path) -> None:
    model = write(tmp_path / "a", external=False)
    assert digest_model(model) == hashlib.sha256(model.path.read_bytes()).hexdigest()
    assert model.digest == digest_model(model)


def test_many_files_count_in_their_order(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    a, b = tmp_path / "a", tmp_path / "b"
    expected = hashlib.sha256(hashlib.sha256(b"a").digest() + hashlib.sha256(b"b").digest()).hexdigest()
    assert sha256_files([a, b]) == expected
    assert sha256_files([b, a]) != expected


def test_path_and_time_do_not_count(tmp_path: Path) -> None:
    first = write(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    os.utime(tmp_path / "b" / "m.onnx", (0, 0))
    (tmp_path / "b" / "m.onnx").rename(tmp_path / "b" / "renamed.onnx")
    assert digest_model(Model(tmp_path / "b" / "renamed.onnx", "onnx", "onnx")) == digest_model(first)


def test_external_data_count(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a"), write(tmp_path / "b", value=2.0)
    assert first.path.read_bytes() == second.path.read_bytes()
    assert digest_model(first) != digest_model(second)
    assert model_files(first) == [first.path, tmp_path / "a" / "m.onnx.data"]
    assert first.size_bytes == first.path.stat().st_size + 2400


def test_changed_model_is_seen_in_the_same_place(tmp_path: Path) -> None:
    assert model_files(write(tmp_path / "a")) == [tmp_path / "a" / "m.onnx", tmp_path / "a" / "m.onnx.data"]
    assert model_files(write(tmp_path / "a", external=False)) == [tmp_path / "a" / "m.onnx"]


def test_factory_file_counts_by_content_and_function(tmp_path: Path) -> None:
    source = tmp_path / "build.py"
    source.write_text("def fn(): return 1\n")
    first = digest_model(weights(tmp_path, f"{source}:fn"))
    assert first != hashlib.sha256(b"weights").hexdigest()
    assert digest_model(weights(tmp_path, f"{source}:other")) != first
    (tmp_path / "moved").mkdir()
    shutil.copy(source, tmp_path / "moved")
    assert digest_model(weights(tmp_path, f"{tmp_path}/moved/build.py:fn")) == first
    source.write_text("def fn(): return 2\n")
    assert digest_model(weights(tmp_path, f"{source}:fn")) != first


def test_factory_module_counts_by_content_and_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "own_package_h"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')\n")
    (package / "build.py").write_text("def fn(): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    first = digest_model(weights(tmp_path, "own_package_h.build:fn"))
    (package / "build.py").write_text("def fn(): return 2\n")
    assert digest_model(weights(tmp_path, "own_package_h.build:fn")) != first
    assert len(digest_model(weights(tmp_path, "no_such_package.build:fn"))) == 64


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("import arch", ["arch.py"]),
        ("def fn():\n    from arch import Net", ["arch.py"]),
        ("import pkg.net", ["pkg/__init__.py", "pkg/net.py", "pkg/parts/conv.py"]),
        ("from pkg import net", ["pkg/__init__.py", "pkg/net.py", "pkg/parts/conv.py"]),
        ("from pkg.net import *", ["pkg/__init__.py", "pkg/net.py", "pkg/parts/conv.py"]),
        ("import importlib\nimportlib.import_module('arch')", ["arch.py"]),
        ("import importlib\nimportlib.import_module(input())", ["arch.py", "other.py", "pkg/net.py"]),
        ("this is no Python", ["arch.py", "other.py", "pkg/net.py"]),
    ],
)
def test_what_a_factory_imports_counts_too(tmp_path: Path, text: str, files: list[str]) -> None:
    code = tmp_path / "code"
    (code / "pkg" / "parts").mkdir(parents=True)
    (code / "pkg" / "net.py").write_text("from .parts import conv\nfrom . import *\n")
    for name in ("arch.py", "other.py", "pkg/__init__.py", "pkg/parts/conv.py"):
        (code / name).write_text("import math, numpy\n")
    (code / "f.py").write_text(text)
    model = weights(tmp_path, f"{code / 'f.py'}:fn")
    digests = {digest_model(model)}
    for name in files:
        with (code / name).open("a") as file:
            file.write("x = 1\n")
        digests.add(digest_model(weights(tmp_path, f"{code / 'f.py'}:fn")))
    assert len(digests) == 1 + len(files)
    if "arch.py" not in files or "other.py" not in files:
        (code / "other.py").write_text("not imported")
        assert digest_model(weights(tmp_path, f"{code / 'f.py'}:fn")) in digests


def test_modules_of_the_current_folder_count_and_libraries_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_j").mkdir()
    (tmp_path / "own_j" / "build.py").write_text("import json, numpy\nfrom own_j.arch import Net\n")
    (tmp_path / "own_j" / "arch.py").write_text("Net = 1\n")
    monkeypatch.chdir(tmp_path)
    first = digest_model(weights(tmp_path, "own_j.build:fn"))
    (tmp_path / "own_j" / "arch.py").write_text("Net = 2\n")
    assert digest_model(weights(tmp_path, "own_j.build:fn")) != first
    found = reachable_files(tmp_path / "own_j" / "build.py", tmp_path)
    assert sorted(found) == ["own_j/arch.py", "own_j/build.py"]


def test_a_folder_is_taken_whole_without_its_environments(tmp_path: Path) -> None:
    for name in ("f.py", "a/b.py", "env/pyvenv.cfg", "env/lib/x.py", ".hidden/y.py", "a/site-packages/z.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("(")
    assert sorted(reachable_files(tmp_path / "f.py", tmp_path)) == ["a/b.py", "f.py"]


def test_huggingface_folder(tmp_path: Path) -> None:
    for name in ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "README.md", "pytorch_model.bin"]:
        (tmp_path / name).write_text(name)
    model = Model(tmp_path, "torch", "huggingface")
    names = [file.name for file in model_files(model)]
    assert names == ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"]
    before = digest_model(model)
    (tmp_path / "README.md").write_text("changed")
    assert digest_model(model) == before
    (tmp_path / "tokenizer.json").write_text("changed")
    assert digest_model(model) != before
    (tmp_path / "model.safetensors").unlink()
    assert "pytorch_model.bin" in [file.name for file in model_files(model)]
