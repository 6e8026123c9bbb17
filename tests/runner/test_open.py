from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from optkit.data.dataset import Arrays, Batch, Dataset
from optkit.errors import ModelError, UsageError
from optkit.model.model import Model
from optkit.model.target import Engine, Target
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


def test_chosen_outputs_are_told_about_and_bound_as_the_runner_itself(linear: Model) -> None:
    with open_runner(linear, Target(threads=1), outputs=["double"]) as runner:
        assert runner.about.engine == "torch"
        assert set(runner.bind({"x": np.ones((1, 3), np.float32)})()) == {"total", "double"}  # type: ignore[call-overload]


def test_openvino_is_another_engine_on_the_same_file() -> None:
    pytest.importorskip("openvino")
    model = open_any(onnx_model("g (float[n] x) => (float[n] y, float[n] z) { y = Neg(x) z = Abs(x) }"))
    with open_runner(model, Target(threads=1, engine="openvino"), outputs=["z"], session={"a.b": "c"}) as runner:
        assert (runner.about.engine, runner.about.session) == ("openvino", {})
        found = runner.run({"x": np.array([-2, 3], np.float32)})
    assert {name: array.tolist() for name, array in found.items()} == {"z": [2, 3]}


@pytest.mark.parametrize(
    ("engine", "fix"),
    [("onnxruntime", "export it first"), ("openvino", "export it first")],
)
def test_engines_for_onnx_do_not_run_torch_forms(linear: Model, engine: Engine, fix: str) -> None:
    with pytest.raises(UsageError, match=f"{engine} does not run two.pt2, a model of form torch") as caught:
        open_runner(linear, Target(engine=engine))
    assert fix in caught.value.fix


@pytest.mark.parametrize(("engine", "fix"), [("torch", "@eager"), ("torch-compile", "@compile")])
def test_torch_does_not_run_onnx(engine: Engine, fix: str) -> None:
    model = open_any(onnx_model("g (float[n] x) => (float[n] y) { y = Abs(x) }"))
    with pytest.raises(UsageError, match=f"{engine} does not run model.onnx") as caught:
        open_runner(model, Target(engine=engine))
    assert caught.value.expected == "a model of form torch"
    assert fix in caught.value.fix


def test_openvino_does_not_run_ort_files() -> None:
    with pytest.raises(UsageError, match="model of form ort"):
        open_runner(Model(Path("m.ort"), "ort", "ort"), Target(engine="openvino"))
