from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from optkit.passes._fusion.family import Fired
from optkit.passes._fusion.key_mask import fuse_key_mask
from optkit.passes._fusion.shapes import know_shapes
from optkit.passes._ir import load_ir, save_ir
from optkit.passes.quantize_dynamic import QuantizeDynamic
from tests.helpers import fresh_dir, normal, onnx_model, open_any, ops_of, relative_error, run_onnx, run_pass
from tests.passes._fusion.exports import fused
from tests.passes._fusion.heads_text import masked
from tests.passes._fusion.heads_text import ragged as padded
from tests.passes._fusion.rewritten import assert_same

LOWEST = float(np.finfo(np.float32).min)
HEADS, SIZE, SEQ = 4, 8, 5
TEXT = """masked ({inputs}) => (float[batch,seq,32] y{outputs}) {{
    q0 = MatMul(x, wq) q = Add(q0, bq) k0 = MatMul(x, wk) k = Add(bk, k0) v = MatMul(x, wv)
    {mask}
    y = com.microsoft.MultiHeadAttention<num_heads = 4{attributes}>(q, k, v{third}, , m)
}}"""
KEEP = "float[batch,seq,32] x, bool[batch,1,1,seq] keep"
REPEATED = """b = Shape<start = 0, end = 1>(x) n = Shape<start = 1, end = 2>(x) s = Concat<axis = 0>(b, one, n, n)
    e = Expand(row, s) m = Identity(e)"""
WHERE = "row = Where(keep, zero, fill)"


def model(
    mask: str, *, fill: float = LOWEST, inputs: str = KEEP, attributes: str = "", outputs: str = "", third: str = ", "
) -> onnx.ModelProto:
    """Attention of 4 heads with 8 features each, and a mask ``m``."""
    text = TEXT.format(mask=mask, inputs=inputs, attributes=attributes, outputs=outputs, third=third)
    weights: dict[str, Any] = {f"w{name}": normal(32, 32, seed=seed, scale=0.3) for seed, name in enumerate("qkv")}
    weights |= {f"b{name}": normal(32, seed=seed + 5) for seed, name in enumerate("qk")}
    weights |= {"zero": np.float32(0), "fill": np.float32(fill), "one": np.int64([1])}
    return onnx_model(text, weights, contrib=True)


def rewritten(proto: onnx.ModelProto) -> tuple[Any, Any, Fired]:
    """(model before, model after, what was done)"""
    before = open_any(proto)
    graph, path = load_ir(before.path), fresh_dir() / "model.onnx"
    know_shapes(graph)
    fired = fuse_key_mask(graph)
    save_ir(graph, path)
    return before, open_any(path), fired


def ragged() -> dict[str, Any]:
    """Three rows of 5: one that is masked all over, one with padding at its end, one without."""
    keep = np.ones((3, 1, 1, SEQ), bool)
    keep[0], keep[1, ..., 3:] = False, False
    return {"x": normal(3, SEQ, 32, seed=9), "keep": keep}


@pytest.mark.parametrize("attributes", ["", ", scale = 0.5"])
@pytest.mark.parametrize("fill", [LOWEST, -10000.0])
def test_a_mask_of_keys_becomes_a_feature_of_them(fill: float, attributes: str) -> None:
    before, after, fired = rewritten(model(f"{WHERE} {REPEATED}", fill=fill, attributes=attributes))
    assert fired == Fired(1)
    node = next(node for node in onnx.load(after.path).graph.node if node.op_type == "MultiHeadAttention")
    assert [name for name in node.input if name] == list(node.input)[:3]
    inputs = ragged()
    found, expected = run_onnx(after, inputs)["y"], run_onnx(before, inputs)["y"]
    np.testing.assert_allclose(found[1:], expected[1:], rtol=0, atol=2e-6)
    # A row without any key left: scores of -10000 + s are rounded to 0.001 in either form.
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=2e-6 if fill == LOWEST else 2e-3)


def test_a_mask_that_exporters_spread_by_a_comparison_of_positions() -> None:
    mask = """n = Shape<start = 1, end = 2>(x) n0 = Squeeze(n) r = Range(i0, n0, i1) u = Unsqueeze(r, axes)
        all = GreaterOrEqual(u, i0) both = And(all, keep) m = Where(both, zero, fill)"""
    proto = model(mask)
    values = {"i0": np.int64(0), "i1": np.int64(1), "axes": np.int64([0, 1, 3])}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in values.items())
    before, after, fired = rewritten(proto)
    assert fired == Fired(1)
    np.testing.assert_allclose(run_onnx(after, ragged())["y"], run_onnx(before, ragged())["y"], rtol=0, atol=2e-6)


