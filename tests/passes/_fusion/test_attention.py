from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from optkit.passes._fusion.family import Fired
from tests.helpers import normal, onnx_model, open_any, ops_of, run_onnx
from tests.passes._fusion.exports import assert_equal_outputs, batch_of, exported, fused
from tests.passes._fusion.heads_text import END, GUARD, HEADS, LOWEST, WEIGHTS, X, attention, masked, ragged
from tests.passes._fusion.rewritten import assert_same

FUSED = "com.microsoft.MultiHeadAttention"


def check(proto: onnx.ModelProto, inputs: dict[str, Any], tolerance: float = 2e-6) -> dict[str, int]:
    """Operators of the fused model, which has one attention and the outputs of the original."""
    before = open_any(proto)
    after, fired = fused(before, "attention")
    assert fired == {"attention": Fired(1)}
    assert_same(after, before, inputs, tolerance)
    counts = ops_of(after)
    assert counts[FUSED] == 1
    assert "Softmax" not in counts
    return counts


def reasons(proto: onnx.ModelProto) -> list[str]:
    """Why nothing was fused."""
    before = open_any(proto)
    after, fired = fused(before, "attention")
    assert fired["attention"].count == 0
    assert ops_of(after)["Softmax"] == 1
    return [reason for _, reason in fired["attention"].refused]


# --- what both exporters write ----------------------------------------------------------------------------------------

KINDS = (("bert", 6), ("vit", 6), ("gpt2", 0), ("llama", 7))
"""Kind and how many projections stay MatMuls; GPT-2's are Gemms."""


@pytest.mark.parametrize(
    ("kind", "exporter", "spelled", "projections"),
    [
        ("bert", "dynamo", "sdpa", 6),
        ("vit", "dynamo", "eager", 6),
        ("gpt2", "dynamo", "eager", 0),
        ("llama", "dynamo", "sdpa", 7),
        *((kind, "torchscript", spelled, count) for kind, count in KINDS for spelled in ("eager", "sdpa")),
        ("mpnet", "torchscript", "eager", 6),
        ("neox", "torchscript", "sdpa", 4),
    ],
)
@pytest.mark.parametrize("families", [("attention",), ("gelu", "normalization", "rotary", "attention")])
def test_transformers_of_both_exporters(
    kind: str, exporter: str, spelled: str, projections: int, families: tuple[str, ...]
):
    model = exported(kind, exporter, spelled)
    after, fired = fused(model, *families)
    assert fired["attention"] == Fired(1)
    counts = ops_of(after)
    assert counts[FUSED] == 1
    assert not counts.keys() & {"Softmax", "IsNaN"}
    assert counts["MatMul"] >= projections
    assert_equal_outputs(after, model, batch_of(model), 1e-5)


@pytest.mark.parametrize(("exporter", "spelled"), [("torchscript", "eager"), ("torchscript", "sdpa")])
def test_t5_adds_a_mask_to_scores_without_scale_and_is_slower_fused(exporter: str, spelled: str):
    after, fired = fused(exported("t5", exporter, spelled), "attention")
    assert [reason for _, reason in fired["attention"].refused] == [
        "with a mask, but neither scale nor guard, it is slower"
    ]
    assert ops_of(after)["Softmax"] == 1


# --- forms ------------------------------------------------------------------------------------------------------------


def test_projections_stay_visible():
    assert check(attention(), X)["MatMul"] == 4


def test_rows_that_are_flattened_behind_it():
    flat = END.replace("j = Reshape(t, join)", "rows = Reshape(t, flat) j = Reshape(rows, back)")
    check(attention(end=flat, flat=np.int64([-1, 32]), back=np.int64([2, 5, 32])), X)


def test_heads_that_are_not_joined():
    """[batch, seq, heads, D] -> [batch, seq * heads, D] keeps heads apart, and is not what onnxscript takes it for."""
    apart = END.replace("j = Reshape(t, join)", "a = Reshape(t, apart) r = Relu(a) j = Reshape(r, back)")
    check(attention(end=apart, apart=np.int64([0, -1, 8]), back=np.int64([2, 5, 32])), X)


