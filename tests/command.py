"""The real command line: ``call`` in this process, ``start`` and ``finish`` in one of its own; and what to feed it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx

from tests.helpers import normal, onnx_model

ROOT = Path(__file__).parents[1]
SHIPPED_RECIPES = ["distill-int8", "fp32", "int4", "int8", "int8-static", "prune-int8", "shrink-transformer"]
SAMPLES = ROOT / "sample_models"
MLP = "mlp (float[batch,8] x) => (float[batch,4] logits) { h = MatMul(x, w0) r = Relu(h) logits = MatMul(r, w1) }"


@dataclass(frozen=True)
class Answer:
    """What the person at the terminal gets."""

    code: int
    out: str
    err: str

    @property
    def body(self) -> dict[str, Any]:
        """The JSON envelope on stdout."""
        return json.loads(self.out)


def call(*argv: object) -> Answer:
    """``optkit ARGV...`` through the entry point of the console script."""
    from optkit.cli.app import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    before = signal.getsignal(signal.SIGTERM)
    with (
        mock.patch.object(sys, "argv", ["optkit", *map(str, argv)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as left:
            code = int(left.code or 0)
        finally:
            signal.signal(signal.SIGTERM, before)
    return Answer(code, out.getvalue(), err.getvalue())


def start(
    *argv: object, before: str = "", env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[str]:
    """The same in a process (and process group) of its own; ``before`` is Python code to run first."""
    return subprocess.Popen(
        [sys.executable, "-c", f"{before}\nfrom optkit.cli.app import main; main()", *map(str, argv)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 60) -> Answer:
    """Wait for it."""
    out, err = process.communicate(timeout=timeout)
    return Answer(process.returncode, out, err)


def write_mlp(path: Path, *, seed: int = 0, text: str = MLP) -> Path:
    """A small ONNX model with an input ``x`` [batch,8] and the output ``logits`` [batch,4]."""
    model = onnx_model(text, {"w0": normal(8, 16, seed=seed), "w1": normal(16, 4, seed=seed + 1)})
    onnx.save(model, path)
    return path


def write_data(path: Path, **arrays: np.ndarray[Any, Any]) -> Path:
    """An .npz file; without arrays, 24 samples that ``write_mlp``'s model takes."""
    np.savez(path, **(arrays or {"x": normal(24, 8, seed=9)}))
    return path


def write_recipe(path: Path, *passes: str, more: str = "") -> Path:
    """A recipe with these passes (default: quantize-dynamic)."""
    entries = "\n".join(f"  - {entry}" for entry in passes or ("quantize-dynamic",))
    path.write_text(f"version: 1\nname: small\npasses:\n{entries}\n{more}")
    return path


def assert_refused(answer: Answer, code: int, *words: str, fix: str = "") -> None:
    """One clear sentence with what was expected and what to do, the right code, no traceback, nothing on stdout."""
    assert answer.code == code, answer
    assert answer.out == ""
    assert "Traceback" not in answer.err and "this is a bug" not in answer.err
    lines = answer.err.strip().splitlines()
    assert lines[0].startswith("error: ") and lines[0].endswith("."), lines
    assert [line.split(":")[0] for line in lines[1:]] == ["Expected", "Fix"], lines
    for word in words:
        assert word in lines[0] or word in lines[1], (word, lines)
    assert fix in lines[2], lines


def assert_same_in_json(answer: Answer, told: Answer, kind: str) -> None:
    """The envelope on stdout says what stderr says."""
    body = answer.body
    assert (body["schema"], body["ok"], body["exit_code"], body["result"]) == (1, False, told.code, None)
    assert answer.code == told.code and answer.err == told.err
    error = body["error"]
    assert error["kind"] == kind and error["expected"] and error["fix"]
    assert error["message"] in told.err and error["expected"] in told.err and error["fix"] in told.err


def beside(out: Path) -> list[str]:
    """Everything that begins like the output or hides beside it: staging folders, leftovers, the output itself."""
    return sorted(path.name for path in out.parent.iterdir() if out.name.split(".")[0] in path.name.lstrip("."))


@contextlib.contextmanager
def plugins(**passes: type) -> Iterator[None]:
    """Third-party passes by name, without installing a package."""
    from optkit.passes import _registry

    class Point:
        def __init__(self, found: type) -> None:
            self.found, self.value = found, f"{found.__module__}:{found.__qualname__}"

        def load(self) -> type:
            return self.found

    points = {found.name(): Point(found) for found in passes.values()}
    with mock.patch.object(_registry, "_third_party", lambda: points):
        yield
