from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
from pydantic import ValidationError

from optkit.errors import PassError
from optkit.model.model import Model
from optkit.passes._base import Outcome
from optkit.passes._quant.rows import RowSampler
from optkit.passes._quant.smoothing import smooth, smoothing_scale
from optkit.passes.export_onnx import ExportOnnx
from optkit.passes.fuse_graph import FuseGraph
from optkit.passes.quantize_dynamic import QuantizeDynamic
from optkit.passes.quantize_static import QuantizeStatic
from optkit.passes.simplify import Simplify
from optkit.passes.smooth_quant import SmoothQuant
from tests.helpers import fresh_dir, normal, onnx_model, open_any, ops_of, relative_error, run_onnx, run_pass

WIDTH = 16
OUTLIER = 5
"""The channel that is a hundred times as large as the others."""
LARGE = np.where(np.arange(WIDTH) == OUTLIER, 100, 1).astype(np.float32)
X = {"x": normal(64, 4, WIDTH, seed=1)}
FRESH = {"x": normal(16, 4, WIDTH, seed=2)}
WEIGHTS = {
    "g": LARGE,
    "b": normal(WIDTH, seed=3) * LARGE,
    "v": normal(WIDTH, WIDTH, seed=4, scale=0.25) * LARGE,
    "u": normal(WIDTH, WIDTH, seed=5, scale=0.25),
    "w": normal(WIDTH, 8, seed=6) / LARGE[:, None],
    "w2": normal(WIDTH, 8, seed=7) / LARGE[:, None],
    "slope": np.float32([[0.1]]),
    "half": np.float32(0.5),
    "heads": np.int64([4, 4]),
    "split": np.int64([0, 0, 4, 4]),
    "merge": np.int64([0, 0, WIDTH]),
    "rows": np.int64([-1, WIDTH]),
}
HEADS = """q = MatMul(x, u) q4 = Reshape(q, split)
    qt = Transpose<perm = [0,2,1,3]>(q4) kt = Transpose<perm = [0,2,3,1]>(q4)
    value = MatMul(x, v) vb = Add(value, b) v4 = Reshape(vb, split) vt = Transpose<perm = [0,2,1,3]>(v4)
    s = MatMul(qt, kt) p = Softmax(s) c = MatMul(p, vt) ct = Transpose<perm = [0,2,1,3]>(c)"""


def graph(body: str, *, outputs: str = "float[n,4,8] y", **weights: Any) -> onnx.ModelProto:
    """``body`` from x float32[n,4,16]; it holds those of ``WEIGHTS`` that it names."""
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    used = {name: array for name, array in (WEIGHTS | weights).items() if name in words}
    contrib = "com.microsoft" in body
    shapes = "float[n,4,4,4] v4" if "sizes" in words else ""
    return onnx_model(f"g (float[n,4,16] x) => ({outputs}) <{shapes}> {{ {body} }}", used, opset=23, contrib=contrib)


def smoothed(body: str, options: dict[str, Any] | None = None, **weights: Any) -> tuple[Model, Outcome]:
    """The model of ``body`` and what the pass made of it, whose outputs are the same."""
    outputs = "float[k,8] y" if "Gemm" in body else "float[n,4,8] y"
    path = fresh_dir() / "model.onnx"
    onnx.save(graph(body, outputs=outputs, **weights), path)  # the checker does not know SimplifiedLayerNormalization
    model = open_any(path)
    outcome = run_pass(SmoothQuant(**(options or {})), model, data={"calibration": X})
    check_same(model, outcome)
    return model, outcome


def check_same(model: Model, outcome: Outcome, inputs: Any = None) -> None:
    """Outputs of a run differ by at most 1e-4 of their standard deviation."""
    expected, found = run_onnx(model, inputs or FRESH), run_onnx(outcome.model, inputs or FRESH)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-4 * array.std())


