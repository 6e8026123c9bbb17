"""What a task metric is, and how one is named."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from pydantic import ValidationError

from optkit.data.dataset import Array, Arrays
from optkit.errors import GivenError
from optkit.evaluate.rows import Float64
from optkit.evaluate.task_metrics import (
    F1,
    Better,
    Cer,
    Mae,
    Mse,
    Perplexity,
    Probe,
    ShippedMetric,
    Spearman,
    Top1,
    Top5,
)
from optkit.model.user_code import named

__all__ = ["SHIPPED", "Fitted", "Metric", "OverAll", "Prepared", "Scaled", "load_metric", "metric_name", "needs_labels"]


@runtime_checkable
class Metric(Protocol):
    """Scores a model's outputs, sample by sample; the score over data is sum/sum.

    Optional: ``name`` (default: the class's), ``needs_labels`` (default True), and the methods of ``Fitted``,
    ``Prepared``, ``OverAll`` and ``Scaled``.
    """

    @property
    def unit(self) -> str:
        """Of the score; empty for shares."""

    @property
    def better(self) -> Better:
        """Which way is better."""

    def per_sample(self, inputs: Arrays, outputs: Arrays, labels: Array | None) -> Float64:
        """float64[N], or float64[N, 2] (numerator, denominator), of one batch of N samples."""


@runtime_checkable
class Fitted(Protocol):
    """A metric that learns something from the original first."""

    def fit(self, inputs: Arrays, outputs: Arrays, labels: Array | None) -> None:
        """Once, with all of split ``fit``: inputs, the original's outputs, labels [N]; shorter rows padded with 0."""


@runtime_checkable
class Prepared(Protocol):
    """A metric that needs to keep less than the outputs for its fit."""

    def prepare(self, inputs: Arrays, outputs: Arrays) -> Arrays:
        """What ``fit`` gets as ``outputs`` of one batch (its ``inputs`` are then empty)."""


@runtime_checkable
class OverAll(Protocol):
    """A metric that must see all samples at once, e.g. for ranks."""

    def whole(self, rows: Float64) -> Float64:
        """From everything ``per_sample`` gave to float64[N] or float64[N, 2] whose sum/sum is the score."""


@runtime_checkable
class Scaled(Protocol):
    """A metric whose score is a function of sum/sum."""

    def curve(self, ratios: Float64) -> Float64:
        """Elementwise, e.g. ``exp``."""


SHIPPED: Mapping[str, type[ShippedMetric]] = {
    cls.name: cls for cls in (Top1, Top5, F1, Mse, Mae, Perplexity, Cer, Spearman, Probe)
}
"""Name -> class of every metric that comes with optkit."""


def metric_name(metric: Metric) -> str:
    """Its ``name``, else its class's."""
    return str(getattr(metric, "name", type(metric).__name__))


def needs_labels(metric: Metric) -> bool:
    """Whether it cannot score without labels."""
    return bool(getattr(metric, "needs_labels", True))


def load_metric(spec: str | Mapping[str, Any] | Metric, *, allow_code: bool = False, base: Path = Path()) -> Metric:
    """The metric that a recipe or flag names: ``top1``, ``{name: f1, args: {positive: 2}}`` or ``pkg.module:Class``.

    ``FILE.py:Class`` works as well, relative to ``base``. Code runs only with ``allow_code``.

    Raises:
        GivenError: no such metric or option (with a suggestion), or code that is not allowed, fails or is no metric.
    """
    if not isinstance(spec, str | Mapping):
        return spec
    name, args = _parts(spec)
    if ":" in name:
        if not allow_code:
            raise _refused_code(name)
        return _from_code(name, args, base)
    if name not in SHIPPED:
        close = difflib.get_close_matches(name, SHIPPED, n=1)
        raise GivenError(
            f"There is no metric '{name}'.",
            expected="one of " + ", ".join(SHIPPED) + ", or pkg.module:Class",
            fix=f"did you mean '{close[0]}'?" if close else "name one of these",
        )
    try:
        return cast(Metric, SHIPPED[name](**args))
    except ValidationError as error:
        raise _wrong_option(name, error) from error


def _parts(spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(spec, str):
        return spec, {}
    args = spec.get("args") or {}
    if set(spec) - {"name", "args"} or not isinstance(spec.get("name"), str) or not isinstance(args, Mapping):
        raise GivenError(
            f"The metric {dict(spec)} cannot be read.",
            expected="a name, or {name: NAME, args: {option: value}}",
            fix="write it like metric: {name: f1, args: {positive: 2}}",
        )
    return spec["name"], dict(args)


def _wrong_option(name: str, error: ValidationError) -> GivenError:
    detail = error.errors()[0]
    option = str(detail["loc"][0])
    known = list(SHIPPED[name].model_fields)
    if detail["type"] == "extra_forbidden":
        close = difflib.get_close_matches(option, known, n=1)
        return GivenError(
            f"The metric {name} has no option '{option}'.",
            expected="one of " + ", ".join(known),
            fix=f"did you mean '{close[0]}'?" if close else "remove it",
        )
    described = SHIPPED[name].model_fields[option].description or ""
    return GivenError(
        f"The metric {name}: {option}={detail['input']!r} does not fit: {detail['msg']}.",
        expected=described.replace("\n", " "),
        fix="give another value",
    )


def _refused_code(reference: str) -> GivenError:
    return GivenError(
        f"The metric '{reference}' is code, and code may not be named here.",
        expected="a shipped metric: " + ", ".join(SHIPPED),
        fix=f"name it yourself, with --metric {reference} or in the recipe",
    )


def _from_code(reference: str, args: dict[str, Any], base: Path) -> Metric:
    found = named(reference, base=base, what="metric", blame=GivenError)
    try:
        metric = found(**args) if isinstance(found, type) else found
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise GivenError(
            f"The metric '{reference}' cannot be made: {type(error).__name__}: {error}",
            expected="a class that takes the args given with it",
            fix="mend it, or name another metric",
        ) from error
    if not isinstance(metric, Metric):
        raise GivenError(
            f"The metric '{reference}' lacks unit, better or per_sample.",
            expected="unit: str, better: 'higher' or 'lower', per_sample(inputs, outputs, labels) -> float64[N]",
            fix="add what is missing",
        )
    return metric