def test_as_many_keys_as_heads():
    """Keys [batch, seq, heads, D] have the shape of keys [batch, heads, seq, D]."""
    text = HEADS.replace("q0 = MatMul(x, wq) q1 = Reshape(q0, split)", "q1 = Reshape(x, split)")
    text = text.replace("k0 = MatMul(x, wk) k1 = Reshape(k0, split)", "k1 = Relu(z)")
    text = text.replace(
        "v0 = MatMul(x, wv) v1 = Reshape(v0, split) v = Transpose<perm = [0,2,1,3]>(v1)", "v = Sigmoid(z)"
    )
    proto = onnx_model(
        f"g (float[2,4,32] x, float[2,4,4,8] z) => (float[2,4,32] y) {{ {text} s = Identity(s0) {END} y = Relu(j) }}",
        WEIGHTS,
    )
    check(proto, {"x": normal(2, 4, 32), "z": normal(2, 4, 4, 8, seed=1)})


def test_keys_and_values_of_the_past():
    text = HEADS.replace("v = Trans", "v2 = Trans").replace(
        "k = Transpose<perm = [0,2,3,1]>", "k2 = Transpose<perm = [0,2,1,3]>"
    )
    text = text.replace(
        "qs = Mul",
        "pk = Concat<axis = -2>(ik, k2) v = Concat<axis = -2>(iv, v2) "
        "k = Transpose<perm = [0,1,3,2]>(pk) pv = Identity(v) qs = Mul",
    )
    past, now = "float[batch,4,past,8] i{0}", "float[batch,4,all,8] p{0}"
    proto = onnx_model(
        f"""g (float[batch,seq,32] x, {past.format("k")}, {past.format("v")})
            => (float[batch,seq,32] y, {now.format("k")}, {now.format("v")}) {{
            {text} s = Identity(s0) {END} y = Relu(j) }}""",
        WEIGHTS,
    )
    for value in proto.graph.output[1:]:
        value.type.tensor_type.shape.dim[2].dim_param = "past + seq"
    inputs = {"x": normal(2, 3, 32), "ik": normal(2, 4, 6, 8, seed=1), "iv": normal(2, 4, 6, 8, seed=2)}
    check(proto, inputs)


def test_attention_in_a_branch_is_left_alone_or_right():
    inner = f"{HEADS} s = Identity(s0) {END} y1 = MatMul(j, wo)"
    text = f"""g (bool c, float[batch,seq,32] x) => (float[batch,seq,32] y) {{
        y = If<then_branch = t () => (float[batch,seq,32] y1) {{ {inner} }},
               else_branch = f () => (float[batch,seq,32] y2) {{ y2 = Relu(x) }}>(c) }}"""
    before = open_any(onnx_model(text, WEIGHTS))
    after, _ = fused(before, "gelu", "normalization", "rotary", "attention", "packed-attention", "skip-norm")
    assert_same(after, before, {"c": np.array(True), **X}, 2e-6)
    assert_same(after, before, {"c": np.array(False), **X}, 2e-6)


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("guard", "bias"), [(GUARD, False), ("", False), (GUARD, True)])
def test_rows_that_are_masked_all_over_give_what_they_gave(guard: str, bias: bool):
    check(masked(LOWEST, guard=guard, bias=bias), ragged())


