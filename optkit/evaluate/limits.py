"""The limits a result must hold: what they mean, how they are written, which apply by default."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError

from optkit.errors import UsageError

EXACT_MAX_ERROR = 1e-3
"""Default ``max_error`` of a chain that changes nothing but float noise."""
COSINE = 0.99
"""Default ``cosine`` of any other chain."""
AGREEMENT = 0.98
"""Default ``agreement`` of any other chain: of class scores, and of integer, bool and string outputs."""

Number = Annotated[float, Strict()]
Share = Annotated[float, Strict(), Field(ge=0, le=1)]
Positive = Annotated[float, Strict(), Field(gt=0)]
Speedup = float | Literal["not-slower"]


class MetricDrop(BaseModel):
    """How much worse the task metric may get."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    max: Number
    """Largest drop, in the metric's own unit (0.005 = half a point of accuracy); positive = worse."""
    by: Literal["point", "bound"] = "point"
    """point: gate on the drop as measured; bound: on its one-sided 95 % upper bound, which needs more samples."""

    def __str__(self) -> str:
        return f"{self.max:g}" if self.by == "point" else f"{self.max:g} (95 % bound)"


def _as_drop(value: object) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number or isinstance(value, str):
        return {"max": value}
    return value


def _as_speedup(value: object) -> object:
    if value is None or value == "not-slower":
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return float(value)
    raise ValueError(f"speedup is 'not-slower' or a number above 0, like 1.5, and not {value!r}")


class LabelledLimits(BaseModel):
    """Limits on accuracy; as ``labelled:`` they apply only where labelled data are given."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    cosine: Annotated[float, Strict(), Field(ge=-1, le=1)] | None = None
    """Smallest mean cosine over the samples; every float output must hold it."""
    max_error: Annotated[float, Strict(), Field(ge=0)] | None = None
    """Largest absolute error over the output's standard deviation; every float output must hold it."""
    agreement: Share | None = None
    """Smallest share of equal answers: top-1 of class scores, elements of integer, bool and string outputs."""
    metric_drop: Annotated[
        MetricDrop | None, BeforeValidator(_as_drop, json_schema_input_type=float | MetricDrop | None)
    ] = None
    """Largest loss in the task metric: a number (gates on the measured drop) or {max: 0.005, by: bound}."""

    def _stated(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in type(self).model_fields if getattr(self, key) is not None}

    def merged(self, over: Self | None) -> Self:
        """These limits, with those that ``over`` states in place of the same ones here; None switches one off."""
        if over is None:
            return self
        return self.model_copy(update={key: getattr(over, key) for key in over.model_fields_set})

    def plain(self) -> dict[str, Any]:
        """Plain data that loads again as the same limits: what is not stated is left out, what is off is None."""
        return self.model_dump(mode="json", exclude_unset=True)

    def rules(self) -> tuple[tuple[str, str], ...]:
        """(name, ``>= 0.99``) of every limit stated, in the order of the documentation."""
        return tuple((key, rule(key, value)) for key, value in self._stated().items() if key != "labelled")


