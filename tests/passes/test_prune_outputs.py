from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from optkit.errors import PassError
from optkit.passes.prune_outputs import PruneOutputs
from tests.helpers import normal, onnx_model, open_any, ops_of, run_onnx, run_pass

TEXT = """g (float[n,4] x, float[n,4] only_b) => (float[n,4] a, float[n,4] b, float[n,4] c) {
    m = MatMul(x, w) a = Relu(m) b = Add(m, only_b) e = Exp(m) c = Neg(e)
}"""
X = {"x": normal(3, 4, seed=1), "only_b": normal(3, 4, seed=2)}


@pytest.mark.parametrize("options", [{"drop": ["b", "c"]}, {"outputs": ["a"]}])
def test_outputs_go_with_what_only_they_need(options: dict[str, list[str]]) -> None:
    model = open_any(onnx_model(TEXT, {"w": normal(4, 4)}))
    outcome = run_pass(PruneOutputs(**options), model)
    assert outcome.changed == 2
    dropped = {"Add": "1 -> 0", "Exp": "1 -> 0", "Neg": "1 -> 0"}
    assert dict(outcome.changes) == {"b": "dropped", "c": "dropped"} | dropped
    assert ops_of(outcome.model) == {"MatMul": 1, "Relu": 1}
    assert [spec.name for spec in outcome.model.signature.inputs] == ["x", "only_b"]
    found = run_onnx(outcome.model, X)
    assert list(found) == ["a"]
    np.testing.assert_array_equal(found["a"], run_onnx(model, X)["a"])


def test_the_order_of_what_stays_is_kept() -> None:
    outcome = run_pass(PruneOutputs(outputs=("c", "a")), onnx_model(TEXT, {"w": normal(4, 4)}))
    assert list(run_onnx(outcome.model, X)) == ["a", "c"]


def test_nothing_to_drop_is_no_change() -> None:
    outcome = run_pass(PruneOutputs(outputs=("a", "b", "c")), onnx_model(TEXT, {"w": normal(4, 4)}))
    assert (outcome.changed, outcome.notes) == (0, ["the model has no other outputs"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"drop": ("z",)}, "The model has no output named z.\nExpected: names among a, b, c"),
        ({"drop": ("a", "b", "c")}, "No output would be left."),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, tuple[str, ...]], sentence: str) -> None:
    with pytest.raises(PassError) as caught:
        run_pass(PruneOutputs(**options), onnx_model(TEXT, {"w": normal(4, 4)}))
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("options", [{}, {"outputs": ("a",), "drop": ("b",)}])
def test_one_of_the_two_lists_is_wanted(options: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValidationError, match="give either outputs or drop"):
        PruneOutputs(**options)