@pytest.mark.parametrize("zero", [np.float32(0), np.float32([0])])
def test_a_guard_behind_an_infinite_mask_becomes_a_choice_of_rows(zero: Any):
    proto = masked(-np.inf, guard=GUARD.replace("zero", "guarded"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(zero, "guarded"))
    counts = check(proto, ragged())
    assert (counts["ReduceMax"], counts["Where"]) == (1, 2)
    assert "Transpose" not in counts
    dead = run_onnx(open_any(proto), ragged())["y"][0]
    assert np.array_equal(dead, np.zeros_like(dead))


def test_the_same_below_opset_18():
    proto = masked(-np.inf)
    proto.opset_import[0].version = 17
    check(proto, ragged())


def test_without_a_guard_rows_that_are_masked_all_over_stay_nan():
    before = open_any(masked(-np.inf, guard=""))
    after, fired = fused(before, "attention")
    assert fired["attention"] == Fired(1)
    assert np.isnan(run_onnx(before, ragged())["y"][0]).all()
    assert_same(after, before, ragged(), 2e-6)


def test_a_guard_stays_where_the_mask_may_be_anything():
    end = END.replace("p = Softmax<axis = -1>(s)", f"p0 = Softmax<axis = -1>(s) {GUARD}")
    proto = attention("s = Add(s0, m)", inputs=", float[batch,1,1,seq] m", end=end, zero=np.float32(0))
    assert reasons(proto) == ["the mask may be infinite or NaN, and NaN is taken care of"]


def test_a_guard_stays_where_a_sum_of_masks_may_be_infinite_beside_the_lowest_number():
    """Keys that one of two masks leaves out would weigh as much as those that both leave out."""
    scores = "m1 = Where(keep, zero, fill) m2 = Where(too, zero, fill) m = Add(m1, m2) s = Add(s0, m)"
    end = END.replace("p = Softmax<axis = -1>(s)", f"p0 = Softmax<axis = -1>(s) {GUARD}")
    keys = ", bool[batch,1,1,seq] keep, bool[batch,1,1,seq] too"
    proto = attention(scores, inputs=keys, end=end, zero=np.float32(0), fill=np.float32(LOWEST))
    assert reasons(proto) == ["the mask may hold both -inf and numbers as low as what stands for it"]


@pytest.mark.parametrize("order", ["keep, s0, far", "drop, far, s0"])
@pytest.mark.parametrize("far", [-np.inf, LOWEST, -1e30])
def test_scores_that_are_replaced_where_masked(order: str, far: float):
    scores = f"drop = Not(keep) s = Where({order})"
    proto = attention(scores, inputs=", bool[batch,1,1,seq] keep", far=np.float32(far))
    before = open_any(proto)
    after, fired = fused(before, "attention")
    assert fired["attention"] == Fired(1)
    assert_same(after, before, ragged(), 2e-6)


def test_scores_that_are_replaced_by_a_number_that_they_could_have():
    """Rows that are masked all over are then averages; added to the scores, the number would leave them as they are."""
    proto = attention("s = Where(keep, s0, far)", inputs=", bool[batch,1,1,seq] keep", far=np.float32(-10000))
    assert reasons(proto) == ["masked scores are replaced by more than -1e+30"]


def with_mask(shape: str) -> onnx.ModelProto:
    return attention("s = Add(s0, m)", inputs=f", float[{shape}] m")


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ("batch,4,seq,seq", (2, 4, 5, 5)),
        ("1,4,5,5", (1, 4, 5, 5)),
        ("batch,1,1,seq", (2, 1, 1, 5)),
        ("1,4,1,seq", (1, 4, 1, 5)),
        ("seq,seq", (5, 5)),
        ("4,seq,seq", (4, 5, 5)),
        ("seq", (5,)),
    ],
)
def test_masks_that_are_repeated(shape: str, sizes: tuple[int, ...]):
    counts = check(with_mask(shape), X | {"m": normal(*sizes, seed=3)})
    assert counts.get("Expand", 0) == (shape not in ("batch,4,seq,seq", "1,4,5,5"))


@pytest.mark.parametrize("shape", ["batch,1,1,1", "other,1,seq,seq", "batch,1,seq,keys", "3,1,seq,seq", "1,1,5,seq"])
def test_masks_that_may_not_fit(shape: str):
    assert reasons(with_mask(shape)) == ["the mask is not known to fit the scores"]


@pytest.mark.parametrize("opset", [13, 14])
@pytest.mark.parametrize("shape", ["batch,1,1,seq", "seq,seq"])
def test_masks_that_are_repeated_below_opset_15(shape: str, opset: int):
    proto = with_mask(shape)
    proto.opset_import[0].version = opset
    check(proto, X | {"m": normal(*((2, 1, 1, 5) if "batch" in shape else (5, 5)), seed=3)})


# --- near misses ------------------------------------------------------------------------------------------------------


def test_probabilities_that_are_an_output():
    assert reasons(attention(outputs=", float[batch,4,seq,seq] p")) == ["an inner value is needed elsewhere"]


def test_a_scale_that_is_computed():
    proto = attention("s = Mul(s0, factor)", inputs=", float factor")
    assert reasons(proto) == ["qk_scale is not a scalar."]


def test_sizes_that_are_not_known():
    loose = HEADS.replace("q1 = Reshape(q0, split)", "q1 = Reshape(q0, sizes)")
    body = f"{loose} s = Identity(s0) {END} y = Relu(j)"
    proto = onnx_model(f"g (float[batch,seq,32] x, int64[4] sizes) => (float[a,b,c] y) {{ {body} }}", WEIGHTS)
    assert reasons(proto) == ["the sizes of the heads are not known"]


def test_double_precision():
    proto = attention()
    for tensor in [each for each in proto.graph.initializer if each.data_type == onnx.TensorProto.FLOAT]:
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float64), tensor.name)
        )
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    assert reasons(proto) == ["its kernel takes no values of type double"]