class Limits(LabelledLimits):
    """What a result must hold. Every limit is optional; ``resolved`` adds the defaults."""

    speedup: Annotated[Speedup | None, BeforeValidator(_as_speedup, json_schema_input_type=Speedup | None)] = None
    """``not-slower`` (fails only where it is measured ``slower``), or a number for the interval's lower end."""
    size_mb: Positive | None = None
    """Largest size of the model's files, MB (10^6 bytes)."""
    size_ratio: Positive | None = None
    """Largest size as a share of the original's size."""
    latency_ms: Positive | None = None
    """Largest median latency, milliseconds per call."""
    memory_mb: Positive | None = None
    """Largest peak memory of the result's own process, MB (10^6 bytes)."""
    labelled: LabelledLimits | None = None
    """Accuracy limits that apply only when labelled data are given, and otherwise print ``not checked``."""

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Limits:
        """Limits from ``--limit`` texts: ``cosine=0.99``, ``labelled.cosine=0.9``, ``metric_drop={max: 1, by: bound}``.

        Of two texts for one limit the later wins.

        Raises:
            UsageError: no ``=``, an unknown limit (with a suggestion), or a value that does not fit.
        """
        data: dict[str, Any] = {}
        for text in texts:
            key, equals, value = text.partition("=")
            if not equals or not key.strip() or not value.strip():
                raise UsageError(
                    f"The limit '{text}' cannot be read.",
                    expected="NAME=VALUE",
                    fix="write it like --limit cosine=0.995",
                )
            _put(data, key.strip().split("."), _value(value))
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise _explained(error) from error

    def merged(self, over: Self | None) -> Self:
        """These limits, with those that ``over`` states in place of the same ones here (``labelled`` key by key).

        What ``over`` states for all data also replaces what stands here under ``labelled`` alone.
        """
        both = super().merged(over)
        if over is None or self.labelled is None:
            return both
        new = over._stated().keys() - self._stated().keys()
        general = dict.fromkeys(new & LabelledLimits.model_fields.keys())
        return both.model_copy(update={"labelled": self.labelled.model_copy(update=general).merged(over.labelled)})

    def resolved(self, exact: bool, *, classes: bool = True, discrete: bool = False) -> Limits:
        """With the defaults where nothing is stated.

        A chain of ``exact`` passes: max_error <= 1e-3, and agreement >= 1 where the model has ``discrete`` (integer,
        bool or string) outputs. Any other chain: cosine >= 0.99, and agreement >= 0.98 where there are ``classes`` or
        discrete outputs. Always: speedup not-slower.
        """
        defaults = (
            Limits(max_error=EXACT_MAX_ERROR, agreement=1.0 if discrete else None, speedup="not-slower")
            if exact
            else Limits(cosine=COSINE, agreement=AGREEMENT if discrete or classes else None, speedup="not-slower")
        )
        return defaults.merged(self)

    def describe(self) -> str:
        """One line: ``cosine >= 0.99, speedup not-slower; with labelled data: metric_drop <= 0.01``."""
        line = ", ".join(f"{name} {text}" for name, text in self.rules()) or "none"
        labelled = () if self.labelled is None else self.labelled.rules()
        if not labelled:
            return line
        return f"{line}; with labelled data: " + ", ".join(f"{name} {text}" for name, text in labelled)


AT_LEAST = frozenset({"cosine", "agreement", "speedup"})
"""Limits that the measured value must reach; the others it must not exceed."""


def rule(name: str, value: object) -> str:
    """A limit as a sentence's end: ``>= 0.99``, ``<= 0.001``, ``not-slower``."""
    text = f"{value:.10g}" if isinstance(value, float) else str(value)
    return text if value == "not-slower" else f"{'>=' if name in AT_LEAST else '<='} {text}"


def _put(data: dict[str, Any], keys: list[str], value: object) -> None:
    for key in keys[:-1]:
        if not isinstance(data.get(key), dict):
            data[key] = {}
        data = data[key]
    data[keys[-1]] = value


def _value(text: str) -> object:
    """As YAML reads it, and ``1e-3`` (which YAML takes for text) as a number."""
    try:
        value = yaml.safe_load(text)
        return float(value) if isinstance(value, str) else value
    except (yaml.YAMLError, ValueError):
        return text.strip()


def _explained(error: ValidationError) -> UsageError:
    detail = error.errors()[0]
    where = [str(part) for part in detail["loc"]]
    if detail["type"] == "extra_forbidden":
        owner = LabelledLimits if where[0] == "labelled" else Limits
        known = list(MetricDrop.model_fields if where[-2:-1] == ["metric_drop"] else owner.model_fields)
        close = difflib.get_close_matches(where[-1], known, n=1)
        return UsageError(
            f"There is no limit '{'.'.join(where)}'.",
            expected="one of " + ", ".join(known),
            fix=f"did you mean '{close[0]}'?" if close else "see: optkit check --help",
        )
    message = detail["msg"].removeprefix("Value error, ")
    return UsageError(
        f"The limit {'.'.join(where)}={detail['input']} does not fit: {message}.",
        expected="a number" if where[-1] != "by" else "point or bound",
        fix="write it like --limit cosine=0.995 or --limit 'metric_drop={max: 0.005, by: bound}'",
    )
