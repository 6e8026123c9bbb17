import math

import numpy as np
import pytest

from optkit.data.dataset import Batch
from optkit.errors import DataError, GivenError, PackageError
from optkit.evaluate.metrics import load_metric, metric_name
from optkit.evaluate.scoring import PairedScore, fit_metric
from optkit.evaluate.task_metrics import edit_distance
from optkit.model.signature import Signature
from tests.evaluate.toy import ToyData


def score(spec, outputs, labels=None, inputs=None, worse=None):
    """Score of the original, and the whole result, over one batch."""
    paired = PairedScore(load_metric(spec))
    size = len(next(iter(outputs.values())))
    paired.add(Batch(inputs or {}, size, labels), outputs, worse or outputs)
    return paired.result()


LOGITS = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 5.0], [0.0, 3.0, 1.0], [9.0, 1.0, 2.0]])


def test_top1():
    found = score("top1", {"y": LOGITS}, np.array([0, 2, 1, 1]), worse={"y": LOGITS[:, ::-1]})
    assert (found.original, found.result, found.drop) == (0.75, 0.25, 0.5)
    assert (found.name, found.better, found.samples) == ("top1", "higher", 4)


def test_top1_of_one_score_a_sample_needs_a_threshold():
    outputs, labels = {"y": np.array([[0.4], [-2.0], [0.1]])}, np.array([1, 0, 0])
    assert score({"name": "top1", "args": {"threshold": 0}}, outputs, labels).original == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="no threshold is given"):
        score("top1", outputs, labels)


def test_top1_of_chosen_classes_and_of_names():
    assert score("top1", {"y": np.array([1, 2, 2])}, np.array([1, 2, 0])).original == pytest.approx(2 / 3)
    assert score("top1", {"y": np.array(["a", "b"])}, np.array(["a", "a"])).original == 0.5
    with pytest.raises(DataError, match="the labels are <U1"):
        score("top1", {"y": LOGITS}, np.array(list("abca")))


def test_top5():
    scores = np.tile(np.arange(8.0), (3, 1))
    assert score("top5", {"y": scores}, np.array([7, 3, 2])).original == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="a label is no class"):
        score("top5", {"y": scores}, np.array([8, 0, 0]))


def test_f1():
    outputs, labels = {"y": np.array([1, 1, 1, 0, 0, 2])}, np.array([1, 1, 0, 1, 0, 0])
    assert score("f1", outputs, labels).original == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert score({"name": "f1", "args": {"positive": 2}}, outputs, labels).original == 0


def test_mse_and_mae_are_better_when_lower():
    outputs, labels = {"y": np.array([[1.0], [2.0], [4.0]])}, np.array([1.0, 0.0, 1.0])
    found = score("mse", outputs, labels, worse={"y": np.array([[1.0], [2.0], [5.0]])})
    assert (found.original, found.better) == (pytest.approx(13 / 3), "lower")
    assert found.drop == pytest.approx((16 - 9) / 3)
    assert score("mae", outputs, labels).original == pytest.approx(5 / 3)
    with pytest.raises(DataError, match="one number for every number"):
        score("mse", {"y": np.ones((3, 2))}, labels)


def test_perplexity_of_uniform_and_known_predictions():
    ids = np.array([[1, 2, 3, 0], [3, 3, 0, 0]])
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": mask}
    logits = np.zeros((2, 4, 5), np.float32)
    found = score("perplexity", {"logits": logits}, inputs=inputs)
    assert found.original == pytest.approx(5.0, rel=1e-6)
    logits[1, 0, 3] = math.log(4)
    expected = math.exp((3 * math.log(5) + math.log(8 / 4)) / 4)
    assert score("perplexity", {"logits": logits}, inputs=inputs).original == pytest.approx(expected, rel=1e-6)
    with pytest.raises(DataError, match="no input 'input_ids'"):
        score("perplexity", {"logits": logits})


@pytest.mark.parametrize(
    ("a", "b", "edits"), [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("ab", "ab", 0)]
)
def test_edit_distance(a, b, edits):
    assert edit_distance(a, b) == edits


def test_cer_of_texts_and_of_tokens():
    assert score("cer", {"y": np.array(["kitten", "a"])}, np.array(["sitting", "a"])).original == pytest.approx(3 / 8)
    tokens = np.array([[5, 6, 0, 0], [7, 0, 0, 0]])
    labels = np.array([[5, 6, 6], [8, 0, 0]])
    assert score({"name": "cer", "args": {"ignore": [0]}}, {"y": tokens}, labels).original == pytest.approx(2 / 4)
    with pytest.raises(DataError, match="texts for texts"):
        score("cer", {"y": np.array(["a"])}, np.array([[1, 2]]))


def test_spearman():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    values, labels = rng.normal(size=40).round(1), rng.normal(size=40)
    found = score("spearman", {"y": values}, labels)
    assert found.original == pytest.approx(spearmanr(values, labels).statistic, abs=1e-12)


def test_spearman_of_two_embeddings():
    a = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    b = np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
    spec = {"name": "spearman", "args": {"output": "a", "other": "b"}}
    assert score(spec, {"a": a, "b": b}, np.array([5.0, 3.0, 1.0])).original == pytest.approx(1.0)


