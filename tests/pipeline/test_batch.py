"""``compare(batch_invariance=True)``: dynamic int8 depends on neighbours, float and static int8 do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import optkit
from optkit.model.manifest import BatchInvariance
from optkit.model.model import Model
from optkit.passes.quantize_dynamic import QuantizeDynamic
from optkit.passes.quantize_static import QuantizeStatic
from tests.helpers import normal, onnx_model, run_pass

TEXT = (
    "g (float[{batch},16] x) => (float[{batch},8] y, float[2] constant) {{ y = MatMul(x, w) constant = Identity(c) }}"
)
HELD = {"w": normal(16, 8), "c": normal(2)}


def write(path: Path, batch: object = "batch") -> Path:
    onnx.save(onnx_model(TEXT.format(batch=batch), HELD), path)
    return path


def measured(original: Path, result: Path | Model, folder: Path, samples: int = 20) -> BatchInvariance:
    np.savez(folder / "e.npz", x=normal(samples, 16, seed=3))
    data = {"evaluation": folder / "e.npz"}
    found = optkit.compare(original, result, batch_invariance=True, data=data, limits=["cosine=0.5"]).batch_invariance
    assert found is not None
    return found


def test_dynamic_int8_depends_and_float_does_not(tmp_path: Path):
    model = write(tmp_path / "m.onnx")
    found = measured(model, run_pass(QuantizeDynamic(), model).model, tmp_path)
    assert (found.samples, found.batch, found.synthetic) == (16, 8, False)
    y, constant = found.outputs
    assert (y.name, y.original) == ("y", 0.0)
    # One scale for the batch: a sample is off by up to half a step of 255 in each of 16 products.
    assert y.result is not None and 1e-3 < y.result < 0.1
    assert (constant.original, constant.result) == (None, None)
    assert found.notes == ("constant: not measured, it has no axis of samples",)


def test_static_int8_does_not_depend(tmp_path: Path):
    model = write(tmp_path / "m.onnx")
    result = run_pass(QuantizeStatic(), model, data={"calibration": {"x": normal(64, 16, seed=4)}}).model
    assert [(each.original, each.result) for each in measured(model, result, tmp_path).outputs[:1]] == [(0.0, 0.0)]


def test_a_fixed_batch_of_several_has_neighbours(tmp_path: Path):
    model = write(tmp_path / "m.onnx", batch=4)
    found = measured(model, run_pass(QuantizeDynamic(), model).model, tmp_path, samples=6)
    assert (found.samples, found.batch) == (6, 4)
    assert found.outputs[0].original == 0.0 and (found.outputs[0].result or 0) > 1e-3


@pytest.mark.parametrize(
    ("batch", "samples", "reason"),
    [
        (1, 20, "its batch size is fixed at 1: a sample has no neighbours"),
        ("batch", 1, "it takes at least two samples of one shape"),
    ],
)
def test_what_cannot_be_measured_is_said(tmp_path: Path, batch: object, samples: int, reason: str):
    model = write(tmp_path / "m.onnx", batch=batch)
    found = measured(model, model, tmp_path, samples=samples)
    assert found.outputs == ()
    assert found.notes == (f"the original was not measured: {reason}", f"the result was not measured: {reason}")


def test_a_result_fixed_at_one_is_told_beside_the_original(tmp_path: Path):
    found = measured(write(tmp_path / "m.onnx"), write(tmp_path / "one.onnx", batch=1), tmp_path)
    assert (found.outputs[0].original, found.outputs[0].result) == (0.0, None)
    assert found.notes[0] == "the result was not measured: its batch size is fixed at 1: a sample has no neighbours"


def test_nothing_is_measured_unasked(tmp_path: Path):
    model = write(tmp_path / "m.onnx")
    assert optkit.compare(model, model).batch_invariance is None


def test_made_up_inputs_are_said(tmp_path: Path):
    model = write(tmp_path / "m.onnx")
    found = optkit.compare(model, model, batch_invariance=True).batch_invariance
    assert found is not None and found.synthetic
