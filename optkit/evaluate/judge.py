"""Is the result still the same model as the original? Streams both, batch by batch, into one verdict."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest

from optkit.data.dataset import Array, Arrays, Batch, Dataset
from optkit.errors import DataError, GivenError
from optkit.evaluate.checks import (
    NO_METRIC,
    accuracy_limits,
    add_limits,
    budget_limits,
    no_limit_missed,
    not_checked,
    would_pass,
)
from optkit.evaluate.fidelity import Fidelity
from optkit.evaluate.limits import Limits
from optkit.evaluate.metrics import Metric, metric_name, needs_labels
from optkit.evaluate.rows import OutputOptions, sample_axis, trim
from optkit.evaluate.scoring import PairedScore, fit_metric
from optkit.model.manifest import MeasuredOn, MetricResult, OutputFidelity, Verdict
from optkit.model.signature import Signature

__all__ = ["OutputOptions", "add_limits", "budget_limits", "judge", "measured_on"]


def judge(
    original: Iterable[Arrays],
    result: Iterable[Arrays],
    dataset: Dataset,
    *,
    signature: Signature,
    options: Mapping[str, OutputOptions] | None = None,
    metric: Metric | None = None,
    limits: Limits,
    exact: bool,
    dropped: Sequence[str] = (),
    may_change: frozenset[str] = frozenset(),
    fit: tuple[Dataset, Iterable[Arrays]] | None = None,
    batches: Iterable[Batch] | None = None,
) -> Verdict:
    """Compare two models' outputs over a dataset, by accuracy limits alone.

    Args:
        original: the original's outputs, one dict a batch of ``dataset``, padding rows already removed.
        result: the same of the result; both are consumed lazily and side by side.
        dataset: what both were run on; gives labels, groups and masks.
        signature: the original's; says where the sample axis of each input and output is.
        options: output name -> how to compare it.
        metric: task metric, measured where the data have the labels it needs.
        limits: as stated; the defaults are added here (``Limits.resolved``).
        exact: whether all passes promised to change nothing but float noise.
        dropped: outputs that a pass removed by declaration.
        may_change: ``outputs``, ``dims``, ``dtypes``, as the passes declared.
        fit: labelled data and the original's outputs on it, for a metric that is fitted.
        batches: those of ``dataset``, where somebody reads them anyway, so that they are made once.

    Raises:
        DataError: a metric on synthetic data, a top-level ``metric_drop`` that cannot be checked, a metric without the
            labels or fit data it needs, or a mask that does not fit.
        GivenError: ``options`` name an output that is not there, or a user's metric fails.
    """
    scored = metric if metric is not None and _measurable(metric, limits, dataset) else None
    if metric is None and limits.metric_drop is not None:
        raise DataError(
            "The limit metric_drop cannot be checked: no metric is named.",
            expected="a task metric and labelled data",
            fix="add --metric NAME, or move the limit under labelled:",
        )
    if scored is not None:
        fit_metric(scored, fit, signature)
    comparison = _Comparison(signature, dict(options or {}), frozenset(dropped), may_change)
    paired = None if scored is None else PairedScore(scored)
    for batch, before, after in comparison.aligned(dataset.batches() if batches is None else batches, original, result):
        real = trim(batch, signature)
        comparison.add(real, before, after)
        if paired is not None and not comparison.problems:
            paired.add(real, before, after)
    comparison.check_options()
    metrics = () if paired is None or comparison.problems else (paired.result(),)
    no_metric = "the metric was not measured, see the problems" if paired is not None else NO_METRIC
    outputs = tuple(output.result() for output in comparison.outputs)
    classes = any(output.top1 is not None for output in outputs)
    resolved = limits.resolved(exact, classes=classes, discrete=comparison.discrete)
    return _verdict(comparison, outputs, dataset, metrics, resolved, no_metric)


def _measurable(metric: Metric, limits: Limits, dataset: Dataset) -> bool:
    """Whether the data have what the metric needs; False only where ``labelled:`` limits allow for that.

    Raises:
        DataError: it is not allowed to be left out.
    """
    name = metric_name(metric)
    if dataset.synthetic:
        raise DataError(
            f"The metric {name} cannot be measured on synthetic data.",
            expected="real, labelled samples",
            fix="give some with --data evaluation=FILE, or leave out the metric",
        )
    if dataset.labels is not None or not needs_labels(metric):
        return True
    if limits.metric_drop is None and limits.labelled is not None:
        return False
    raise DataError(
        f"The metric {name} cannot be measured: the {dataset.split} data have no labels.",
        expected="one label a sample",
        fix="name the labels in the data source, or move the limit under labelled:",
    )


class _Comparison:
    """Every output's fidelity, and what went wrong before any tolerance."""

    def __init__(
        self,
        signature: Signature,
        options: dict[str, OutputOptions],
        dropped: frozenset[str],
        may_change: frozenset[str],
    ) -> None:
        self.samples = 0
        self.dropped = dropped
        self._signature = signature
        self._options = options
        self._may_change = may_change
        self._broken: dict[str, str] = {}
        """Output name (empty: all of them) -> what is wrong with its presence."""
        self._outputs: dict[str, Fidelity] = {}

    @property
    def problems(self) -> list[str]:
        """All problems so far, those of names first."""
        return [*self._broken.values(), *(text for output in self._outputs.values() for text in output.problems)]

    @property
    def outputs(self) -> list[Fidelity]:
        """In the original's order."""
        return list(self._outputs.values())

    @property
    def discrete(self) -> bool:
        """Whether an output is integer, bool or string."""
        return any(output.discrete for output in self._outputs.values())

    def aligned(
        self, batches: Iterable[Batch], original: Iterable[Arrays], result: Iterable[Arrays]
    ) -> Iterator[tuple[Batch, Arrays, Arrays]]:
        """The three side by side; one that ends before the others is a problem."""
        for number, (batch, before, after) in enumerate(zip_longest(batches, original, result)):
            if batch is None or before is None or after is None:
                who = [
                    name
                    for name, item in (("data", batch), ("original's outputs", before), ("result's outputs", after))
                    if item is None
                ]
                self._broken[""] = f"the {' and the '.join(who)} end after {number} batches, the others do not"
                return
            yield batch, before, after

    def add(self, batch: Batch, before: Arrays, after: Arrays) -> None:
        """Compare the outputs of one batch by name."""
        wanted = [name for name in before if name not in self.dropped]
        for name in wanted:
            output = self._outputs.get(name) or self._outputs.setdefault(name, self._started(name, before[name]))
            if name in after:
                output.update(before[name], after[name], batch)
            else:
                self._break(name, f"missing in the result, first in sample {self.samples}")
        if "outputs" not in self._may_change:
            for name in sorted(after.keys() - before.keys()):
                self._break(name, "the result has it, the original does not")
        self.samples += batch.size

    def _started(self, name: str, first: Array) -> Fidelity:
        rowwise = sample_axis(self._signature, name, first.shape)
        return Fidelity(name, self._options.get(name), self._may_change, rowwise)

    def _break(self, name: str, text: str) -> None:
        self._broken.setdefault(name, f"output '{name}': {text}")

    def check_options(self) -> None:
        """Options for an output that is not there are a mistake in the recipe."""
        known = [*self._outputs, *self.dropped]
        for name in sorted(self._options.keys() - set(known)):
            if not self._outputs:
                return
            close = difflib.get_close_matches(name, known, n=1)
            raise GivenError(
                f"The options under outputs: name '{name}', which is no output of the model.",
                expected="one of " + ", ".join(known),
                fix=f"did you mean '{close[0]}'?" if close else "remove it",
            )

    def finished_problems(self) -> tuple[str, ...]:
        """All problems, also that there was nothing to compare."""
        problems = self.problems
        if not problems and not self.samples:
            problems = ["there are no samples, so nothing was compared"]
        elif not problems and not self._outputs:
            problems = ["original and result share no output, so nothing was compared"]
        elif not problems and not any(output.compared for output in self._outputs.values()):
            problems = ["no output has an element that can be compared, so nothing was compared"]
        return tuple(problems)


