import math

import numpy as np
import pytest

from optkit.data.dataset import Batch
from optkit.errors import DataError
from optkit.evaluate.fidelity import Fidelity
from optkit.evaluate.rows import OutputOptions
from tests.evaluate.toy import compare


def test_figures_worked_out_by_hand():
    a = np.array([[3.0, 4.0], [1.0, 0.0]], np.float32)
    b = np.array([[3.0, 4.0], [1.0, 1.0]], np.float32)
    facts = compare(a, b).result()
    assert facts.rows == 2
    assert facts.dtype == "float32"
    assert facts.max_error == 1.0
    assert facts.mean_error == 0.25
    assert facts.max_error_std == pytest.approx(1 / np.std([3, 4, 1, 0]), rel=1e-12)
    assert facts.cosine == pytest.approx((1 + math.sqrt(0.5)) / 2, rel=1e-12)
    assert facts.cosine_worst == pytest.approx(math.sqrt(0.5), rel=1e-12)
    assert facts.cosine_p1 == pytest.approx(math.sqrt(0.5) + 0.01 * (1 - math.sqrt(0.5)), rel=1e-12)
    assert facts.worst_sample == 1
    assert facts.sqnr_db == pytest.approx(10 * math.log10(26 / 1), rel=1e-12)
    assert facts.top1 is None
    assert facts.equal is None


def test_identical_outputs_are_perfect():
    a = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    facts = compare(a, a.copy()).result()
    assert (facts.cosine, facts.cosine_p1, facts.cosine_worst) == (1.0, 1.0, 1.0)
    assert (facts.max_error, facts.mean_error, facts.max_error_std) == (0.0, 0.0, 0.0)
    assert facts.sqnr_db == math.inf


def test_zero_rows():
    a = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 2.0]])
    b = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    facts = compare(a, b).result()
    assert facts.cosine == pytest.approx(1 / 3)
    assert facts.worst_sample == 1


@pytest.mark.parametrize("batch", [1, 3, 8, 50])
def test_streaming_equals_the_whole(batch):
    rng = np.random.default_rng(1)
    a = (1e3 + rng.normal(size=(50, 4, 6))).astype(np.float32)
    b = a + rng.normal(scale=0.01, size=a.shape).astype(np.float32)
    whole, parts = compare(a, b).result(), compare(a, b, batch=batch).result()
    error = np.abs(b.astype(float) - a.astype(float))
    assert parts.max_error_std == pytest.approx(error.max() / a.astype(float).std(), rel=1e-9)
    for field in ("max_error", "mean_error", "max_error_std", "cosine", "cosine_p1", "sqnr_db", "worst_sample"):
        assert getattr(parts, field) == pytest.approx(getattr(whole, field), rel=1e-9)


def test_rows_are_cut_into_blocks_without_changing_the_figures(monkeypatch):
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 20, 9))
    whole = compare(a, b).result()
    monkeypatch.setattr("optkit.evaluate.rows.BLOCK", 30)
    assert compare(a, b).result().cosine_worst == pytest.approx(whole.cosine_worst, rel=1e-12)
    assert compare(a, b).result().worst_sample == whole.worst_sample


def test_one_value_a_sample_is_compared_as_one_vector():
    a, b = np.array([1.0, 2.0, -0.01, 3.0]), np.array([1.0, 2.0, 0.01, 3.0])
    facts = compare(a, b, batch=2).result()
    x, y = a - a.mean(), b - a.mean()
    assert facts.cosine == pytest.approx(x @ y / math.sqrt((x @ x) * (y @ y)), rel=1e-12)
    assert facts.cosine_worst is None
    assert "all samples at once" in facts.note


def test_an_output_without_a_sample_axis_is_one_row_a_batch():
    fidelity = Fidelity("state")
    for _ in range(3):
        fidelity.update(np.ones((2, 5)), np.ones((2, 5)), Batch({}, 4))
    facts = fidelity.result()
    assert (facts.rows, facts.cosine) == (3, 1.0)
    assert "each batch is one row" in facts.note


def test_a_constant_original_is_measured_by_its_rms():
    a = np.full((4, 3), 2.0, np.float32)
    facts = compare(a, a + np.float32(0.5)).result()
    assert facts.max_error_std == pytest.approx(0.25)
    assert "RMS" in facts.note
    assert compare(np.zeros((2, 2)), np.ones((2, 2))).result().max_error_std == math.inf


MASK = np.array([[1, 1, 0], [1, 0, 0]], np.int64)


def hidden():
    a = np.arange(12, dtype=np.float32).reshape(2, 3, 2) + 1
    b = a.copy()
    b[0, 2] = b[1, 1] = 99.0
    return a, b


def test_an_attention_mask_leaves_padding_out_by_default():
    a, b = hidden()
    facts = compare(a, b, inputs={"attention_mask": MASK}).result()
    assert (facts.max_error, facts.cosine) == (0.0, 1.0)
    assert facts.note == "masked by attention_mask"
    changed = b.copy()
    changed[1, 0, 0] += 0.5
    kept = a[MASK.astype(bool)]
    facts = compare(a, changed, inputs={"attention_mask": MASK}).result()
    assert facts.mean_error == pytest.approx(0.5 / 6)
    assert facts.max_error_std == pytest.approx(0.5 / kept.astype(float).std(), rel=1e-12)