def blobs(count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    hidden = rng.normal(scale=0.3, size=(count, 4, 6)) + np.eye(6)[labels][:, None]
    mask = np.ones((count, 4), np.int64)
    mask[::2, 2:] = 0
    hidden[::2, 2:] = 50
    return ToyData({"attention_mask": mask}, labels=labels), [{"h": hidden[i : i + 4]} for i in range(0, count, 4)]


def test_probe_is_fitted_once_and_then_frozen():
    probe = load_metric("probe")
    fit_metric(probe, blobs(60, 0), Signature())
    data, outputs = blobs(40, 1)
    paired = PairedScore(probe)
    for batch, made in zip(data.batches(), outputs, strict=True):
        paired.add(batch, made, {"h": np.zeros_like(made["h"])})
    found = paired.result()
    assert found.original >= 0.95
    assert found.drop > 0.3
    fit_metric(probe, None, Signature())


def test_probe_needs_labelled_fit_data_and_scikit_learn(monkeypatch):
    with pytest.raises(DataError, match="no labelled fit data"):
        fit_metric(load_metric("probe"), None, Signature())
    data, outputs = blobs(8, 0)
    with pytest.raises(DataError, match="fewer than two classes"):
        fit_metric(load_metric("probe"), (ToyData(data.inputs, labels=np.zeros(8, int)), outputs), Signature())
    monkeypatch.setitem(__import__("sys").modules, "sklearn.linear_model", None)
    with pytest.raises(PackageError, match="scikit-learn"):
        fit_metric(load_metric("probe"), (data, outputs), Signature())


class Fitting:
    unit, better, needs_labels = "", "higher", False

    def fit(self, inputs, outputs, labels):
        self.seen = inputs["x"].shape, outputs["h"].shape, labels.shape

    def per_sample(self, inputs, outputs, labels):
        return np.ones(len(outputs["h"]))


def test_fit_gets_everything_at_once_padded_to_one_shape():
    metric = Fitting()
    outputs = [{"h": np.ones((4, 3, 2))}, {"h": np.ones((2, 5, 2))}]
    fit_metric(metric, (ToyData({"x": np.ones((6, 2))}, labels=np.zeros(6)), outputs), Signature())
    assert metric.seen == ((6, 2), (6, 5, 2), (6,))
    assert metric_name(metric) == "Fitting"


def test_which_output_is_scored():
    labels = np.array([0, 2, 1, 1])
    both = {"features": LOGITS[:, ::-1], "logits": LOGITS}
    assert score("top1", both, labels).original == 0.75
    assert score({"name": "top1", "args": {"output": "features"}}, both, labels).original == 0.25
    with pytest.raises(DataError, match="cannot tell which output"):
        score("top1", {"a": LOGITS, "b": LOGITS}, labels)
    with pytest.raises(DataError) as caught:
        score({"name": "top1", "args": {"output": "logit"}}, both, labels)
    assert caught.value.fix == "did you mean 'logits'?"


@pytest.mark.parametrize(
    ("spec", "message", "fix"),
    [
        ("top2", "There is no metric 'top2'.", "did you mean"),
        ({"name": "f1", "args": {"positiv": 1}}, "The metric f1 has no option 'positiv'.", "did you mean 'positive'?"),
        ({"name": "probe", "args": {"C": -1}}, "The metric probe: C=-1 does not fit", "give another value"),
        ({"nam": "f1"}, "The metric {'nam': 'f1'} cannot be read.", "write it like"),
        ("mine:Metric", "The metric 'mine:Metric' is code, and code may not be named here.", "name it yourself"),
    ],
)
def test_load_metric_refuses(spec, message, fix):
    with pytest.raises(GivenError) as caught:
        load_metric(spec)
    assert caught.value.message.startswith(message)
    assert caught.value.fix.startswith(fix)


CODE = """
import numpy as np
class Share:
    unit, better = "", "higher"
    def __init__(self, factor=1.0):
        self.factor = factor
    def per_sample(self, inputs, outputs, labels):
        return self.factor * (outputs["y"] == labels)
class Broken(Share):
    def per_sample(self, inputs, outputs, labels):
        raise ValueError("ouch")
class Short(Share):
    def per_sample(self, inputs, outputs, labels):
        return np.ones(1)
class NoMetric:
    pass
"""


def test_a_metric_from_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)

    def load(name, args=None):
        return load_metric({"name": f"mine.py:{name}", "args": args or {}}, allow_code=True, base=tmp_path)

    outputs, labels = {"y": np.array([1, 2])}, np.array([1, 1])
    assert score(load("Share", {"factor": 2.0}), outputs, labels).original == 1.0
    with pytest.raises(GivenError, match="The metric Broken failed: ValueError: ouch"):
        score(load("Broken"), outputs, labels)
    with pytest.raises(GivenError, match=r"gave the shape \[1\] for 2 samples"):
        score(load("Short"), outputs, labels)
    with pytest.raises(GivenError, match="lacks unit, better or per_sample"):
        load("NoMetric")
    with pytest.raises(GivenError, match="has no function 'Nothing'"):
        load("Nothing")


def test_a_metric_whose_class_ends_the_process(tmp_path):
    (tmp_path / "mine.py").write_text("class Leaves:\n    def __init__(self):\n        raise SystemExit(0)\n")
    with pytest.raises(GivenError, match=r"The metric 'mine.py:Leaves' cannot be made: SystemExit: 0"):
        load_metric("mine.py:Leaves", allow_code=True, base=tmp_path)
