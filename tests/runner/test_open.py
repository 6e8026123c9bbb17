from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from optkit.data.dataset import Arrays, Batch, Dataset
from optkit.errors import ModelError
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.runner.base import Runner
from optkit.runner.onnx import OnnxRunner
from optkit.runner.open import open_runner, run_dataset
from tests.helpers import fresh_dir, onnx_model, open_any


class Doubling(Runner):
    outputs = ("y", "mean", "table")

    def run(self, inputs: Arrays) -> Arrays:
        return {"y": inputs["x"] * 2, "mean": np.float32(inputs["x"].mean()).reshape(()), "table": np.arange(3)}

    def close(self) -> None:
        self.closed = True


class Padded:
    """Five samples in batches of four; ``fixed`` pads the last one with zeros."""

    batch = 4

    def __init__(self, fixed: bool) -> None:
        self.fixed = fixed

    def batches(self) -> Iterator[Batch]:
        x = np.arange(5, dtype=np.float32)
        yield Batch({"x": x[:4]}, 4)
        yield Batch({"x": np.array([4, 0, 0, 0], np.float32) if self.fixed else x[4:]}, 1)


@pytest.mark.parametrize("fixed", [True, False])
def test_padding_is_cut_off_outputs_that_have_a_row_per_sample(fixed: bool) -> None:
    found = list(run_dataset(Doubling(), cast(Dataset, Padded(fixed))))
    assert [batch["y"].tolist() for batch in found] == [[0, 2, 4, 6], [8]]
    assert [batch["table"].tolist() for batch in found] == [[0, 1, 2], [0, 1, 2]]
    assert found[1]["mean"].shape == ()


def test_runners_are_context_managers() -> None:
    with Doubling() as runner:
        assert runner.bind({"x": np.ones(2)})()["y"].tolist() == [2, 2]  # type: ignore[index]
    assert runner.closed


def test_onnx_goes_to_onnxruntime() -> None:
    model = open_any(onnx_model("g (float[n] x) => (float[n] y) { h = Neg(x) y = Abs(h) }"))
    runner = open_runner(model, Target(threads=1), outputs=["h"], session={"a.b": "c"})
    assert isinstance(runner, OnnxRunner)
    assert runner.run({"x": np.ones(2, np.float32)})["h"].tolist() == [-1, -1]


@pytest.fixture(scope="module")
def linear() -> Model:
    """An exported program with outputs ``total`` and ``double``."""
    torch = pytest.importorskip("torch")

    class Two(torch.nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, x):  # type: ignore[no-untyped-def]
            return {"total": x.sum(1), "double": x * 2}

    path: Path = fresh_dir() / "two.pt2"
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(Two(), (torch.ones(2, 3),), dynamic_shapes=({0: batch},)), path)
    return Model.open(path)


def test_torch_forms_go_to_torch(linear: Model) -> None:
    with open_runner(linear, Target(threads=1)) as runner:
        found = runner.run({"x": np.ones((4, 3), np.float32)})
    assert found["total"].tolist() == [3, 3, 3, 3]
    assert found["double"].shape == (4, 3)


def test_outputs_of_torch_forms_can_be_chosen_but_not_invented(linear: Model) -> None:
    x = np.ones((1, 3), np.float32)
    assert list(open_runner(linear, Target(threads=1), outputs=["double"]).run({"x": x})) == ["double"]
    with pytest.raises(ModelError, match="no output named inner"):
        open_runner(linear, Target(threads=1), outputs=["inner"]).run({"x": x})
