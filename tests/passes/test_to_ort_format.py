from __future__ import annotations

import numpy as np
import onnx
import pytest

from optkit.errors import PassError
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.passes.to_ort_format import ToOrtFormat
from tests.helpers import fresh_dir, normal, onnx_model, open_any, run_onnx, run_pass

TEXT = "g (float[n,8] x) => (float[n,8] y) { m = MatMul(x, w) a = Add(m, b) e = Relu(a) y = MatMul(e, w) }"
WEIGHTS = {"w": normal(8, 8), "b": normal(8, seed=1)}
X = {"x": normal(3, 8, seed=2)}


@pytest.mark.parametrize("optimization", ["fixed", "runtime"])
def test_the_file_opens_and_computes_the_same(optimization: str) -> None:
    model = open_any(onnx_model(TEXT, WEIGHTS))
    outcome = run_pass(ToOrtFormat(optimization=optimization), model)  # type: ignore[arg-type]
    assert outcome.changes == [("model.ort", f"{optimization} optimizations")]
    assert (outcome.model.form, outcome.model.kind) == ("ort", "ort")
    assert outcome.model.signature == model.signature
    assert Model.open(outcome.model.path).kind == "ort"
    np.testing.assert_allclose(run_onnx(outcome.model, X)["y"], run_onnx(model, X)["y"], rtol=0, atol=1e-5)


def test_weights_beside_the_model_are_taken_into_the_file() -> None:
    path = fresh_dir() / "model.onnx"
    proto = onnx_model(TEXT, {"w": normal(8, 8), "b": normal(8, seed=1)})
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    outcome = run_pass(ToOrtFormat(), path)
    assert [file.name for file in outcome.model.path.parent.iterdir()] == ["model.ort"]
    np.testing.assert_allclose(run_onnx(outcome.model, X)["y"], run_onnx(path, X)["y"], rtol=0, atol=1e-5)


def test_a_graph_that_onnxruntime_cannot_open_is_refused() -> None:
    proto = onnx_model("g (float[n,8] x) => (float[n,8] y) { y = acme.Twist(x) }")
    proto.opset_import.append(onnx.helper.make_opsetid("acme", 1))
    with pytest.raises(PassError, match=r"onnxruntime cannot write the model in its own format: .*Twist"):
        run_pass(ToOrtFormat(), proto)


def test_other_providers_are_refused_in_the_plan() -> None:
    assert ToOrtFormat().applies_to(Target("cpu")) == ""
    assert ToOrtFormat().applies_to(Target("cuda")) == "the format is made for the CPU, not for cuda"
