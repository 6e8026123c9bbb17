"""Ranks with known answers: every layer of the toy loses exactly what it is told to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from optkit.data.dataset import Dataset
from optkit.evaluate.limits import Limits
from optkit.evaluate.rows import OutputOptions
from optkit.model.manifest import OutputFidelity, Verdict
from optkit.model.model import Model
from optkit.passes._quant import ranking
from optkit.passes._quant.layered import FLOAT, Built, Layered
from optkit.passes._quant.ranking import Effect, rank, trials_of
from tests.helpers import MemoryData, normal
from tests.passes._quant.toy_quantizer import (
    BAD,
    NAMES,
    SLIGHT,
    WIDTH,
    ToyQuantizer,
    Watched,
    chain,
    context,
    labelled,
)


def prepared() -> tuple[Watched, Layered]:
    ctx = context(chain(), limits=Limits())
    return ctx, ToyQuantizer(repair=True).layered(ctx.original, ctx)


def ranked(layered: Layered, ctx: Watched) -> list[Effect]:
    full = layered.build({}).model
    return rank(layered, ctx, full, ctx.judge(full))


def test_alone_each_layer_moves_the_outputs_by_its_error() -> None:
    ctx, layered = prepared()
    effects = ranked(layered, ctx)
    assert [each.label for each in effects[:2]] == ["fc2", "fc5"]
    assert {each.label: each.error for each in effects} == pytest.approx(
        {name: BAD.get(name, SLIGHT) for name in NAMES}, rel=1e-3
    )
    assert {each.among for each in effects} == {1} and {each.drop for each in effects} == {None}


def test_trials_leave_nothing_behind() -> None:
    ctx, layered = prepared()
    full = layered.build({})
    rank(layered, ctx, full.model, ctx.judge(full.model))
    assert list(ctx.workdir.rglob("*.onnx")) == [full.model.path]


def test_a_ranking_is_remembered() -> None:
    ctx, layered = prepared()
    full = layered.build({}).model
    first = rank(layered, ctx, full, ctx.judge(full))
    made: list[object] = []
    again = Layered(layered.model, layered.layers, layered.ladder, made.append)  # type: ignore[arg-type]
    assert rank(again, ctx, full, ctx.judge(full)) == first and not made


def test_a_ranking_is_remembered_for_its_original_and_masking_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one float and one quantized model: what they are compared with, and how, is part of what is known of them."""
    half = {"x": normal(48, WIDTH, seed=7) * (np.arange(WIDTH) < WIDTH // 2)}
    first = context(chain(), limits=Limits(), splits={"search": MemoryData("search", half)})
    layered = ToyQuantizer(repair=True).layered(first.original, first)
    full = layered.build({}).model
    other = layered.build(dict.fromkeys(NAMES[:-1], FLOAT)).model

    def errors(ctx: Watched) -> dict[str, float]:
        return {each.label: each.error for each in rank(layered, ctx, full, ctx.judge(full))}

    plain = errors(first)
    masked = errors(replace(first, job=replace(first.job, outputs={"y": OutputOptions(mask="x")})))
    apart = errors(replace(first, job=replace(first.job, original=other)))
    assert all(masked[name] != pytest.approx(plain[name], rel=1e-6) for name in NAMES)
    assert apart["fc5"] == pytest.approx(0.0, abs=1e-6) and plain["fc5"] == pytest.approx(BAD["fc5"], rel=1e-3)
    monkeypatch.setattr(ranking, "_Trials", None)
    assert errors(replace(first, job=replace(first.job, limits=Limits(cosine=0.5)))) == plain


def test_the_number_of_trials_depends_on_sizes_and_on_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    _, layered = prepared()
    assert trials_of(layered) == 6
    monkeypatch.setattr(ranking, "LEAST_TRIALS", 1)
    assert trials_of(layered) == 6
    monkeypatch.setattr(ranking, "TRIAL_BYTES", 5 * layered.model.size_bytes)
    assert trials_of(layered) == 5


def test_groups_are_halved_until_the_worst_layers_stand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 6 layers in 5 trials: 2 groups of three (fc2 in one, fc5 in the other), then the worse one is halved."""
    ctx, layered = prepared()
    monkeypatch.setattr(ranking, "LEAST_TRIALS", 5)
    monkeypatch.setattr(ranking, "TRIAL_BYTES", 1)
    tried: list[list[str]] = []

    def build(levels: Mapping[str, str]) -> Built:
        tried.append([name for name in NAMES if name not in levels])
        return layered.build(levels)

    full = layered.build({}).model
    effects = rank(replace(layered, build=build), ctx, full, ctx.judge(full))
    assert tried == [["fc0", "fc1", "fc2"], ["fc3", "fc4", "fc5"], ["fc0"], ["fc1", "fc2"]]
    assert [each.label for each in effects] == ["fc1", "fc2", "fc3", "fc4", "fc5", "fc0"]
    assert {each.label: each.among for each in effects} == dict(zip(NAMES, (1, 2, 2, 3, 3, 3), strict=True))
    assert effects[0].error == pytest.approx(np.hypot(BAD["fc2"], SLIGHT), rel=0.03)
    assert effects[0].share == pytest.approx(effects[0].error / np.sqrt(2))


def test_the_drop_of_the_metric_is_measured_for_each_layer_where_it_is_asked_for() -> None:
    ctx = context(chain(), limits=Limits(), splits=labelled(48), metric="top1", metric_code=True)
    layered = ToyQuantizer(repair=True).layered(ctx.original, ctx)
    full = layered.build({}).model
    effects = rank(layered, ctx, full, ctx.judge(full), drops=True)
    assert {each.drop for each in effects if each.label not in BAD} == {0.0}
    assert all(each.drop is not None and each.drop > 0.05 for each in effects[:2])


@pytest.mark.parametrize(
    ("facts", "error"),
    [
        ({"sqnr_db": 20.0}, 0.1),
        ({"sqnr_db": math.inf}, 0.0),
        ({"sqnr_db": -math.inf}, math.inf),
        ({"equal": 0.75}, 0.5),
    ],
)
def test_the_error_of_an_output(facts: dict[str, float], error: float) -> None:
    found = OutputFidelity(name="y", dtype="float32", rows=4, **facts)
    assert ranking._error_of(found) == pytest.approx(error)


def test_rows_that_are_masked_do_not_count() -> None:
    """Padding may become anything: the verdict leaves it out, and so does the ranking."""
    seen: list[int] = []

    class Counting(Watched):
        def judge(self, model: Model, data: Dataset | None = None) -> Verdict:
            seen.append(0 if data is None else data.count)
            return super().judge(model, data)

    ctx, layered = prepared()
    counting = Counting(**vars(ctx))
    full = layered.build({}).model
    rank(layered, counting, full, ctx.judge(full))
    assert seen == [32] * 6  # of the 48 samples of the split, by the verdict's own rules


def test_words_and_decibels() -> None:
    assert Effect("a", 0.1).sqnr_db == pytest.approx(20.0)
    assert Effect("a", 0.1, 4).words() == "in a group of 4 layers it moves the outputs by 10.00% (20.0 dB)"
    assert Effect("a", 0.0).sqnr_db == math.inf
    assert Effect("a", math.inf).words() == "alone it makes the outputs NaN or infinite"
