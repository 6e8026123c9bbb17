"""Every model of ONNX's own backend test suite that onnxruntime runs: simplify and all fusions keep its outputs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.backend.test.loader import load_model_tests

from optkit.passes._fusion.families import NAMES, fuse
from optkit.passes._fusion.family import Fired
from optkit.passes._ir import inline, load_ir, save_ir
from optkit.passes.simplify import Simplify
from tests.helpers import run_pass, session_of

PARTS = 8
MODELS = ("simple", "pytorch-converted", "pytorch-operator")
NOT_OPENED = {"test_sequence_model5", "test_sequence_model8"}
"""onnxscript (0.7) folds sequences of opset 11 and 12 into a Split or Unsqueeze of opset 13. The pass looks whether its
result can be opened, and here leaves the model as it was."""
Arrays = list[np.ndarray[Any, Any]]


@cache
def cases() -> list[Any]:
    return [case for kind in ("node", *MODELS) for case in load_model_tests(kind=kind)]


def loaded(case: Any) -> tuple[onnx.ModelProto, Arrays]:
    """Its model and inputs, which some kinds have in memory and others in files."""
    if case.model is not None:
        return case.model, case.data_sets[0][0]
    folder = Path(case.model_dir)
    files = sorted(folder.glob("test_data_set_0/input_*.pb"), key=lambda path: int(path.stem.split("_")[-1]))
    return onnx.load(folder / "model.onnx"), [_array(path) for path in files]


def _array(path: Path) -> Any:
    try:
        return onnx.numpy_helper.to_array(onnx.load_tensor(path))
    except (ValueError, TypeError, onnx.onnx_cpp2py_export.checker.ValidationError):
        return None  # sequences and optional values, in the same files


def runnable(part: int, folder: Path) -> Iterator[tuple[str, Path, dict[str, Any], Arrays]]:
    """(name, file, inputs, outputs) of the cases that are made of tensors and that onnxruntime runs."""
    for case in cases()[part::PARTS]:
        model, arrays = loaded(case)
        inputs = {value.name: array for value, array in zip(model.graph.input, arrays, strict=False)}
        if not all(isinstance(array, np.ndarray) for array in inputs.values()):
            continue
        path = folder / "model.onnx"
        onnx.save(model, path)
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


def fused(path: Path, folder: Path) -> tuple[Path, dict[str, Fired]]:
    """What all families make of a file, written even where none of them found anything."""
    graph = inline(load_ir(path))
    fired = fuse(graph, NAMES)
    save_ir(graph, folder / "fused.onnx")
    return folder / "fused.onnx", fired


def is_wrong(path: Path, inputs: dict[str, Any], outputs: Arrays) -> bool:
    found = session_of(path).run(None, inputs)
    return any(differs(np.asarray(one), other) for one, other in zip(found, outputs, strict=True))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the suite divides by zero on purpose
@pytest.mark.parametrize("part", range(PARTS))
def test_outputs_stay(part: int, tmp_path: Path) -> None:
    ran, changed, wrong, not_opened = 0, 0, [], set()
    for name, path, inputs, outputs in runnable(part, tmp_path):
        simple = run_pass(Simplify(), path)
        ran += 1
        changed += bool(simple.changed)
        result, _ = fused(simple.model.path, tmp_path)
        try:
            wrong += [name] * is_wrong(result, inputs, outputs)
        except Exception:  # noqa: BLE001  onnxruntime's errors share no base class
            not_opened.add(name)
    assert wrong == []
    assert not_opened == NOT_OPENED & {case.name for case in cases()[part::PARTS]}
    assert ran >= 150 and changed >= 10


LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


@pytest.mark.large
@pytest.mark.parametrize("file", sorted(LIGHT.glob("*.onnx")), ids=lambda file: file.stem)
def test_networks_of_old_opsets(file: Path, tmp_path: Path) -> None:
    """ResNet, DenseNet, Inception and others whose weights are all equal."""
    session = session_of(file, plain=True)
    (value,) = session.get_inputs()
    inputs = {value.name: np.random.default_rng(0).standard_normal(value.shape, np.float32)}
    result, fired = fused(run_pass(Simplify(), file).model.path, tmp_path)
    assert not is_wrong(result, inputs, session.run(None, inputs))
    assert sum(found.count for found in fired.values()) >= 0
