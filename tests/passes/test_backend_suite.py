"""Every model of ONNX's own backend test suite that onnxruntime runs: simplify and fuse-graph keep its outputs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.backend.test.loader import load_model_tests

from optkit.passes.fuse_graph import FuseGraph
from optkit.passes.simplify import Simplify
from tests.helpers import run_pass, session_of

PARTS = 8


@cache
def cases() -> list[Any]:
    return [case for kind in ("node", "simple") for case in load_model_tests(kind=kind) if case.model is not None]


def runnable(part: int, folder: Path) -> Iterator[tuple[str, Path, dict[str, Any], list[Any]]]:
    """(name, file, inputs, outputs) of the cases that are made of tensors and that onnxruntime runs."""
    for case in cases()[part::PARTS]:
        inputs = {value.name: array for value, array in zip(case.model.graph.input, case.data_sets[0][0], strict=False)}
        if not all(isinstance(array, np.ndarray) for array in inputs.values()):
            continue
        path = folder / "model.onnx"
        onnx.save(case.model, path)
        try:
            outputs = session_of(path).run(None, inputs)
        except Exception:  # noqa: BLE001  operators and types that onnxruntime has no kernel for; its errors share no base
            continue
        if all(isinstance(array, np.ndarray) for array in outputs):
            yield case.name, path, inputs, outputs


def differs(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> bool:
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        return True
    if wanted.dtype.kind not in "fc":
        return not np.array_equal(found, wanted)
    return not np.allclose(found, wanted, rtol=1e-3, atol=1e-5, equal_nan=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the suite divides by zero on purpose
@pytest.mark.parametrize("part", range(PARTS))
def test_outputs_stay(part: int, tmp_path: Path) -> None:
    ran, changed, wrong = 0, 0, []
    for name, path, inputs, outputs in runnable(part, tmp_path):
        simple = run_pass(Simplify(), path)
        fused = run_pass(FuseGraph(), simple.model)
        ran += 1
        if not simple.changed and not fused.changed:
            continue
        changed += 1
        found = session_of(fused.model.path, config=fused.model.session | dict(fused.session)).run(None, inputs)
        if any(differs(np.asarray(f), w) for f, w in zip(found, outputs, strict=True)):
            wrong.append(name)
    assert wrong == []
    assert ran >= 140 and changed >= 10
