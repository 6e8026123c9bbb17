"""Recipes that fit, refusals that are told instead of raised, nothing executed."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from optkit.errors import ModelError
from optkit.pipeline.inspect import inspect
from optkit.report.inspect import Inspection, count, inspection_tables
from tests.helpers import normal, onnx_model

ROOT = Path(__file__).resolve().parents[2]


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (self.command,))


TRAINING = {"distill-int8", "prune-int8", "shrink-transformer"}


def fits(found: Inspection) -> dict[str, bool]:
    """Recipe -> whether it fits, of those that do not train."""
    return {fit.recipe: fit.fits for fit in found.recipes if fit.recipe not in TRAINING}


def why(found: Inspection, recipe: str) -> str:
    return next(fit.why for fit in found.recipes if fit.recipe == recipe)


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    text = "g (float[batch,8] x) => (float[batch,4] y) { h = MatMul(x, a) y = MatMul(h, b) }"
    onnx.save(onnx_model(text, {"a": normal(8, 8), "b": normal(8, 4)}), tmp_path / "linear.onnx")
    return tmp_path / "linear.onnx"


def test_int8_fits_where_matmul_holds_the_weights(linear: Path) -> None:
    found = inspect(linear)
    assert fits(found) == {"fp32": True, "int4": True, "int8": True, "int8-static": True}
    assert why(found, "int8") == "weights of 2 MatMul, 100% of the parameters; needs no data"
    assert why(found, "int8-static").endswith("; needs calibration data: --data calibration=FILE")
    assert (found.refused, found.fix) == ("", "")


def test_data_beside_the_model_are_seen(linear: Path) -> None:
    np.savez(linear.parent / "c.npz", x=normal(4, 8))
    (linear.parent / "data.yaml").write_text("data: {calibration: c.npz}\n")
    assert why(inspect(linear), "int8-static").endswith("; calibration data are named beside it")
    (linear.parent / "data.yaml").write_text("data: {calibration: [}\n")
    assert why(inspect(linear), "int8-static").endswith("--data calibration=FILE")


def test_int8_does_not_fit_where_convolutions_hold_the_weights(tmp_path: Path) -> None:
    text = "g (float[batch,3,8,8] x) => (float[batch,2] y) { h = Conv(x, k) f = Flatten(h) y = MatMul(f, b) }"
    weights = {"k": normal(16, 3, 8, 8), "b": normal(16, 2)}
    onnx.save(onnx_model(text, weights), tmp_path / "m.onnx")
    found = inspect(tmp_path / "m.onnx")
    assert fits(found) == {"fp32": True, "int4": False, "int8": False, "int8-static": True}
    assert why(found, "int8") == "only weights of 1 MatMul, 1% of the parameters; 1 Conv hold 99%"
    assert found.guess == "image classifier"


def test_nothing_to_quantize_and_quantized_already(tmp_path: Path) -> None:
    onnx.save(onnx_model("g (float[2] x) => (float[2] y) { y = Relu(x) }"), tmp_path / "relu.onnx")
    assert why(inspect(tmp_path / "relu.onnx"), "int8") == "it has no weights of rank 2 or more"
    text = "g (uint8[n,4] x) => (int32[n,3] y) { y = MatMulInteger(x, w) }"
    onnx.save(onnx_model(text, {"w": np.ones((4, 3), np.int8)}), tmp_path / "q.onnx")
    found = inspect(tmp_path / "q.onnx")
    assert why(found, "int8") == "quantized already: 1 int8 weights of MatMulInteger"
    assert fits(found) == {"fp32": True, "int4": False, "int8": False, "int8-static": False}


def test_recipes_that_train_fit_weights_with_code_and_no_graphs(tmp_path: Path) -> None:
    model = ROOT / "sample_models" / "digits_cnn"
    code = f"{ROOT / 'sample_models' / 'models.py'}:digits_cnn"
    found = inspect(model.with_suffix(".safetensors"), factory=code)
    assert why(found, "prune-int8") == (
        "weights of 2 Gemm and 2 Conv, 99% of the parameters; calibration and train data are named beside it"
    )
    assert "takes torch, but the model is in the form onnx" in why(inspect(model.with_suffix(".onnx")), "prune-int8")
    assert "a torch.export archive cannot be trained" in why(inspect(model.with_suffix(".pt")), "prune-int8")


def test_a_state_dict_without_factory_is_looked_at(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(8, 4).state_dict(), tmp_path / "s.pt")
    found = inspect(tmp_path / "s.pt")
    assert found.summary.parameters == 36
    assert "without the code they belong to" in found.refused
    assert "--factory" in found.fix


def test_a_pickle_is_looked_at_and_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    torch.save({"model": torch.nn.Linear(8, 4), "x": Bomb(f"touch {proof}")}, tmp_path / "bomb.pt")
    found = inspect(tmp_path / "bomb.pt")
    assert not proof.exists()
    assert found.summary.kind == "pickle"
    assert found.summary.parameters == 36
    assert "would run code" in found.refused and "--trust-pickle" in found.fix


def test_an_unsafe_export_archive_is_looked_at_and_not_run(tmp_path: Path) -> None:
    good, bad, proof = tmp_path / "good.pt2", tmp_path / "bad.pt2", tmp_path / "ran"
    torch.export.save(torch.export.export(torch.nn.Linear(8, 4), (torch.zeros(2, 8),)), good)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
        for info in source.infolist():
            bomb = info.filename.endswith("sample_inputs/model.pt")
            target.writestr(info, pickle.dumps(Bomb(f"touch {proof}")) if bomb else source.read(info))
    found = inspect(bad)
    assert not proof.exists()
    assert (found.summary.kind, found.summary.parameters) == ("pt2", 36)
    assert "could run code from the file" in found.refused
    assert inspect(good).refused == ""


@pytest.mark.parametrize("name", ["linear.onnx", "weights.safetensors", "state.pt"])
def test_a_broken_file_is_an_error(linear: Path, name: str) -> None:
    from safetensors.torch import save_file

    folder = linear.parent
    save_file({"w": torch.zeros(64)}, folder / "weights.safetensors")
    torch.save({"w": torch.zeros(64)}, folder / "state.pt")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(ModelError, match="cut off"):
        inspect(folder / name)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model"):
        inspect(tmp_path / "nothing.onnx")


def test_the_tables_tell_it_all(linear: Path) -> None:
    tables = {table.title: {row[0]: row[1:] for row in table.rows} for table in inspection_tables(inspect(linear))}
    model = tables[str(linear)]
    assert (model["parameters"], model["opset"], model["IR version"]) == (("96",), ("ai.onnx 20",), ("10",))
    assert tables["Operators"] == {"MatMul": ("2",)}
    assert tables["Weights by dtype"] == {"float32": ("2", "96", "384 B")}
    assert tables["Shipped recipes"]["int8"][0] == "yes"


@pytest.mark.parametrize(
    ("value", "words"), [(None, "unknown"), (0, "0"), (9999, "9999"), (22_713_216, "22.7 M"), (3 * 10**9, "3 G")]
)
def test_numbers_as_people_read_them(value: int | None, words: str) -> None:
    assert count(value) == words