def _verdict(
    comparison: _Comparison,
    outputs: tuple[OutputFidelity, ...],
    dataset: Dataset,
    metrics: tuple[MetricResult, ...],
    limits: Limits,
    no_metric: str,
) -> Verdict:
    problems = comparison.finished_problems()
    metric = metrics[0] if metrics else None
    checked = accuracy_limits(limits, outputs, metric, no_metric=no_metric)
    if limits.labelled is not None:
        unlabelled = "no labelled data" if dataset.labels is None and metric is None else ""
        checked += (
            not_checked(limits.labelled, unlabelled, prefix="labelled.")
            if unlabelled
            else accuracy_limits(limits.labelled, outputs, metric, no_metric=no_metric, prefix="labelled.")
        )
    return Verdict(
        held=no_limit_missed(checked, problems),
        outputs=outputs,
        metrics=metrics,
        limits=checked,
        problems=problems,
        dropped_outputs=tuple(sorted(comparison.dropped)),
        measured_on=measured_on(dataset, comparison.samples),
        would_pass=would_pass(checked),
        notes=tuple(_idle(metric) for metric in metrics if metric.better == "higher" and metric.original == 0),
    )


def _idle(metric: MetricResult) -> str:
    """About a metric in which there is nothing to lose."""
    return f"the original itself scores 0 in {metric.name}, so that it shows no loss: do the labels fit its outputs?"


def measured_on(dataset: Dataset, samples: int) -> MeasuredOn:
    """What a verdict on ``samples`` samples of the dataset says about where it comes from."""
    return MeasuredOn(
        split=dataset.split,
        source=dataset.source,
        samples=samples,
        batch=dataset.batch,
        synthetic=dataset.synthetic,
    )
