"""A task metric over both models, batch by batch, and its fit on the original."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import TypeVar

import numpy as np

from optkit.data.dataset import Array, Arrays, Batch, Dataset
from optkit.errors import DataError, GivenError, OptkitError
from optkit.evaluate.metrics import Fitted, Metric, OverAll, Prepared, Scaled, metric_name, needs_labels
from optkit.evaluate.rows import Float64, trim
from optkit.evaluate.statistics import as_table, by_group, paired_difference
from optkit.evaluate.task_metrics import ShippedMetric
from optkit.model.manifest import MetricResult
from optkit.model.signature import Signature

T = TypeVar("T")


class PairedScore:
    """Collects a metric's per-sample numbers of original and result, float64[N] or [N, 2] each."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._rows: tuple[list[Float64], list[Float64]] = ([], [])
        self._groups: list[Array] = []

    def add(self, batch: Batch, original: Arrays, result: Arrays) -> None:
        """Score one batch of both.

        Raises:
            DataError: labels or outputs are not what the metric takes.
            GivenError: a user's metric fails, or gives another number of values than samples.
        """
        for rows, outputs in zip(self._rows, (original, result), strict=True):
            rows.append(self._score(batch, outputs))
        if batch.groups is not None:
            self._groups.append(batch.groups)

    def _score(self, batch: Batch, outputs: Arrays) -> Float64:
        values = _guarded(
            self._metric,
            lambda: np.asarray(self._metric.per_sample(batch.inputs, outputs, batch.labels), np.float64),
        )
        if len(values.shape) not in (1, 2) or values.shape[0] != batch.size or values.shape[1:] not in ((), (2,)):
            raise GivenError(
                f"The metric {metric_name(self._metric)} gave the shape {list(values.shape)} for {batch.size} samples.",
                expected=f"float64[{batch.size}] or float64[{batch.size}, 2] (numerator, denominator)",
                fix="mend its per_sample",
            )
        return values

    @property
    def all_or_nothing(self) -> bool:
        """Whether every sample so far is simply right or wrong: 1 or 0."""
        return all(bool(np.isin(rows, (0.0, 1.0)).all()) for side in self._rows for rows in side)

    def result(self) -> MetricResult:
        """Scores, drop and its interval; the drop is positive where the result is worse."""
        metric = self._metric
        original, result = (self._table(np.concatenate(rows)) for rows in self._rows)
        difference = paired_difference(
            original,
            result,
            higher_is_better=metric.better == "higher",
            curve=metric.curve if isinstance(metric, Scaled) else np.asarray,
        )
        return MetricResult(
            name=metric_name(metric),
            unit=metric.unit,
            better=metric.better,
            original=difference.original,
            result=difference.result,
            drop=difference.drop,
            low=difference.low,
            high=difference.high,
            bound=difference.bound,
            samples=difference.units,
            smallest_provable=difference.smallest_provable,
        )

    def _table(self, rows: Float64) -> Float64:
        metric = self._metric
        whole = _guarded(metric, lambda: metric.whole(rows)) if isinstance(metric, OverAll) else rows
        return by_group(as_table(whole), np.concatenate(self._groups) if self._groups else None)


def fit_metric(metric: Metric, fit: tuple[Dataset, Iterable[Arrays]] | None, signature: Signature) -> None:
    """Fit a metric that wants it on the original's outputs over split ``fit``; one that is fitted stays as it is.

    Raises:
        DataError: there is no such split, it is synthetic, or has no labels.
    """
    if not isinstance(metric, Fitted) or (fit is None and getattr(metric, "fitted", False)):
        return
    name = metric_name(metric)
    if fit is None or fit[0].synthetic or (fit[0].labels is None and needs_labels(metric)):
        raise DataError(
            f"The metric {name} must be fitted first, and there are no labelled fit data.",
            expected="labelled samples that are not used for evaluation",
            fix="give them with --data fit=FILE",
        )
    inputs: list[Arrays] = []
    outputs: list[Arrays] = []
    for batch, made in zip_longest(fit[0].batches(), fit[1]):
        if batch is None or made is None:
            raise DataError(
                f"The fit data of the metric {name} and the original's outputs on them differ in length.",
                expected="one dict of outputs a batch",
                fix="run the original on the same fit data",
            )
        real = trim(batch, signature)
        prepared = isinstance(metric, Prepared)
        inputs.append({} if prepared else real.inputs)
        outputs.append(metric.prepare(real.inputs, made) if isinstance(metric, Prepared) else made)
    _guarded(metric, lambda: metric.fit(_joined(inputs), _joined(outputs), fit[0].labels))


def _joined(parts: Sequence[Arrays]) -> Arrays:
    """Batches put together along axis 0; where other axes differ, the shorter ones are padded with zeros."""
    return {name: _stacked([part[name] for part in parts]) for name in parts[0]} if parts else {}


def _stacked(arrays: Sequence[Array]) -> Array:
    shapes = np.array([array.shape[1:] for array in arrays])
    if arrays[0].ndim < 2 or (shapes == shapes[0]).all():
        return np.concatenate([np.atleast_1d(array) for array in arrays])
    largest = shapes.max(axis=0)
    padded = [np.pad(array, [(0, 0), *((0, int(gap)) for gap in largest - array.shape[1:])]) for array in arrays]
    return np.concatenate(padded)


def _guarded(metric: Metric, call: Callable[[], T]) -> T:
    """Run a metric's method; what a user's code raises is the user's error, what a shipped one raises is a bug."""
    try:
        return call()
    except OptkitError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(metric, ShippedMetric):
            raise
        raise GivenError(
            f"The metric {metric_name(metric)} failed: {type(error).__name__}: {error}",
            expected="fit and per_sample that take (inputs, outputs, labels) of a batch",
            fix="mend it, or name another metric",
        ) from error