FOLDED = {
    "layer norm": ("[norm] h = LayerNormalization(x, g, b) y = MatMul(h, w)", "norm"),
    "layer norm with a row for a scale": ("[norm] h = LayerNormalization(x, row, b) y = MatMul(h, w)", "norm"),
    "rms norm": ("[norm] h = RMSNormalization(x, g) y = MatMul(h, w)", "norm"),
    "simplified norm": ("[norm] h = SimplifiedLayerNormalization(x, g) y = MatMul(h, w)", "norm"),
    "skip norm": ("[norm] h = com.microsoft.SkipLayerNormalization(x, x, g, b) y = MatMul(h, w)", "norm"),
    "norm spelled out": ("[times] n = Mul(x, g) h = Add(n, b) y = MatMul(h, w)", "times"),
    "factor": ("n = Sigmoid(x) [times] h = Mul(half, n) y = MatMul(h, w)", "times"),
    "linear": ("[lin] m = MatMul(x, v) a = Add(b, m) r = Relu(a) h = Div(r, half) y = MatMul(h, w)", "lin"),
    "gemm": ("f = Reshape(x, rows) [lin] m = Gemm<transB = 1>(f, turned, b) h = LeakyRelu(m) y = MatMul(h, w)", "lin"),
    "gate": ("[up] m = MatMul(x, v) k = MatMul(x, u) s = Sigmoid(k) h = Mul(m, s) y = MatMul(h, w)", "up"),
    "attention": (f"{HEADS} h = Reshape(ct, merge) y = MatMul(h, w)", "value"),
    "attention of computed shape": (
        f"""k = Shape<end = 2>(x) sizes = Concat<axis = 0>(k, heads)
        {HEADS.replace("vb, split", "vb, sizes")} h = Reshape(ct, merge) y = MatMul(h, w)""",
        "value",
    ),
    "fused attention": (
        """q = MatMul(x, u) [value] m = MatMul(x, v)
        h = com.microsoft.MultiHeadAttention<num_heads = 4>(q, q, m, packed) y = MatMul(h, w)""",
        "value",
    ),
}


@pytest.mark.parametrize("case", FOLDED)
def test_a_scale_goes_into_what_is_before(case: str) -> None:
    body, into = FOLDED[case]
    weights = {"row": LARGE[None], "turned": WEIGHTS["v"].T.copy(), "packed": np.tile(WEIGHTS["b"], 3)}
    body = body.replace("value = MatMul", "[value] value = MatMul")
    model, outcome = smoothed(body, **weights)
    assert any(what.startswith(f"into {into}, alpha") for _, what in outcome.changes)
    assert ops_of(outcome.model) == ops_of(model)


BODY = "[norm] h = LayerNormalization(x, g, b) [one] y = MatMul(h, w) [two] z = MatMul(h, w2)"
OUTPUTS = "float[n,4,8] y, float[n,4,8] z"


@pytest.mark.parametrize("quantize", [QuantizeDynamic(), QuantizeStatic(ops=("MatMul",), activations="uint8")])
def test_a_large_channel_costs_ten_times_less(quantize: QuantizeDynamic | QuantizeStatic) -> None:
    """int8 has 255 steps for 200 times the small channels' size before, for hardly more than that size after."""
    model = open_any(graph(BODY, outputs=OUTPUTS))
    kind = "static" if isinstance(quantize, QuantizeStatic) else "dynamic"
    outcome = run_pass(SmoothQuant(activations=kind), model, data={"calibration": X})
    assert [where for where, _ in outcome.changes] == ["one, two"]
    expected = run_onnx(model, FRESH)["z"]
    errors = [
        relative_error(run_onnx(run_pass(quantize, each, data={"calibration": X}).model, FRESH)["z"], expected)
        for each in (model, outcome.model)
    ]
    assert errors[0] > 0.1
    assert errors[1] < errors[0] / 10