def test_masks_can_be_switched_off_or_named():
    a, b = hidden()
    off = compare(a, b, inputs={"attention_mask": MASK}, options=OutputOptions(mask=False)).result()
    assert off.max_error == 99 - 5
    named = compare(a, b, inputs={"m": MASK}, options=OutputOptions(mask="m")).result()
    assert named.max_error == 0
    with pytest.raises(DataError, match="cannot be masked by 'other'"):
        compare(a, b, inputs={"m": MASK}, options=OutputOptions(mask="other"))


def test_a_mask_of_another_shape_does_not_apply_by_itself():
    a = np.arange(6.0).reshape(2, 3)
    assert compare(a, a, inputs={"attention_mask": MASK}).result().note == ""


def test_nan_under_the_mask_is_no_problem():
    a, b = hidden()
    b[0, 2] = np.nan
    fidelity = compare(a, b, inputs={"attention_mask": MASK})
    assert fidelity.problems == []
    assert fidelity.result().max_error == 0


@pytest.mark.parametrize(
    ("how", "expected"),
    [("mean", [[2.0, 3.0], [7.0, 8.0]]), ("cls", [[1.0, 2.0], [7.0, 8.0]]), ("last", [[3.0, 4.0], [7.0, 8.0]])],
)
def test_pooling(how, expected):
    a, b = hidden()
    facts = compare(a, b + 1, inputs={"attention_mask": MASK}, options=OutputOptions(pool=how)).result()
    pooled = np.array(expected)
    assert facts.max_error == 1.0
    assert facts.sqnr_db == pytest.approx(10 * math.log10((pooled**2).sum() / 4), rel=1e-12)
    assert facts.note.startswith(f"{how}-pooled")


def test_pooling_needs_a_sequence_axis():
    with pytest.raises(DataError, match="no sequence axis"):
        compare(np.ones(3), np.ones(3), options=OutputOptions(pool="mean"))


def test_integers_bools_and_texts_count_equal_elements():
    a = np.array([[1, 2], [3, 4]], np.int64)
    assert compare(a, np.array([[1, 2], [3, 5]], np.int64), batch=1).result().equal == 0.75
    assert compare(np.array([True, False]), np.array([True, True])).result().equal == 0.5
    texts = compare(np.array(["a", "bc"]), np.array(["a", "b"], dtype=object))
    assert texts.result().equal == 0.5
    assert texts.result().dtype == "string"
    assert texts.problems == []


def test_new_nan_and_inf_are_problems_with_their_first_sample():
    a = np.ones((6, 2), np.float32)
    b = a.copy()
    b[3, 0] = np.nan
    b[5] = np.inf
    problems = compare(a, b, batch=2).problems
    assert problems == [
        "output 'y': the result has NaN where the original has none, first in sample 3 (1 values)",
        "output 'y': the result has Inf where the original has none, first in sample 5 (2 values)",
    ]


def test_the_same_infinities_in_both_are_left_out_and_noted():
    a = np.array([[1.0, -np.inf, 2.0], [np.nan, 1.0, 3.0]])
    fidelity = compare(a, a.copy())
    assert fidelity.problems == []
    assert fidelity.result().cosine == 1.0
    assert "2 values are NaN or Inf in both" in fidelity.result().note
    other = compare(a, np.array([[1.0, np.inf, 2.0], [0.0, 1.0, 3.0]])).problems
    assert other == [
        "output 'y': the original has NaN or Inf where the result has something else, first in sample 0 (2 values)"
    ]


def test_dtype_rank_and_shape_are_problems():
    a = np.ones((2, 3), np.float32)
    assert compare(a, a.astype(np.float16)).problems == [
        "output 'y': the result has the dtype float16, the original float32"
    ]
    assert compare(a, a[:, :, None]).problems == [
        "output 'y': the result has the rank [2, 3, 1], the original [2, 3], first in sample 0"
    ]
    assert compare(a, a[:, :2]).problems == [
        "output 'y': the result has the shape [2, 2], the original [2, 3], first in sample 0"
    ]


def test_declared_changes_are_no_problems():
    a = np.ones((2, 3), np.float32)
    half = compare(a, a.astype(np.float16), may_change=frozenset({"dtypes"}))
    assert (half.problems, half.result().cosine) == ([], 1.0)
    integer = compare(a, a.astype(np.int64), may_change=frozenset({"dtypes"}))
    assert len(integer.problems) == 1
    shorter = compare(a, a[:, :2], may_change=frozenset({"dims"}))
    assert (shorter.problems, shorter.result().cosine) == ([], None)
    assert "not compared" in shorter.result().note


def test_bfloat16_is_a_float():
    import ml_dtypes

    a = np.ones((2, 3), ml_dtypes.bfloat16)
    facts = compare(a, a * 2).result()
    assert (facts.dtype, facts.max_error, facts.cosine) == ("bfloat16", 1.0, 1.0)


