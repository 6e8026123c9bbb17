import numpy as np
import pytest

from optkit.errors import DataError, GivenError
from optkit.evaluate.judge import OutputOptions, judge
from optkit.evaluate.limits import Limits
from optkit.evaluate.metrics import load_metric
from optkit.model.signature import Signature, TensorSpec
from tests.evaluate.toy import ToyData, cut, toy

SIGNATURE = Signature((TensorSpec("x", "float32", ("batch", 2)),))
RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(10, 6)).astype(np.float32)


def verdict(a, b, data=None, *, exact=False, limits=(), **more):
    count = len(next(iter(a.values())))
    return judge(
        cut(a), cut(b), data or toy(count), signature=SIGNATURE, limits=Limits.parse(limits), exact=exact, **more
    )


def found(result, name):
    return next(limit for limit in result.limits if limit.name == name)


def test_the_same_outputs_hold_every_default():
    result = verdict({"logits": SCORES}, {"logits": SCORES})
    assert result.held
    assert [(x.name, x.limit, x.held, x.where) for x in result.limits] == [
        ("cosine", ">= 0.99", True, "logits"),
        ("agreement", ">= 0.98", True, "logits"),
    ]
    assert result.measured_on.model_dump() == {
        "split": "evaluation",
        "source": "toy",
        "samples": 10,
        "batch": 4,
        "synthetic": False,
    }


def test_the_worst_output_decides_and_what_would_have_passed_is_said():
    noisy = SCORES + RNG.normal(scale=0.5, size=SCORES.shape).astype(np.float32)
    result = verdict({"a": SCORES, "b": SCORES}, {"a": SCORES, "b": noisy})
    assert not result.held
    cosine = found(result, "cosine")
    assert (cosine.where, cosine.held) == ("b", False)
    assert cosine.measured is not None
    passing = result.would_pass["cosine"]
    assert 0 <= cosine.measured - passing < 1e-4
    assert verdict({"b": SCORES}, {"b": noisy}, limits=[f"cosine={passing}"]).held


def test_exact_chains_are_held_to_float_noise():
    assert verdict({"y": SCORES}, {"y": SCORES * np.float32(1 + 1e-6)}, exact=True).held
    result = verdict({"y": SCORES}, {"y": SCORES * np.float32(1.01)}, exact=True)
    assert not found(result, "max_error").held
    assert result.would_pass["max_error"] >= found(result, "max_error").measured


def test_stated_limits_replace_defaults_key_by_key():
    result = verdict(
        {"y": SCORES}, {"y": SCORES * np.float32(1.01)}, exact=True, limits=["max_error=0.5", "cosine=0.9"]
    )
    assert result.held
    assert [limit.name for limit in result.limits] == ["cosine", "max_error"]


def test_agreement_is_no_default_without_class_scores_and_not_checked_when_asked_for():
    assert [limit.name for limit in verdict({"y": SCORES}, {"y": SCORES}).limits] == ["cosine"]
    limit = found(verdict({"y": SCORES}, {"y": SCORES}, limits=["agreement=0.98"]), "agreement")
    assert (limit.held, limit.measured) == (None, None)
    assert limit.note.startswith("not checked: no output looks like class scores")


def test_integer_outputs_are_held_by_agreement_also_in_exact_chains():
    ids = np.arange(10)
    changed = ids.copy()
    changed[0] = 5
    result = verdict({"ids": ids}, {"ids": changed}, exact=True)
    assert (found(result, "agreement").measured, found(result, "agreement").held) == (0.9, False)
    assert found(result, "max_error").held is None


def test_names_and_counts_are_problems():
    missing = verdict({"a": SCORES, "b": SCORES}, {"a": SCORES, "c": SCORES})
    assert missing.problems == (
        "output 'b': missing in the result, first in sample 0",
        "output 'c': the result has it, the original does not",
    )
    assert not missing.held
    assert not missing.accuracy_held
    short = judge(
        cut({"a": SCORES}), cut({"a": SCORES})[:2], toy(10), signature=SIGNATURE, limits=Limits(), exact=False
    )
    assert short.problems == ("the result's outputs end after 2 batches, the others do not",)
    assert short.measured_on.samples == 8


