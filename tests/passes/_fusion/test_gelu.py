from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from optkit.passes._fusion.family import Fired
from optkit.passes._fusion.gelu import fuse_gelu
from tests.helpers import normal, onnx_model, ops_of
from tests.passes._fusion.exports import assert_equal_outputs, batch_of, exported, fused
from tests.passes._fusion.rewritten import assert_same, rewritten

CONSTANTS = {"root": np.sqrt(2), "inverse": np.sqrt(0.5), "one": 1, "half": 0.5, "three": 3, "c": 0.044715}
CONSTANTS |= {"s": np.sqrt(2 / np.pi)}
VALUES = {name: np.float32(value) for name, value in CONSTANTS.items()}

ERF = ("a = Div(x, root)", "a = Mul(x, inverse)")
TANH = (  # PyTorch below opset 20, GPT-2 from the dynamo exporter, TorchScript's cube
    "p = Pow(x, three) q = Mul(c, p) i = Add(x, q) a = Mul(s, i)",
    "p = Pow(x, three) q = Mul(p, c) i = Add(x, q) a = Mul(i, s)",
    "w = Mul(x, x) p = Mul(x, w) q = Mul(c, p) i = Add(x, q) a = Mul(s, i)",
)
OUTER = (
    "m = Mul(x, r) y = Mul(m, half)",
    "m = Mul(x, r) y = Mul(half, m)",
    "m = Mul(half, r) y = Mul(x, m)",
    "m = Mul(x, half) y = Mul(m, r)",
    "m = Mul(half, x) y = Mul(m, r)",
)
SUMS = ("r = Add(f, one)", "r = Add(one, f)")


def spelled(inner: str, function: str, total: str, outer: str, kind: str = "float") -> str:
    return f"g ({kind}[n,8] x) => ({kind}[n,8] y) {{ {inner} f = {function}(a) {total} {outer} }}"


@pytest.mark.parametrize(
    ("text", "kernel"),
    [(spelled(*form[:1], "Erf", *form[1:]), "com.microsoft.Gelu") for form in product(ERF, SUMS, OUTER)]
    + [(spelled(*form[:1], "Tanh", *form[1:]), "com.microsoft.FastGelu") for form in product(TANH, SUMS, OUTER)],
)
def test_every_spelling_becomes_one_node(text: str, kernel: str):
    before, after, fired = rewritten(fuse_gelu, onnx_model(text, VALUES))
    assert (fired, ops_of(after)) == (Fired(1), {kernel: 1})
    assert_same(after, before, {"x": normal(3, 8)}, 1e-6)


@pytest.mark.parametrize("changed", [{"root": 1.5}, {"one": 1.5}, {"half": 0.25}])
def test_other_constants_are_another_function(changed: dict[str, float]):
    text = spelled(ERF[0], "Erf", SUMS[0], OUTER[0])
    _, after, fired = rewritten(
        fuse_gelu, onnx_model(text, VALUES | {name: np.float32(value) for name, value in changed.items()})
    )
    assert fired == Fired()
    assert ops_of(after)["Erf"] == 1


def test_double_precision_is_refused_with_the_reason():
    text = spelled(TANH[0], "Tanh", SUMS[0], OUTER[0], kind="double")
    values = {name: value.astype(np.float64) for name, value in VALUES.items()}
    values |= {"c": np.float64(0.044715), "s": np.sqrt(2 / np.pi)}
    before, after, fired = rewritten(fuse_gelu, onnx_model(text, values))
    assert fired == Fired(0, (("Mul -> y", "its kernel takes no values of type double"),))
    assert ops_of(after) == ops_of(before)


@pytest.mark.parametrize(("exporter", "attention"), [("dynamo", "eager"), ("torchscript", "eager")])
def test_gpt2_of_both_exporters(exporter: str, attention: str):
    model = exported("gpt2", exporter, attention)
    after, fired = fused(model, "gelu")
    assert fired["gelu"] == Fired(1)
    assert ops_of(after)["com.microsoft.FastGelu"] == 1
    assert_equal_outputs(after, model, batch_of(model), 1e-5)
