"""The small public face: these names and no others, found on first use."""

from __future__ import annotations

import subprocess
import sys

import pytest

import optkit

PUBLIC = [
    *("Context", "Manifest", "Model", "OptkitError", "Outcome", "Pass", "Recipe", "Verdict"),
    *("compare", "optimize"),
]


def test_the_public_names_are_the_documented_ones() -> None:
    assert optkit.__all__ == PUBLIC
    assert dir(optkit) == sorted([*PUBLIC, "__version__"])


def test_every_public_name_is_there_and_documented() -> None:
    for name in PUBLIC:
        assert getattr(optkit, name).__doc__, name
    assert optkit.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="has no attribute 'quantize'"):
        optkit.quantize  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import optkit", "torch onnx onnxruntime numpy pydantic yaml typer"),
        ("import optkit; optkit.OptkitError", "torch onnx onnxruntime numpy pydantic"),
        ("import optkit; optkit.Model; optkit.Pass; optkit.Recipe; optkit.Manifest", "torch onnx onnxruntime"),
        ("import optkit; optkit.optimize; optkit.compare", "torch onnx onnxruntime onnx_ir onnxscript transformers"),
    ],
)
def test_imports_stay_cheap(statement: str, absent: str) -> None:
    code = f"import sys\n{statement}\nprint([name for name in {absent.split()} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_star_import_gives_the_public_names() -> None:
    code = "from optkit import *; print(sorted(n for n in dir() if not n.startswith('_')))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == str(sorted(PUBLIC))
