from __future__ import annotations

import numpy as np
import onnx
import pytest

from optkit.errors import PassError
from optkit.passes.set_opset import SetOpset
from tests.helpers import normal, onnx_model, open_any, run_onnx, run_pass

OLD = "g (float[n,1,8] x) => (float[n,8] y) { s = Squeeze<axes = [1]>(x) m = MatMul(s, w) y = Softmax<axis = 1>(m) }"
CONTRIB = "g (float[n,8] x) => (float[n,8] y) { m = MatMul(x, w) y = com.microsoft.Gelu(m) }"


@pytest.mark.parametrize("version", [13, 17, 21])
def test_an_old_graph_is_raised_and_computes_the_same(version: int) -> None:
    model = open_any(onnx_model(OLD, {"w": normal(8, 8)}, opset=11))
    outcome = run_pass(SetOpset(version=version), model)
    assert (outcome.changed, outcome.changes) == (1, [("opset", f"11 -> {version}")])
    proto = onnx.load(outcome.model.path)
    assert [(each.domain, each.version) for each in proto.opset_import] == [("", version)]
    squeeze = next(node for node in proto.graph.node if node.op_type == "Squeeze")
    assert len(squeeze.input) == 2 and not squeeze.attribute
    inputs = {"x": normal(3, 1, 8)}
    np.testing.assert_allclose(run_onnx(outcome.model, inputs)["y"], run_onnx(model, inputs)["y"], rtol=0, atol=1e-6)


def test_it_is_lowered_too_and_other_domains_stay() -> None:
    model = open_any(onnx_model(CONTRIB, {"w": normal(8, 8)}, opset=20, contrib=True))
    outcome = run_pass(SetOpset(version=13), model)
    assert {each.domain: each.version for each in onnx.load(outcome.model.path).opset_import} == {
        "": 13,
        "com.microsoft": 1,
    }
    inputs = {"x": normal(3, 8)}
    np.testing.assert_array_equal(run_onnx(outcome.model, inputs)["y"], run_onnx(model, inputs)["y"])


def test_the_version_it_has_is_no_change() -> None:
    outcome = run_pass(SetOpset(version=20), onnx_model(CONTRIB, {"w": normal(8, 8)}, contrib=True))
    assert (outcome.changed, outcome.notes) == (0, ["the model has opset 20 already"])


def test_an_operator_that_the_older_version_lacks() -> None:
    with pytest.raises(PassError) as caught:
        run_pass(SetOpset(version=15), onnx_model("g (float[n,8] x) => (float[n,8] y) { y = Gelu(x) }"))
    assert caught.value.message == "The model's opset 20 cannot be lowered to 15: No Previous Version of Gelu exists"
    assert caught.value.fix == "export it again with opset 15"
