"""The rows of large outputs, which are compared in parts: the figures are those of the whole arrays."""

import math

import numpy as np
import pytest

from optkit.evaluate.rows import OutputOptions
from tests.evaluate.toy import compare


def figures_of(a, b, mask):
    """Straight from the definitions, in float64, of the positions that the mask keeps."""
    rows = [(x[m].astype(float).ravel(), y[m].astype(float).ravel()) for x, y, m in zip(a, b, mask, strict=True)]
    one, other = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    error, spread = np.abs(other - one), one.std()
    shift = one.mean() if abs(one.mean()) > 3 * spread else 0.0
    moved = [(x - shift, y - shift) for x, y in rows]
    cosines = [x @ y / math.sqrt((x @ x) * (y @ y)) for x, y in moved]
    signal = sum(x @ x for x, _ in moved)
    return {
        "max_error": error.max(),
        "mean_error": error.mean(),
        "max_error_std": error.max() / spread,
        "cosine": np.mean(cosines),
        "cosine_p1": np.percentile(cosines, 1),
        "cosine_worst": min(cosines),
        "worst_sample": int(np.argmin(cosines)),
        "sqnr_db": 10 * math.log10(signal / (error**2).sum()),
    }


@pytest.mark.parametrize("block", [1, 7, 40, 1 << 16])
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("masked", [False, True])
def test_a_row_larger_than_a_block_is_compared_in_parts(monkeypatch, block, offset, masked):
    """Logits [6, 5, 7]: the same figures as from the whole arrays, whatever the size of a block."""
    monkeypatch.setattr("optkit.evaluate.rows.BLOCK", block)
    rng = np.random.default_rng(7)
    a = (offset + rng.normal(size=(6, 5, 7))).astype(np.float32)
    b = a + rng.normal(scale=0.1, size=a.shape).astype(np.float32)
    mask = rng.random((6, 5)) < 0.6 if masked else np.ones((6, 5), bool)
    mask[:, 2] = True
    facts = compare(a, b, batch=4, inputs={"attention_mask": mask.astype(np.int64)} if masked else {}).result()
    for field, wanted in figures_of(a, b, mask).items():
        assert getattr(facts, field) == pytest.approx(wanted, rel=1e-9), field


def test_parts_of_a_row_keep_count_of_samples_and_of_what_is_not_finite(monkeypatch):
    monkeypatch.setattr("optkit.evaluate.rows.BLOCK", 4)
    a = np.ones((3, 5, 2), np.float32)
    b = a.copy()
    b[1, 3, 0] = b[1, 4, 1] = b[2, 0, 0] = np.nan
    a[0, 4, 1] = b[0, 4, 1] = np.inf
    fidelity = compare(a, b, batch=2)
    assert fidelity.problems == [
        "output 'y': the result has NaN where the original has none, first in sample 1 (3 values)"
    ]
    assert fidelity.result().note.startswith("1 values are NaN or Inf in both and left out")
    assert fidelity.result().rows == 3


def test_a_row_that_is_masked_as_a_whole_counts_for_nothing(monkeypatch):
    a = np.random.default_rng(8).normal(size=(3, 4, 2))
    mask = np.array([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
    whole = compare(a, 2 * a, inputs={"attention_mask": mask}).result()
    monkeypatch.setattr("optkit.evaluate.rows.BLOCK", 3)
    parts = compare(a, 2 * a, inputs={"attention_mask": mask}).result()
    assert parts.mean_error == pytest.approx(np.abs(a[mask.astype(bool)]).mean(), rel=1e-12)
    assert (parts.cosine, parts.worst_sample) == pytest.approx((whole.cosine, whole.worst_sample), rel=1e-12)


def test_agreement_does_not_depend_on_the_size_of_a_block(monkeypatch):
    rng = np.random.default_rng(9)
    a, b = rng.normal(size=(2, 8, 3, 9))
    mask = (rng.random((8, 3)) < 0.7).astype(np.int64)
    found = []
    for block in (1, 30, 1 << 16):
        monkeypatch.setattr("optkit.evaluate.rows.BLOCK", block)
        facts = compare(a, b, options=OutputOptions(classes=True), inputs={"attention_mask": mask}).result()
        found.append((facts.top1, facts.top5))
    kept = mask.astype(bool)
    top1 = (a[kept].argmax(1) == b[kept].argmax(1)).mean()
    assert found == [(pytest.approx(top1), pytest.approx(found[0][1]))] * 3


def test_a_long_row_of_single_numbers_is_masked_by_the_number(monkeypatch):
    monkeypatch.setattr("optkit.evaluate.rows.BLOCK", 2)
    a = np.arange(10.0).reshape(2, 5)
    mask = np.array([[1, 1, 0, 1, 0], [0, 1, 1, 0, 0]])
    facts = compare(a, a + 99 * (1 - mask) + mask, inputs={"m": mask}, options=OutputOptions(mask="m")).result()
    assert (facts.max_error, facts.mean_error) == (1.0, 1.0)
