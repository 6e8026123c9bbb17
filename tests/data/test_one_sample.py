"""Models without a sample axis: one call is one sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from optkit.data.dataset import Dataset
from optkit.data.synthetic import synthetic
from optkit.errors import DataError
from optkit.model.model import Model
from optkit.model.signature import Signature, parse_signature
from optkit.model.target import Target
from optkit.pipeline.optimize import optimize
from optkit.runner.open import open_runner, run_dataset
from tests.data.conftest import Opener
from tests.helpers import normal, onnx_model
from tests.pipeline import toy

VECTOR = "x=float32[4]"


def rows(dataset: Dataset, name: str = "x") -> list[list[float]]:
    assert {batch.size for batch in dataset.batches()} == {1}
    return [batch.inputs[name].tolist() for batch in dataset.batches()]


def test_an_array_of_the_inputs_shape_is_one_sample(tmp_path: Path, opened: Opener) -> None:
    np.savez(tmp_path / "e.npz", x=np.arange(4, dtype=np.float32), labels=[7])
    dataset = opened(VECTOR, "e.npz", batch=8)
    assert (dataset.count, dataset.batch, rows(dataset)) == (1, 1, [[0, 1, 2, 3]])
    assert dataset.labels is not None and dataset.labels.tolist() == [7]


def test_one_more_axis_holds_samples(tmp_path: Path, opened: Opener) -> None:
    np.savez(tmp_path / "e.npz", x=np.arange(12, dtype=np.float32).reshape(3, 4), scale=np.float32(2))
    dataset = opened(f"{VECTOR};scale=float32[]", "e.npz", batch=8)
    assert (dataset.count, rows(dataset)[2], rows(dataset, "scale")) == (3, [8, 9, 10, 11], [2, 2, 2])
    np.savez(tmp_path / "e.npz", x=np.zeros((3, 4), np.float32), scale=np.float32([1, 2, 3]))
    assert rows(opened(f"{VECTOR};scale=float32[]", "e.npz"), "scale") == [1, 2, 3]


def test_a_vector_of_another_size_is_refused(tmp_path: Path, opened: Opener) -> None:
    np.savez(tmp_path / "e.npz", x=np.zeros((4, 3), np.float32))
    with pytest.raises(DataError, match="has size 3"):
        opened(VECTOR, "e.npz")


def test_a_row_of_a_table_is_one_sample(tmp_path: Path, opened: Opener) -> None:
    (tmp_path / "e.jsonl").write_text('{"x": [1, 2, 3, 4]}\n{"x": [5, 6, 7, 8]}\n')
    assert rows(opened(VECTOR, "e.jsonl")) == [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize(("shape", "count"), [("4", 2), ("(2, 4)", 4)])
def test_an_item_of_a_function_is_one_sample_or_several(tmp_path: Path, opened: Opener, shape: str, count: int) -> None:
    code = f"import numpy as np\ndef fn():\n    return [{{'x': np.ones({shape}, np.float32)}}] * 2\n"
    (tmp_path / "own.py").write_text(code)
    assert rows(opened(VECTOR, "own.py:fn", code=True)) == [[1, 1, 1, 1]] * count


def test_synthetic_samples_are_made_one_by_one() -> None:
    dataset = synthetic(Signature(parse_signature(VECTOR)), split="evaluation", shapes={}, count=3)
    assert (dataset.count, dataset.batch) == (3, 1)
    assert np.shape(rows(dataset)) == (3, 4)


def test_such_a_model_runs_and_is_judged_sample_by_sample(tmp_path: Path) -> None:
    text = "g (float[4] x) => (float[6] y) { y = MatMul(x, w) }"
    path = tmp_path / "m.onnx"
    onnx.save(onnx_model(text, {"w": normal(4, 6)}), path)
    np.savez(tmp_path / "e.npz", x=normal(5, 4, seed=2))  # two of them become the search split
    manifest = optimize(
        path, toy.Session(entries={"session.a": "1"}), data={"evaluation": str(tmp_path / "e.npz")}, bench=False
    )
    assert (manifest.verdict.held, manifest.verdict.measured_on.samples) == (True, 3)
    assert [output.rows for output in manifest.verdict.outputs] == [3]
    model = Model.open(path)
    made = synthetic(model.signature, split="evaluation", shapes={}, count=2)
    with open_runner(model, Target()) as runner:
        assert [found["y"].shape for found in run_dataset(runner, made)] == [(6,), (6,)]
