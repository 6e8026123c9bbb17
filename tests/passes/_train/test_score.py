"""What of a verdict decides which weights are better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from optkit.model.manifest import MeasuredOn, MetricResult, OutputFidelity, Verdict
from optkit.passes._train.score import Score, score, score_of
from tests.passes._train.jobs import context, digits, module_of


def verdict(*cosines: float | None, better: Any = None, result: float = 0.5, **fields: Any) -> Verdict:
    outputs = tuple(
        OutputFidelity(name=str(at), dtype="float32", rows=4, cosine=each) for at, each in enumerate(cosines)
    )
    scored = MetricResult(
        name="m", better=better or "higher", original=1, result=result, drop=0, low=0, high=0, bound=0, samples=4,
        smallest_provable=0,
    )  # fmt: skip
    measured = MeasuredOn(split="search", source="", samples=4, batch=4, synthetic=False)
    given = {"held": True, "outputs": outputs, "metrics": (scored,) if better else (), "limits": (), **fields}
    return Verdict(measured_on=measured, **given)


def test_the_metric_decides_in_its_better_direction_and_the_likeness_where_it_is_equal() -> None:
    assert score_of(verdict(0.9, better="higher", result=0.8)).rank > score_of(verdict(0.99, better="higher")).rank
    assert score_of(verdict(0.9, better="lower", result=0.8)).rank < score_of(verdict(0.9, better="lower")).rank
    assert score_of(verdict(0.9, better="higher")).rank < score_of(verdict(0.99, better="higher")).rank
    assert score_of(verdict(0.9, better="lower", result=0.25)).value == 0.25


def test_without_one_it_is_the_worst_output() -> None:
    found = score_of(verdict(0.9, 0.7, None))
    assert (found.metric, found.value) == ("cosine", 0.7)


def test_without_one_classes_that_are_the_same_count_before_likeness() -> None:
    plain, scores = verdict(0.9).outputs[0], verdict(0.8).outputs[0].model_copy(update={"top1": 0.75, "rows": 48})
    found = score_of(verdict(outputs=(plain, scores)))
    assert (found.metric, found.value, found.rank) == ("agreement", 0.75, (0.75, 0.775))
    assert found.slack == pytest.approx((0.74 * 0.26 / 48) ** 0.5)


def test_what_cannot_be_compared_is_worst() -> None:
    assert score_of(verdict(0.9, problems=("output is nan",))).value == -1
    assert score_of(verdict()).value == -1
    worse = score_of(verdict(0.1, better="lower", result=400.0))
    assert score_of(verdict(problems=("output is nan",))).rank < worse.rank


def test_the_original_is_like_itself_and_modes_are_left_as_they_were(tmp_path: Path) -> None:
    ctx = context(tmp_path, digits("digits_cnn"), metric=None)
    module = module_of(ctx).train()
    module.features[1].eval()
    assert score(module, ctx).value == pytest.approx(1, abs=1e-6)
    assert module.training
    assert not module.features[1].training
    assert module.features[4].training


def test_weights_that_are_no_numbers_are_worst(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    module = module_of(ctx)
    with torch.no_grad():
        module.layers[1].weight.fill_(float("nan"))
    assert score(module, ctx).rank[0] < score(module_of(ctx), ctx).rank[0]


def told(result: float, likeness: float, slack: float = 0.01) -> Score:
    return Score("top1", result, (result, likeness), slack)


def test_luck_within_the_standard_error_does_not_beat_likeness() -> None:
    start, lucky = told(0.78, 0.99), told(0.787, 0.96)
    assert not lucky.better(start, top=0.78)
    assert told(0.775, 0.995).better(start, top=0.78)
    assert told(0.80, 0.96).better(start, top=0.78)
    assert not told(0.775, 0.999).better(told(0.80, 0.96), top=0.80)


def test_what_fell_behind_the_highest_is_replaced() -> None:
    kept = told(0.78, 0.99)
    assert told(0.79, 0.5).better(kept, top=0.795)
    assert not told(0.78, 0.999).better(kept, top=0.80)


def test_the_slack_is_the_standard_error_of_the_drop() -> None:
    plain = verdict(0.9, better="higher", result=0.8)
    metric = plain.metrics[0].model_copy(update={"drop": 0.02, "bound": 0.0529})
    assert score_of(plain.model_copy(update={"metrics": (metric,)})).slack == pytest.approx(0.02, rel=1e-9)
    assert score_of(verdict(0.9)).slack == 0
