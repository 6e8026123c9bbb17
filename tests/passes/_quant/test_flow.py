from __future__ import annotations

import onnx_ir as ir

from optkit.passes._quant.flow import Flow, candidates
from optkit.passes._quant.layered import FLOAT
from optkit.passes._quant.operators import CONVOLUTIONAL, LINEAR, auto_ops
from optkit.passes.quantize_static import QuantizeStatic
from tests.helpers import normal, onnx_model, run_pass
from tests.passes._quant.static_layers import WEIGHTS, cnn

W = {"w": normal(4, 4, 1, 1), "v": normal(4, 4, 1, 1)}


def flow_of(text: str, sizes: dict[str, int] | None = None, *, forced: bool = False) -> Flow:
    """Every tensor has 100 values but those in ``sizes``; nodes are named by their outputs."""
    graph = ir.from_proto(onnx_model(f"g (float[1,4,5,5] x) => (float[1,4,5,5] y) {{ {text} }}", W)).graph
    for node in graph:
        node.name = node.outputs[0].name
    values = ["x", *(value.name or "" for node in graph for value in node.outputs)]
    names = candidates(graph, CONVOLUTIONAL).names
    return Flow(graph, names, dict.fromkeys(values, 100) | (sizes or {}), forced=forced)


def held_of(flow: Flow, **levels: str) -> dict[str, str]:
    return {node.name or "": level for node, level in flow.held(levels, "int8")[0].items()}


def test_a_residual_network_flows_in_integers() -> None:
    graph = ir.from_proto(cnn()).graph
    names = candidates(graph, CONVOLUTIONAL).names
    sizes = {value.name or "": 100 for node in graph for value in node.outputs} | {"x": 100}
    flow = Flow(graph, names, sizes)
    held, left = flow.held({}, "int8")
    assert [node.name for node in held] == names and left == []
    assert flow.layers(held) == {"conv1": "r1", "conv2": "c2", "skip": "r2", "pool2": "g", "head": "l"}


def test_followers_and_absorbed_activations_share_their_producers_precision() -> None:
    flow = flow_of("a = Conv(x, w) r = Relu(a) t = Transpose<perm = [0,1,3,2]>(r) y = Conv(t, v)")
    assert held_of(flow, a="int16") == {"a": "int16", "r": "int16", "t": "int16", "y": "int8"}
    assert held_of(flow, a=FLOAT) == {"y": "int8"}


def test_what_only_feeds_softmax_stays_in_float() -> None:
    flow = flow_of("a = Conv(x, w) b = Conv(x, v) s = Add(a, b) y = Softmax(s)")
    held, left = flow.held({}, "int8")
    assert [node.name for node in held] == ["a", "b"]
    assert left == [("s", "it feeds Softmax, in float")]


def test_pieces_of_an_activation_in_float_are_no_islands() -> None:
    flow = flow_of("a = Conv(x, w) e = Erf(a) o = Add(e, a) m = Mul(a, o) h = Mul(m, m) y = Conv(h, v)")
    assert set(held_of(flow)) == {"a", "y"}


def test_a_small_factor_in_float_does_not_keep_a_product_out() -> None:
    text = "a = Conv(x, w) g = GlobalAveragePool(a) h = HardSigmoid(g) m = Mul(a, h) y = Conv(m, v)"
    assert "m" in held_of(flow_of(text, {"g": 4, "h": 4}))
    assert "m" not in held_of(flow_of(text))


def test_it_does_not_matter_which_operand_is_constant() -> None:
    data = {"x": normal(40, 4, 6, 6)}
    weights = {"w": normal(4, 4, 1, 1), "v": normal(4, 4, 1, 1, seed=1), "c": normal(4, 1, 1), "d": normal(4, 1, 1)}
    for product, total in (("Mul(a, c)", "Add(p, d)"), ("Mul(c, a)", "Add(d, p)")):
        text = (
            f"g (float[n,4,6,6] x) => (float[n,4,6,6] y) {{ a = Conv(x, w) p = {product} s = {total} y = Conv(s, v) }}"
        )
        outcome = run_pass(QuantizeStatic(), onnx_model(text, weights), data={"calibration": data})
        assert [name for name, _ in outcome.changes] == ["Conv_a", "Mul_p", "Add_s", "Conv_y"]


def test_forced_nodes_are_taken_whatever_it_costs() -> None:
    flow = flow_of("a = Add(x, x) y = Softmax(a)", forced=True)
    assert held_of(flow) == {"a": "int8"}


def test_a_layer_in_float_leaves_what_lives_on_its_integers() -> None:
    flow = flow_of("a = Conv(x, w) b = Conv(x, v) s = Add(a, b) y = Conv(s, v)")
    assert set(held_of(flow)) == {"a", "b", "s", "y"}
    assert set(held_of(flow, b=FLOAT)) == {"a", "y"}


def test_candidates_have_reasons_for_what_is_left() -> None:
    text = """g (float[n,4,6,6] x, float[4,4,1,1] k) => (float[n,4,12,12] y) { [dynamic] a = Conv(x, k)
        [filled] p = Pad(a, pads, minus) [cubic] r = Resize<mode = "cubic">(p, , scales) [out] y = Conv(r, w) }"""
    weights = {"w": W["w"], "pads": normal(8).astype("int64"), "minus": normal(1)[0], "scales": normal(4)}
    graph = ir.from_proto(onnx_model(text, weights)).graph
    found = candidates(graph, CONVOLUTIONAL, include=["dynamic", "filled", "cubic"])
    assert found.names == []
    assert dict(found.skipped) == {
        "dynamic": "its second input is computed, not a constant weight",
        "out": "it is not included",
    }


def test_convolutions_decide_what_flows() -> None:
    model = ir.from_proto(cnn())
    assert auto_ops(model) == tuple(op for op in CONVOLUTIONAL if op != "ConvTranspose")
    assert auto_ops(model, "tensorrt") == CONVOLUTIONAL
    attended = """g (float[1,3,8,8] x) => (float[1,8,6,6] y) { a = Conv(x, w1) s = MatMul(a, a) b = MatMul(s, h)
        y = Softmax(b) }"""
    weights = {"w1": WEIGHTS["w1"], "h": normal(6, 6)}
    assert auto_ops(ir.from_proto(onnx_model(attended, weights))) == LINEAR
