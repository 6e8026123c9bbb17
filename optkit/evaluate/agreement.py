"""Whether an output looks like class scores, and how often original and result choose the same class."""

from __future__ import annotations

import re

import numpy as np

from optkit.data.dataset import Array
from optkit.evaluate.rows import Float64, Mask

SCORE_NAMES = re.compile(r"logit|prob|score|class", re.IGNORECASE)
"""Output names that mean class scores."""

KNOWN_SHARE = 0.25
"""Labels that stay below the last class count only if the original itself hits at least this share of them."""


class ClassScores:
    """Top-1 and top-5 agreement of one output [rows, classes].

    Without ``OutputOptions.classes`` an output of rank 2 is taken for class scores if

    - its name contains logit, prob, score or class, or
    - the labels are integers within [0, classes) and reach the last class, or the original's arg max hits at least a
      quarter of them. (The labels 0 and 1 of a sentence also lie within its embedding's 384 dimensions.)
    """

    def __init__(self, name: str, asked: bool | None) -> None:
        self._name = name
        self._asked = asked
        self._rows = self._same = self._among = self._classes = 0
        self._labelled = self._hits = 0
        self._highest = -1
        self._labels_fit = True

    def may_be(self, classes: int, rank: int) -> bool:
        """Whether an output of this rank with ``classes`` entries on its last axis can hold class scores."""
        return classes >= 2 and self._asked is not False and (rank == 2 or bool(self._asked and rank > 2))

    def update(self, a: Float64, b: Float64, used: Mask | None, labels: Array | None, classes: int) -> None:
        """Add original and result float64[n, width] of an output whose last axis has ``classes`` entries."""
        self._classes = classes
        a, b = (_ordered(x).reshape(-1, classes) for x in (a, b))
        if used is not None:
            kept = used.reshape(-1, classes).any(axis=1)
            a, b = a[kept], b[kept]
        chosen = a.argmax(axis=1)
        self._rows += len(a)
        self._same += int((chosen == b.argmax(axis=1)).sum())
        self._among += int(((b > np.take_along_axis(b, chosen[:, None], 1)).sum(axis=1) < 5).sum())
        self._look_at(labels, chosen)

    def _look_at(self, labels: Array | None, chosen: Array) -> None:
        if labels is None or labels.dtype.kind not in "iu" or labels.shape != chosen.shape or not labels.size:
            self._labels_fit = False
            return
        self._labels_fit &= bool(labels.min() >= 0 and labels.max() < self._classes)
        self._highest = max(self._highest, int(labels.max()))
        self._labelled += labels.size
        self._hits += int((labels == chosen).sum())

    @property
    def recognised(self) -> bool:
        """Whether the output counts as class scores."""
        if not self._rows or self._asked is not None:
            return bool(self._rows and self._asked)
        known = self._highest == self._classes - 1 or self._hits >= KNOWN_SHARE * self._labelled
        return bool(SCORE_NAMES.search(self._name)) or (self._labels_fit and self._labelled > 0 and known)

    def figures(self) -> dict[str, float | None]:
        """``top1`` and ``top5`` of ``OutputFidelity``; top-5 only where there are more than five classes."""
        if not self.recognised:
            return {}
        return {
            "top1": self._same / self._rows,
            "top5": self._among / self._rows if self._classes > 5 else None,
        }


def _ordered(values: Float64) -> Float64:
    """NaN sorts below everything, so that arg max never lands on it."""
    return np.where(np.isnan(values), -np.inf, values) if np.isnan(values).any() else values