def test_layers_share_the_feature() -> None:
    proto = model(f"{WHERE} {REPEATED}")
    again = onnx.NodeProto()
    again.CopyFrom(proto.graph.node[-1])
    for node, name in ((proto.graph.node[2], "k2_0"), (proto.graph.node[3], "k2")):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.output[0] = name
        copy.input[:] = ["k2_0" if each == "k0" else each for each in copy.input]
        proto.graph.node.insert(4, copy) if name == "k2_0" else proto.graph.node.insert(5, copy)
    for node, name in ((proto.graph.node[0], "q2_0"), (proto.graph.node[1], "q2")):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.output[0] = name
        copy.input[:] = ["q2_0" if each == "q0" else each for each in copy.input]
        proto.graph.node.insert(2 if name == "q2_0" else 3, copy)
    again.input[0], again.input[1], again.output[0] = "q2", "k2", "z"
    proto.graph.node.append(again)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["batch", "seq", 32]))
    before, after, fired = rewritten(proto)
    assert fired.count == 2
    assert ops_of(after)["Clip"] == 1
    found, expected = run_onnx(after, ragged()), run_onnx(before, ragged())
    for name in ("y", "z"):
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=2e-6)


BIAS = "float[batch,seq,32] x, float[batch,1,seq,seq] m"
CAUSAL = "m = Where(triangle, zero, fill)"


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (model(f"{WHERE} {REPEATED}", fill=-np.inf), "its mask may be infinite"),
        (model("", inputs=BIAS), "its mask may be infinite"),
        (
            model("m = Where(keep, zero, fill)", inputs=KEEP.replace("1,1,seq", "1,seq,seq")),
            "its mask differs from query to query",
        ),
        (
            model("m = Where(keep, zero, fill)", inputs=KEEP.replace("batch,1,1,seq", "batch,4,1,seq")),
            "its mask differs from query to query or head to head",
        ),
        (model(f"{WHERE} {REPEATED} z = Relu(q)", outputs=", float[batch,seq,32] z"), "or others read it too"),
        (model(f"{WHERE} {REPEATED}", third=", bq3"), "it has a bias"),
        (model(f"row = Identity(zero) {REPEATED}", inputs="float[batch,seq,32] x"), "its mask is a constant"),
    ],
    ids=["infinite", "input", "by query", "by head", "shared", "bias", "constant"],
)
def test_near_misses_say_why(proto: onnx.ModelProto, reason: str) -> None:
    if any("bq3" in node.input for node in proto.graph.node):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(96), "bq3"))
    before, after, fired = rewritten(proto)
    assert fired.count == 0
    (refused,) = fired.refused
    assert reason in refused[1]
    assert ops_of(after) | {"Identity": 0} == ops_of(before) | {"Identity": 0}, "at most a dead copy of its mask"


def test_its_layers_still_become_int8() -> None:
    before, after, _ = rewritten(model(f"{WHERE} {REPEATED}"))
    plain, masked = (run_pass(QuantizeDynamic(), each).model for each in (before, after))
    assert ops_of(masked)["MatMulInteger"] == 3
    expected = run_onnx(before, ragged())["y"]
    errors = [relative_error(run_onnx(each, ragged())["y"], expected) for each in (plain, masked)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)
    assert errors[1] < 0.05


@pytest.mark.parametrize("opset", [14, 20])
def test_a_mask_of_one_row_that_attention_repeats(opset: int) -> None:
    """onnxscript reads from the queries how often; they are still needed by nothing but attention."""
    proto = masked(LOWEST, guard="")
    proto.opset_import[0].version = opset
    before = open_any(proto)
    after, fired = fused(before, "attention", "key-mask")
    assert (fired["attention"], fired["key-mask"]) == (Fired(1), Fired(1))
    counts = ops_of(after)
    assert counts["MatMul"] == 4
    assert not counts.keys() & {"Expand", "Shape"}
    assert_same(after, before, padded(), 2e-6)