SCORES = np.eye(8)[[0, 1, 2, 3]] + np.linspace(0, 0.1, 8)


def test_agreement_of_class_scores():
    b = SCORES.copy()
    b[3, 3] = -1.0
    b[2, 4] = 2.0
    facts = compare(SCORES, b, name="logits", batch=3).result()
    assert (facts.top1, facts.top5) == (0.5, 0.75)
    assert compare(SCORES[:, :5], b[:, :5], name="logits").result().top5 is None


@pytest.mark.parametrize(
    ("name", "labels", "asked", "expected"),
    [
        ("output_0", None, None, False),
        ("output_0", None, True, True),
        ("class_probabilities", None, None, True),
        ("logits", None, False, False),
        ("output_0", np.array([7, 0, 0, 0]), None, True),
        ("output_0", np.array([0, 1, 2, 2]), None, True),
        ("embedding", np.array([1, 0, 1, 0]), None, False),
        ("output_0", np.array([8, 0, 0, 0]), None, False),
        ("output_0", np.array([0.0, 1.0, 2.0, 3.0]), None, False),
    ],
)
def test_what_looks_like_class_scores(name, labels, asked, expected):
    facts = compare(SCORES, SCORES, name=name, labels=labels, options=OutputOptions(classes=asked)).result()
    assert (facts.top1 is not None) is expected


def test_agreement_at_every_position_where_it_is_asked_for():
    a = np.zeros((2, 3, 4))
    a[..., 0] = 1
    b = a.copy()
    b[1, 2, 1] = b[0, 0, 3] = 2
    facts = compare(a, b, options=OutputOptions(classes=True), inputs={"attention_mask": MASK}).result()
    assert facts.top1 == pytest.approx(2 / 3)


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_a_common_offset_hides_nothing(batch):
    rng = np.random.default_rng(3)
    signal = rng.normal(size=(40, 6))
    signal -= signal.mean()
    a = 1e5 + signal
    lost = compare(a, np.full_like(a, 1e5), batch=batch).result()
    assert abs(lost.cosine) < 1e-3
    assert lost.sqnr_db == pytest.approx(0.0, abs=1e-6)
    assert "cosine and SQNR of the values less the original's mean, 1e+05" in lost.note
    half = 0.5 * signal + 0.5 * rng.permuted(signal, axis=1)
    halved, plain = compare(a, 1e5 + half, batch=batch).result(), compare(signal, half, batch=batch).result()
    assert halved.cosine == pytest.approx(plain.cosine, abs=1e-6)
    assert halved.sqnr_db == pytest.approx(plain.sqnr_db, abs=1e-6)


def test_an_offset_of_less_than_three_deviations_stays_in():
    rng = np.random.default_rng(4)
    a = 2.0 + rng.normal(size=(50, 5))
    b = a + rng.normal(scale=0.1, size=a.shape)
    facts = compare(a, b, batch=7).result()
    rows = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    assert facts.cosine == pytest.approx(rows.mean(), rel=1e-12)
    assert facts.sqnr_db == pytest.approx(10 * math.log10((a * a).sum() / ((b - a) ** 2).sum()), rel=1e-12)
    assert facts.note == ""


def test_one_value_a_sample_next_to_an_offset():
    a = 1e5 + np.arange(8.0)
    centred = a - a.mean()
    wanted = -centred.sum() / math.sqrt((centred @ centred) * 8)
    assert compare(a, np.full(8, 1e5), batch=1).result().cosine == pytest.approx(wanted, abs=1e-9)
    assert compare(a, a[::-1].copy(), batch=3).result().cosine == pytest.approx(-1.0, abs=1e-9)


def test_a_constant_original_is_not_centred():
    facts = compare(np.full((4, 3), 7.0), np.full((4, 3), 7.0 + 1e-9)).result()
    assert facts.cosine == pytest.approx(1.0, abs=1e-12)
    assert "constant" in facts.note and "less the original's mean" not in facts.note


def test_masked_positions_count_for_no_offset():
    a = 1e3 + np.random.default_rng(5).normal(size=(6, 4, 2))
    mask = np.array([[1, 1, 0, 0]] * 6)
    held = compare(a, a + 1e-3 * mask[:, :, None], inputs={"attention_mask": mask}).result()
    bare = compare(a[:, :2], a[:, :2] + 1e-3).result()
    assert held.cosine == pytest.approx(bare.cosine, rel=1e-9)
    assert held.sqnr_db == pytest.approx(bare.sqnr_db, rel=1e-9)


def test_whether_axis_0_counts_samples_is_decided_once():
    state = np.random.default_rng(6).normal(size=(4, 5))
    late, early = Fidelity("state"), Fidelity("state", rowwise=False)
    for size in (8, 4):
        late.update(state, state, Batch({}, size))
    assert late.rows == 2
    for size in (4, 2):
        early.update(state, state, Batch({}, size))
    assert early.rows == 2 and "no sample axis" in early.result().note
    first = Fidelity("scores")
    for size in (4, 2):
        first.update(state, state, Batch({}, size, np.arange(size)))
    assert first.rows == 8 and "no sample axis" not in first.result().note