def test_declared_outputs_may_go():
    result = verdict({"a": SCORES, "b": SCORES}, {"a": SCORES}, dropped=["b"])
    assert result.held
    assert result.dropped_outputs == ("b",)
    assert [output.name for output in result.outputs] == ["a"]
    assert verdict({"a": SCORES}, {"a": SCORES, "c": SCORES}, may_change=frozenset({"outputs"})).held


def test_nothing_compared_is_not_a_pass():
    none = verdict({"a": SCORES}, {"b": SCORES}, dropped=["a"], may_change=frozenset({"outputs"}))
    assert none.problems == ("original and result share no output, so nothing was compared",)
    empty = judge([], [], toy(0), signature=SIGNATURE, limits=Limits(), exact=False)
    assert empty.problems == ("there are no samples, so nothing was compared",)
    assert not empty.held


def test_padding_rows_of_the_inputs_are_left_out():
    class Padded(ToyData):
        def batches(self):
            for batch in super().batches():
                yield type(batch)({"attention_mask": np.ones((4, 3), np.int64)}, batch.size)

    hidden = np.ones((6, 3, 2)) * np.arange(6)[:, None, None]
    signature = Signature((TensorSpec("attention_mask", "int64", (4, 3)),))
    data = Padded({"attention_mask": np.ones((6, 3), np.int64)})
    result = judge(cut({"h": hidden}), cut({"h": hidden}), data, signature=signature, limits=Limits(), exact=False)
    assert result.outputs[0].note == "masked by attention_mask"
    assert result.held


def test_options_for_an_unknown_output():
    with pytest.raises(GivenError) as caught:
        verdict({"logits": SCORES}, {"logits": SCORES}, options={"logit": OutputOptions()})
    assert caught.value.fix == "did you mean 'logits'?"


LABELS = SCORES.argmax(axis=1)


def test_the_metric_is_measured_and_gated():
    worse = SCORES.copy()
    worse[:2] = -worse[:2]
    top1 = load_metric("top1")
    data = toy(10, labels=LABELS)
    result = verdict({"y": SCORES}, {"y": worse}, data, metric=top1, limits=["metric_drop=0.1", "cosine=-1"])
    drop = found(result, "metric_drop")
    assert (drop.measured, drop.held, drop.where) == (pytest.approx(0.2), False, "top1")
    assert drop.note.startswith("drop 0.2, 95 % bound 0.")
    assert (result.metrics[0].original, result.metrics[0].result) == (1.0, 0.8)
    assert result.would_pass["metric_drop"] == pytest.approx(0.2)


def test_the_bound_asks_for_more_samples_than_the_point():
    top1 = load_metric("top1")
    data = toy(10, labels=LABELS)
    same = {"y": SCORES}
    assert verdict(same, same, data, metric=top1, limits=["metric_drop=0.01"]).held
    bound = found(verdict(same, same, data, metric=top1, limits=["metric_drop={max: 0.01, by: bound}"]), "metric_drop")
    assert (bound.held, bound.measured) == (False, pytest.approx(0.2589, rel=1e-3))


def test_labelled_limits_apply_only_with_labels():
    limits = ["labelled.metric_drop=0.01", "labelled.cosine=0.5"]
    same = {"y": SCORES}
    top1 = load_metric("top1")
    with_labels = verdict(same, same, toy(10, labels=LABELS), metric=top1, limits=limits)
    assert (found(with_labels, "labelled.metric_drop").held, found(with_labels, "labelled.cosine").held) == (True, True)
    for metric in (top1, None):
        without = verdict(same, same, metric=metric, limits=limits)
        assert without.held
        assert without.metrics == ()
        for name in ("labelled.metric_drop", "labelled.cosine"):
            assert (found(without, name).held, found(without, name).note) == (None, "not checked: no labelled data")
    nameless = found(verdict(same, same, toy(10, labels=LABELS), limits=limits), "labelled.metric_drop")
    assert (nameless.held, nameless.note) == (None, "not checked: no metric is named: --metric NAME measures it")