def test_alpha_one_makes_channels_above_the_median_alike() -> None:
    _, outcome = smoothed("[norm] h = LayerNormalization(x, g, b) y = MatMul(h, w)", {"alpha": 1.0})
    inner = onnx.load(outcome.model.path)
    norm = next(node for node in inner.graph.node if node.op_type == "LayerNormalization")
    inner.graph.output.append(onnx.ValueInfoProto(name=norm.output[0]))
    session = onnx.reference.ReferenceEvaluator(inner)
    peaks = np.abs(session.run([norm.output[0]], X)[0]).max(axis=(0, 1))
    np.testing.assert_allclose(np.sort(peaks)[WIDTH // 2 :], peaks[OUTLIER], rtol=1e-4)
    assert np.sort(peaks)[0] < 0.9 * peaks[OUTLIER]


REFUSED = {
    "the input": ("y = MatMul(x, w)", "it reads an input of the model"),
    "a residual": (
        "h = LayerNormalization(x, g, b) y = MatMul(h, w) [skip] z = Add(h, x)",
        "its input h is read by skip (Add) too",
    ),
    "an output": ("z = LayerNormalization(x, g, b) y = MatMul(z, w)", "its input z is an output of the model too"),
    "gelu": ("m = MatMul(x, v) [act] h = Gelu(m) y = MatMul(h, w)", "it follows act, and no scale gets through Gelu"),
    "a sum": ("m = MatMul(x, v) [sum] h = Add(m, x) y = MatMul(h, w)", "it follows sum, a sum of computed values"),
    "a square": ("m = MatMul(x, v) [sq] h = Mul(m, m) y = MatMul(h, w)", "its input m is read by sq (Mul) too"),
    "a computed scale": (
        "k = Sigmoid(g) [norm] h = LayerNormalization(x, k) y = MatMul(h, w)",
        "it follows norm, whose parameters are computed or not float32",
    ),
    "two axes": (
        "[norm] h = LayerNormalization<axis = 1>(x, plane) y = MatMul(h, w)",
        "it follows norm, which normalizes more than the channels",
    ),
    "a factor for rows": (
        "[times] h = Mul(x, column) y = MatMul(h, w)",
        "it follows times, whose parameters do not go by channel",
    ),
    "kept values": (
        """q = MatMul(x, u) m = MatMul(x, v)
        [mha] h, kept, z = com.microsoft.MultiHeadAttention<num_heads = 4>(q, q, m) y = MatMul(h, w)""",
        "it follows mha, whose values are packed or kept",
    ),
    "values that are the keys": (
        """q = MatMul(x, u) m = MatMul(x, v)
        [mha] h = com.microsoft.MultiHeadAttention<num_heads = 4>(q, m, m) y = MatMul(h, w)""",
        "its input m is read by mha (MultiHeadAttention) too",
    ),
    "the sum that a norm passes on": (
        "[norm] n, e1, e2, h = com.microsoft.SkipLayerNormalization(x, x, g, b) y = MatMul(h, w)",
        "it follows norm, and no scale gets through SkipLayerNormalization",
    ),
    "a computed product": (
        "t = Transpose<perm = [0,2,1]>(x) [prod] m = MatMul(x, t) y = MatMul(m, short)",
        "it follows prod, and there its second input is computed, not a constant weight",
    ),
    "heads of unknown size": (
        f"""k = Shape<end = 2>(x) unknown = Concat<axis = 0>(k, heads)
        {HEADS.replace("vb, split", "vb, unknown")} [join] h = Reshape(ct, merge) y = MatMul(h, w)""",
        "it follows join, attention with heads of unknown size",
    ),
    "other heads": (
        f"{HEADS} cs = Sigmoid(ct) [join] h = Reshape(cs, merge) y = MatMul(h, w)",
        "it follows join, and no scale gets through Reshape",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_takes_no_scale_is_told(case: str) -> None:
    body, reason = REFUSED[case]
    second = {"a residual": ", float[n,4,16] z", "an output": ", float[n,4,16] z", "kept values": ", float[n,4,k,i] z"}
    weights = {"plane": np.tile(LARGE, (4, 1)), "column": normal(4, 1), "short": normal(4, 8)}
    model = open_any(graph(body, outputs=f"float[n,4,8] y{second.get(case, '')}", **weights))
    outcome = run_pass(SmoothQuant(), model, data={"calibration": X})
    assert f"{reason}; mul: true helps" in [why for _, why in outcome.skipped]
    assert outcome.model.path == model.path


def test_weights_that_several_layers_share_stay() -> None:
    body = "h = LayerNormalization(x, g, b) [one] m = MatMul(h, v) s = Relu(m) [two] y = MatMul(s, v)"
    outcome = run_pass(SmoothQuant(), graph(body, outputs="float[n,4,16] y"), data={"calibration": X})
    assert dict(outcome.skipped)["one"] == "its weights are shared with two"
    assert outcome.changed == 0
    assert outcome.notes == [
        "nothing to smooth: no MatMul or Gemm with constant weights of its own; the model has 1 LayerNormalization, "
        "2 MatMul, 1 Relu; 1 were looked at and left: its weights are shared with two"
    ]


def test_an_embedding_that_is_the_last_layer_too_stays_an_embedding() -> None:
    table = normal(8, WIDTH) / LARGE
    text = """g (int64[n] x) => (float[n,8] y) {
        e = Gather(table, x) h = LayerNormalization(e, g, b) t = Transpose<perm = [1,0]>(table) y = MatMul(h, t) }"""
    weights = {"table": table, "g": LARGE, "b": WEIGHTS["b"]}
    model, tokens = open_any(onnx_model(text, weights)), {"x": np.arange(8)}
    outcome = run_pass(SmoothQuant(), model, data={"calibration": tokens})
    assert outcome.changed == 1
    check_same(model, outcome, tokens)
    np.testing.assert_array_equal(stored(outcome.model, "table"), table)


def stored(model: Model, name: str) -> np.ndarray[Any, Any]:
    return onnx.numpy_helper.to_array(next(t for t in onnx.load(model.path).graph.initializer if t.name == name))


def test_layers_in_functions_are_found() -> None:
    body = onnx.parser.parse_function("""<opset_import: ["" : 23], domain: "own">
        block (x, g, w) => (y) { h = LayerNormalization(x, g) y = MatMul(h, w) }""")
    proto = graph("y = own.block(x, g, w)")
    proto.functions.append(body)
    proto.opset_import.append(onnx.helper.make_opsetid("own", 1))
    model = open_any(proto)
    outcome = run_pass(SmoothQuant(), model, data={"calibration": X})
    assert outcome.changed == 1
    check_same(model, outcome)
    assert [path.name for path in outcome.model.path.parent.iterdir()] == ["model.onnx"]


def test_an_activation_that_is_not_finite_is_told() -> None:
    model = graph("[log] l = Log(x) h = Mul(l, g) y = MatMul(h, w)")
    with pytest.raises(PassError, match="The tensor 'h' becomes infinite or NaN"):
        run_pass(SmoothQuant(), model, data={"calibration": X})


def test_a_multiplication_where_asked_for() -> None:
    body = "h = LayerNormalization(x, g, b) [one] y = MatMul(h, w) [two] z = MatMul(h, w2) v3 = Neg(h)"
    outputs = f"{OUTPUTS}, float[n,4,16] v3"
    model = open_any(graph(body, outputs=outputs))
    outcome = run_pass(SmoothQuant(mul=True), model, data={"calibration": X})
    assert [(where, what[:9]) for where, what in outcome.changes] == [("one, two", "by a Mul,")]
    assert ops_of(outcome.model) == {"LayerNormalization": 1, "MatMul": 2, "Neg": 1, "Mul": 1}
    check_same(model, outcome)


def test_a_multiplication_of_the_input() -> None:
    _, outcome = smoothed("y = MatMul(x, w)", {"mul": True, "mul_gain": 0})
    assert ops_of(outcome.model) == {"Mul": 1, "MatMul": 1}


def test_a_multiplication_has_to_pay() -> None:
    body = "[act] h = Sigmoid(x) [lin] y = MatMul(h, even)"
    model = graph(body, even=normal(WIDTH, 8))
    outcome = run_pass(SmoothQuant(mul=True, mul_gain=0.5), model, data={"calibration": X})
    assert outcome.changed == 0
    assert outcome.notes == ["no scale makes the error in int8 less"]
    assert dict(outcome.skipped)["lin"].startswith("not worth it: alpha")
    assert run_pass(SmoothQuant(mul=True, alpha=0.5), model, data={"calibration": X}).changed == 1


def test_nothing_to_smooth() -> None:
    outcome = run_pass(SmoothQuant(), graph("y = Relu(x)", outputs="float[n,4,16] y"), data={"calibration": X})
    assert outcome.notes == [
        "nothing to smooth: no MatMul or Gemm with constant weights of its own; the model has 1 Relu"
    ]
    outcome = run_pass(SmoothQuant(), graph("y = MatMul(x, w)"), data={"calibration": X})
    assert outcome.notes[0].endswith("before the layers; mul: true helps")


def test_scale_by_the_formula() -> None:
    scale = smoothing_scale(np.float32([1, 100, 0, 7]), np.float32([4, 1, 3, 0]), 0.5)
    wanted = np.float64([1 / 2, 10])
    np.testing.assert_allclose(scale, [*wanted / np.sqrt(wanted.prod()), 1, 1], rtol=1e-6)


def test_what_int8_holds_exactly_has_no_error() -> None:
    rows = np.arange(256, dtype=np.float32).reshape(-1, 2)
    sampler = RowSampler(1, calls=1, rows=1000)
    sampler.update(rows)
    found = smooth(sampler.channels(), np.float32([[127, 1], [-3, 127]]), [0.5], dynamic=True)
    assert found.before == 0 < found.after


def test_a_channel_that_calibration_hardly_saw_is_not_made_large() -> None:
    rows = np.concatenate([normal(64, WIDTH), np.zeros((64, 1), np.float32)], axis=1) + np.float32(1e-6)
    sampler = RowSampler(1, rows=64)
    sampler.update(rows)
    scale = smooth(sampler.channels(), normal(WIDTH + 1, 8, seed=1), [0.9], dynamic=True).scale
    assert scale[-1] > 0.5 * np.median(scale)


def test_one_large_row_does_not_hide_the_errors_of_all_others() -> None:
    rows = normal(64, WIDTH)
    rows[0] *= 1000
    sampler = RowSampler(1, rows=64)
    sampler.update(rows)
    assert smooth(sampler.channels(), normal(WIDTH, 8, seed=1), [0.5], dynamic=True).before > 0.9


def test_a_range_for_all_batches_costs_more_than_one_for_each() -> None:
    rows, weights = normal(64, WIDTH), normal(WIDTH, 8, seed=1)
    sampler = RowSampler(2, calls=2, rows=128)
    for factor in (1, 100):
        sampler.update(rows * np.float32(factor))
    small = RowSampler(2, calls=1, rows=64)
    for factor in (1, 100):
        small.update(rows * np.float32(factor))
    static, dynamic = (smooth(small.channels(), weights, [0.5], dynamic=each).before for each in (False, True))
    assert dynamic < 0.02
    assert static > 20 * dynamic
    assert smooth(sampler.channels(), weights, [0.5], dynamic=True).before < 0.02


def test_rows_are_kept_evenly_and_no_more_of_them_for_more_batches() -> None:
    sampler = RowSampler(1000, calls=10, rows=40)
    for number in range(1000):
        sampler.update(np.full((2, 5, 3), number, np.float32))
    found = sampler.channels()
    assert found.rows.shape == (40, 3)
    np.testing.assert_array_equal(found.rows[:, 0], np.repeat(np.arange(0, 1000, 100), 4))
    np.testing.assert_array_equal(found.call_highs[:, 0], np.arange(0, 1000, 100))
    np.testing.assert_array_equal(found.row_call, np.repeat(np.arange(10), 4))
    assert (found.low[0], found.high[0], found.peaks()[0]) == (0, 999, 999)


@pytest.mark.parametrize("options", [{"alpha": 1.5}, {"alpha": "best"}, {"rows": 0}, {"mul_gain": 1}])
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SmoothQuant(**options)


@pytest.mark.zoo
def test_dynamic_int8_of_a_sentence_encoder_gains_three_times() -> None:
    """MiniLM normalizes after its residual additions, so most of its scales are multiplications."""
    import optkit
    from tests import zoo

    folder, texts = zoo.minilm(), zoo.movie_reviews()["search"].texts
    place = fresh_dir()
    for split, part in (("calibration", texts[:64]), ("evaluation", texts[64:160])):
        (place / f"{split}.txt").write_text("\n".join(part))
    data = {split: str(place / f"{split}.txt") for split in ("calibration", "evaluation")}
    before, after = (
        optkit.optimize(
            folder, [ExportOnnx(), Simplify(), FuseGraph(), *steps, QuantizeDynamic()], data=data, bench=False
        )
        .verdict.outputs[0]
        .cosine
        for steps in ([], [SmoothQuant(mul=True)])
    )
    assert after > 0.997
    assert 1 - after < (1 - before) / 3


def test_where_integers_flow_nothing_is_multiplied() -> None:
    text = """g (float[n,3,8,8] x) => (float[n,6] y) {
        c = Conv(x, k) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) h = Relu(f) g1 = Gelu(h) y = MatMul(g1, w)
    }"""
    model = onnx_model(text, {"k": normal(16, 3, 3, 3, seed=1), "w": normal(16, 6, seed=2)})
    data = {"calibration": {"x": normal(32, 3, 8, 8, seed=3)}}
    outcome = run_pass(SmoothQuant(mul=True, activations="static", alpha=0.5), model, data=data)
    assert outcome.changed == 0
    assert [why.partition("; ")[2] for _, why in outcome.skipped] == [
        "integers flow from layer to layer here, so that it is rounded before a Mul could help"
    ]
    assert run_pass(SmoothQuant(mul=True, alpha=0.5), model, data=data).changed == 1
