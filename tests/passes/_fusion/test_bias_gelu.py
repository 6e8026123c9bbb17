from __future__ import annotations

import pytest

from optkit.passes._fusion.bias_gelu import fuse_bias_gelu
from optkit.passes._fusion.family import Fired
from tests.helpers import normal, onnx_model, ops_of
from tests.passes._fusion.exports import assert_equal_outputs, batch_of, exported, fused
from tests.passes._fusion.rewritten import assert_same, rewritten

TEXT = "g (float[n,{width}] x) => (float[n,8] y) {{ a = Add({terms}) y = {gelu}(a) }}"


@pytest.mark.parametrize("gelu", ["Gelu", "com.microsoft.Gelu"])
@pytest.mark.parametrize("terms", ["x, b", "b, x"])
def test_the_bias_goes_in(gelu: str, terms: str):
    proto = onnx_model(TEXT.format(width=8, terms=terms, gelu=gelu), {"b": normal(8)}, contrib=True)
    before, after, fired = rewritten(fuse_bias_gelu, proto)
    assert (fired, ops_of(after)) == (Fired(1), {"com.microsoft.BiasGelu": 1})
    assert_same(after, before, {"x": normal(3, 8, seed=1)}, 1e-6)


@pytest.mark.parametrize(
    ("width", "gelu", "reason"),
    [
        (1, "Gelu", "the bias is not known to be one value for each column"),
        (8, 'Gelu<approximate = "tanh">', "Gelu operator with 'approximate' set to 'tanh' is not supported."),
    ],
)
def test_what_the_kernel_does_not_do_is_refused(width: int, gelu: str, reason: str):
    proto = onnx_model(TEXT.format(width=width, terms="x, b", gelu=gelu), {"b": normal(8)})
    before, after, fired = rewritten(fuse_bias_gelu, proto)
    assert fired == Fired(0, (("Gelu -> y", reason),))
    assert ops_of(after) == ops_of(before)


def test_a_sum_of_two_tensors_has_no_bias():
    text = "g (float[n,8] x, float[n,8] z) => (float[n,8] y) { a = Add(x, z) y = Gelu(a) }"
    assert rewritten(fuse_bias_gelu, onnx_model(text, {}))[2] == Fired()


@pytest.mark.parametrize(("exporter", "attention"), [("dynamo", "sdpa"), ("torchscript", "eager")])
def test_bert_of_both_exporters(exporter: str, attention: str):
    model = exported("bert", exporter, attention)
    after, fired = fused(model, "gelu", "bias-gelu")
    assert fired["bias-gelu"] == Fired(1)
    assert ops_of(after)["com.microsoft.BiasGelu"] == 1
    assert_equal_outputs(after, model, batch_of(model), 1e-5)