@pytest.mark.parametrize(
    ("data", "metric", "limits", "message"),
    [
        (toy(10), None, ["metric_drop=0.1"], "no metric is named"),
        (toy(10), "top1", ["metric_drop=0.1"], "the evaluation data have no labels"),
        (toy(10), "top1", ["metric_drop=0.1", "labelled.cosine=0.1"], "the evaluation data have no labels"),
        (toy(10), "top1", [], "the evaluation data have no labels"),
        (toy(10, synthetic=True, labels=LABELS), "top1", [], "cannot be measured on synthetic data"),
        (toy(10, labels=LABELS), "probe", [], "must be fitted first"),
    ],
)
def test_a_metric_that_cannot_be_measured_is_refused(data, metric, limits, message):
    same = {"y": SCORES}
    with pytest.raises(DataError, match=message) as caught:
        verdict(same, same, data, metric=None if metric is None else load_metric(metric), limits=limits)
    assert caught.value.fix


def test_the_metric_is_not_measured_on_broken_outputs():
    broken = SCORES.copy()
    broken[3] = np.nan
    data = toy(10, labels=LABELS)
    result = verdict({"y": SCORES}, {"y": broken}, data, metric=load_metric("top1"), limits=["metric_drop=0.1"])
    assert not result.held
    assert result.problems[0].endswith("first in sample 3 (6 values)")
    assert result.metrics == ()
    assert "see the problems" in found(result, "metric_drop").note


def test_outputs_are_read_side_by_side():
    order = []

    def spying(name):
        for batch in cut({"y": SCORES}):
            order.append(name)
            yield batch

    judge(spying("a"), spying("b"), toy(10), signature=SIGNATURE, limits=Limits(), exact=False)
    assert order == ["a", "b"] * 3


def test_outputs_without_an_element_are_no_proof():
    empty = np.zeros((10, 0, 4), np.float32)
    result = verdict({"boxes": empty}, {"boxes": empty})
    assert result.problems == ("no output has an element that can be compared, so nothing was compared",)
    assert not result.held
    assert found(result, "cosine").note == "not checked: nothing in boxes could be compared"
    assert verdict({"boxes": empty, "a": SCORES}, {"boxes": empty, "a": SCORES}).held
    ids = np.zeros((10, 0), np.int64)
    result = verdict({"ids": ids}, {"ids": ids}, exact=True)
    assert not result.held
    assert found(result, "agreement").note == "not checked: nothing in ids could be compared"
    assert found(result, "max_error").note == "not checked: no float output"


def test_no_element_of_integer_outputs_may_change_in_an_exact_chain():
    ids = np.arange(100)
    changed = ids.copy()
    changed[3] = 0
    result = verdict({"ids": ids}, {"ids": changed}, exact=True)
    assert (found(result, "agreement").limit, found(result, "agreement").held) == (">= 1", False)
    assert verdict({"ids": ids}, {"ids": changed}).held


def test_the_signature_says_whether_axis_0_counts_samples():
    state = RNG.normal(size=(4, 5))
    specs = (TensorSpec("state", "float64", (4, 5)), TensorSpec("y", "float32", ("batch", 6)))
    result = judge(
        [{"state": state, "y": SCORES[:4]}] * 2,
        [{"state": state, "y": SCORES[:4]}] * 2,
        toy(8),
        signature=Signature(SIGNATURE.inputs, specs),
        limits=Limits(),
        exact=False,
    )
    assert [(output.name, output.rows) for output in result.outputs] == [("state", 2), ("y", 8)]


def test_batches_that_somebody_reads_anyway_are_made_once():
    class Once(ToyData):
        def batches(self):
            raise AssertionError("read again")

    batches = list(toy(10).batches())
    data = Once({"x": np.zeros((10, 2), np.float32)})
    assert verdict({"y": SCORES}, {"y": SCORES}, data, batches=batches).held


def test_a_metric_that_ends_the_process_is_an_error_of_the_metric():
    class Leaves:
        unit, better, needs_labels = "", "higher", False

        def per_sample(self, inputs, outputs, labels):
            raise SystemExit(0)

    with pytest.raises(GivenError, match="The metric Leaves failed: SystemExit: 0"):
        verdict({"y": SCORES}, {"y": SCORES}, metric=Leaves())


def test_a_metric_in_which_there_is_nothing_to_lose_is_told() -> None:
    same = {"y": SCORES}
    shifted = toy(10, labels=LABELS + 7)
    assert "the original itself scores 0 in top1" in verdict(same, same, shifted, metric=load_metric("top1")).notes[0]
    assert verdict(same, same, toy(10, labels=LABELS), metric=load_metric("top1")).notes == ()
