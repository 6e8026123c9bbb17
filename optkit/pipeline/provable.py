"""Refuses, before any work, budgets of a task metric that the data cannot show, and training code that is not there."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, floor, log, log10

from optkit.data.dataset import Dataset
from optkit.errors import DataError
from optkit.evaluate.metrics import Metric, metric_name, needs_labels
from optkit.evaluate.rows import trim
from optkit.evaluate.scoring import PairedScore, fit_metric
from optkit.passes._base import Pass
from optkit.passes._train.user import own_function
from optkit.pipeline.job import Job
from optkit.pipeline.reference import original_outputs


def check_search(job: Job, passes: Iterable[Pass]) -> None:
    """Passes that choose by the verdict on the split search need its labels where the limits are about a metric.

    Raises:
        DataError: ``metric_drop`` must hold, and the search data have no labels.
    """
    metric = job.load_metric()
    if job.limits.metric_drop is None or metric is None or _measurable(metric, job.splits["search"]):
        return
    choosing = [pass_.name() for pass_ in passes if "search" in pass_.reads()]
    if choosing:
        raise DataError(
            f"The pass '{choosing[0]}' cannot see the limit metric_drop, as the search data have no labels.",
            expected="labels in the search data, as in the evaluation data",
            fix="give labelled ones with --data search=FILE, or none, so that some evaluation samples are set aside",
        )


def check_training(job: Job, passes: Iterable[Pass]) -> None:
    """What passes that train name of the user's code is there: the training function, hooks, students.

    Raises:
        PassError: it is not, or its code cannot be imported.
    """
    training = [pass_ for pass_ in passes if pass_.kind == "trains"]
    named = [job.training.function] if training else []
    for reference in dict.fromkeys([*named, *(each for pass_ in training for each in pass_.code())]):
        if reference is not None:
            own_function(reference)


def not_proved(job: Job) -> list[str]:
    """What a dry run leaves open, as ``check_provable`` runs the original."""
    return ["whether the samples can prove the limit by: bound shows in the run"] if _by_bound(job) else []


def _by_bound(job: Job) -> list[float]:
    """The budgets that are held by their bound."""
    stated = (job.limits.metric_drop, job.limits.labelled.metric_drop if job.limits.labelled else None)
    return [each.max for each in stated if each is not None and each.by == "bound"]


def check_provable(job: Job) -> None:
    """A ``by: bound`` budget that the evaluation samples could not prove even if nothing were lost.

    Only where each sample is right or wrong. Of other metrics, as perplexity, many samples move a little, and that
    little says how sure one can be; of groups likewise.

    Raises:
        DataError: it is smaller than the smallest that they could, which the message says.
    """
    budgets = _by_bound(job)
    metric, data = job.load_metric(), job.splits["evaluation"]
    if not budgets or metric is None or data.groups is not None or not _measurable(metric, data):
        return
    paired = _lossless(job, metric, data)
    if not paired.all_or_nothing:
        return
    smallest, budget = paired.result().smallest_provable, min(budgets)
    if smallest > budget:
        raise DataError(
            f"{data.count} evaluation samples cannot prove that {metric_name(metric)} drops by at most {budget:g}: "
            f"the smallest budget that they could is {_up(smallest):g}.",
            expected=f"{_enough(budget)}a limit of at least {_up(smallest):g}",
            fix=f"give more evaluation data{_aside(job)}, raise the limit, "
            "or hold it against the drop as measured, with by: point",
        )


def _measurable(metric: Metric, data: Dataset) -> bool:
    return not data.synthetic and (data.labels is not None or not needs_labels(metric))


def _lossless(job: Job, metric: Metric, data: Dataset) -> PairedScore:
    """The original against itself."""
    fit = job.splits.get("fit")
    fit_metric(metric, None if fit is None else (fit, original_outputs(job, fit)), job.original.signature)
    paired = PairedScore(metric)
    for batch, outputs in zip(data.batches(), original_outputs(job, data), strict=True):
        paired.add(trim(batch, job.original.signature), outputs, outputs)
    return paired


def _enough(budget: float) -> str:
    """How many samples it would take: with no event in n, the bound of its rate is 1 - 0.05^(1/n)."""
    return f"at least {ceil(log(0.05) / log(1 - budget))} samples, or " if 0 < budget < 1 else ""


def _aside(job: Job) -> str:
    """That some of what was given is not among these samples, where it is so."""
    search, data = job.splits.get("search"), job.splits["evaluation"]
    if search is None or search.source != data.source:
        return ""
    return f" or search data of their own ({search.count} samples are set aside for that)"


def _up(value: float) -> float:
    """Two digits, rounded up."""
    exponent = floor(log10(value)) - 1
    return float(f"{ceil(value / 10.0**exponent)}e{exponent}")
