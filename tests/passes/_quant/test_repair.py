"""The budget: exactly the bad layers are given back, no more, and what cannot be held is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from optkit.evaluate.limits import Limits
from optkit.model.manifest import LimitResult
from optkit.passes._quant.layered import FLOAT, Built
from optkit.passes._quant.repair import hold_budget, smallest
from optkit.passes._quant.trials import used_share
from tests.passes._quant.toy_quantizer import (
    BAD,
    NAMES,
    ToyQuantizer,
    chain,
    context,
    labelled,
    left_behind,
    run_toy,
)

HOLD = Limits(cosine=0.99)


def limit(rule: str, allowed: float | None) -> LimitResult:
    return LimitResult(name="x", limit=rule, measured=0.0, held=True, kind="accuracy", allowed=allowed)


@pytest.mark.parametrize("wanted", range(1, 14))
def test_the_smallest_number_is_found_with_few_trials(wanted: int) -> None:
    tried: list[int] = []

    def holds(count: int) -> bool:
        tried.append(count)
        return count >= wanted

    assert smallest(holds, 13) == wanted
    assert len(tried) == len(set(tried)) and len(tried) <= 2 * wanted.bit_length() + 1
    assert max(tried) <= 13


@pytest.mark.parametrize("most", [0, 1, 2, 5])
def test_no_number_is_enough_where_nothing_holds(most: int) -> None:
    tried: list[int] = []
    assert smallest(lambda count: bool(tried.append(count)), most) == 0
    assert max(tried, default=0) == most


@pytest.mark.parametrize(
    ("rule", "allowed", "measured", "share"),
    [
        (">= 0.98", 0.98, 0.99, 0.5),
        (">= 0.98", 0.98, 0.97, 1.5),
        ("<= 0.01", 0.01, 0.008, 0.8),
        ("<= 0.01", 0.01, -0.3, 0.0),
        ("<= 0", 0.0, 0.0, 0.0),
        ("<= 0", 0.0, 0.001, np.inf),
        (">= 1", 1.0, 1.0, 0.0),
        (">= 1", 1.0, 0.999, np.inf),
        ("<= -0.01", -0.01, -0.02, 0.0),
        ("<= 0.01", 0.01, np.nan, np.inf),
        ("<= 0.01", None, 0.0, np.inf),
    ],
)
def test_the_share_of_the_allowed_loss(rule: str, allowed: float | None, measured: float, share: float) -> None:
    assert used_share(limit(rule, allowed), measured) == pytest.approx(share)


def test_without_repair_everything_is_quantized() -> None:
    ctx = context(chain(), limits=HOLD)
    outcome = run_toy(ToyQuantizer(), ctx)
    assert outcome.changed == 6 and not outcome.decisions and not ctx.judged


def test_exactly_the_bad_layers_are_given_back() -> None:
    ctx = context(chain(), limits=HOLD)
    outcome = run_toy(ToyQuantizer(repair=True), ctx)
    assert [where for where, _ in outcome.changes] == ["fc0", "fc1", "fc3", "fc4"]
    assert dict(outcome.skipped) == {
        "fc2": "given back to float32: alone it moves the outputs by 30.00% (10.5 dB)",
        "fc5": "given back to float32: alone it moves the outputs by 20.00% (14.0 dB)",
    }
    assert ctx.judge(outcome.model).accuracy_held
    (note,) = [note for note in outcome.notes if note.startswith("repair")]
    assert "2 of 6 layers given back to float32" in note and "cosine 0.9" in note and "(limit >= 0.99)" in note
    (decision,) = outcome.decisions
    assert decision.kept and decision.speedup is None and decision.reason.endswith("not timed")
    assert list(left_behind(ctx)) == [outcome.model.path]


def test_every_build_is_judged_once() -> None:
    ctx = context(chain(), limits=HOLD)
    run_toy(ToyQuantizer(repair=True, ladder=("int8", "int16", FLOAT)), ctx)
    digests = [str(model.path) for model in ctx.judged]
    assert len(digests) == len(set(digests)) == 6  # all int8, float, and one and two layers at either precision


def test_layers_that_are_left_out_stay_out() -> None:
    ctx = context(chain(), limits=HOLD)
    outcome = run_toy(ToyQuantizer(repair=True, exclude=("fc2",)), ctx)
    assert [where for where, _ in outcome.skipped] == ["fc2", "fc5"]
    assert outcome.changed == 4


def test_where_the_limits_hold_nothing_is_given_back_or_ranked() -> None:
    ctx = context(chain(), limits=Limits(cosine=0.9))
    outcome = run_toy(ToyQuantizer(repair=True), ctx)
    assert outcome.changed == 6 and len(ctx.judged) == 1 and not outcome.decisions
    assert any("the limits hold" in note for note in outcome.notes)


def test_a_limit_that_just_holds_is_not_enough_for_other_samples() -> None:
    """A cosine of 1 - e^2 / 2 = .9898 against .989 uses 93 % of the allowed loss: more than nine tenths."""
    errors = {"fc3": 0.1428}
    probe = context(chain(), limits=Limits(cosine=0.5))
    run_toy(ToyQuantizer(repair=True, errors=errors), probe)
    (cosine,) = [each.cosine for verdict in [probe.judge(probe.judged[0])] for each in verdict.outputs]
    assert cosine is not None
    allowed = (1 - cosine) / 0.95
    tight = run_toy(ToyQuantizer(repair=True, errors=errors), context(chain(), limits=Limits(cosine=1 - allowed)))
    assert [where for where, _ in tight.skipped] == ["fc3"]
    loose = run_toy(ToyQuantizer(repair=True, errors=errors), context(chain(), limits=Limits(cosine=1 - allowed * 1.2)))
    assert not loose.skipped


def test_of_two_precisions_the_faster_is_taken() -> None:
    pass_ = ToyQuantizer(repair=True, ladder=("int8", "int16", FLOAT))
    for speeds, chosen in (((1.0, 0.8, 0.7), "int16"), ((1.0, 0.7, 0.9), FLOAT), ((1.0, 0.8, 0.81), "int16")):
        ctx = context(chain(), limits=HOLD, bench=True, speeds=speeds)
        outcome = run_toy(pass_, ctx)
        assert len(ctx.timed) == 1 and len(ctx.timed[0]) == 3
        assert [text.split(":")[0] for _, text in outcome.skipped] == [f"given back to {chosen}"] * 2, speeds
        assert {each.what: each.kept for each in outcome.decisions} == {
            "2 of 6 layers given back to int16": chosen == "int16",
            "2 of 6 layers given back to float32": chosen == FLOAT,
        }
        assert list(left_behind(ctx)) == [outcome.model.path]


def test_the_price_is_told_in_milliseconds() -> None:
    ctx = context(chain(), limits=HOLD, bench=True, speeds=(1.0, 0.8))
    (decision,) = run_toy(ToyQuantizer(repair=True), ctx).decisions
    assert (decision.speedup, decision.low, decision.high) == (0.8, pytest.approx(0.79), pytest.approx(0.81))
    assert "costs 0.5 ms a call" in decision.reason


def test_a_price_within_the_noise_is_called_that() -> None:
    ctx = context(chain(), limits=HOLD, bench=True, speeds=(1.0, 0.995))
    (decision,) = run_toy(ToyQuantizer(repair=True), ctx).decisions
    assert decision.reason.endswith("than with all layers quantized cannot be told (0.98 to 1.00x)")


class ForSize(ToyQuantizer):
    """Not there to make the model faster."""

    for_speed: ClassVar[bool] = False


def test_a_pass_for_size_takes_the_smaller_file_however_fast_the_other_is() -> None:
    ctx = context(chain(), limits=HOLD, bench=True, speeds=(1.0, 0.7, 0.9))
    outcome = run_toy(ForSize(repair=True, ladder=("int8", "int16", FLOAT)), ctx)
    assert [text.split(":")[0] for _, text in outcome.skipped] == ["given back to int16"] * 2
    assert len(ctx.timed) == 1 and all(each.speedup for each in outcome.decisions)


def test_what_cannot_be_held_gives_the_best_found() -> None:
    errors = dict.fromkeys(NAMES, 0.2)
    ctx = context(chain(), limits=Limits(cosine=0.999))
    outcome = run_toy(ToyQuantizer(repair=True, errors=errors), ctx)
    assert outcome.changed == 1 and len(outcome.skipped) == 5
    (decision,) = outcome.decisions
    assert decision.what == "5 of 6 layers given back to float32" and decision.kept
    assert decision.reason.startswith(
        "the best that was found, but it misses the limits: on the split search cosine 0."
    )
    assert list(left_behind(ctx)) == [outcome.model.path]


def test_where_the_reserve_cannot_be_kept_the_limit_itself_is_enough() -> None:
    errors = dict.fromkeys(NAMES, 0.05)
    probe = context(chain(), limits=Limits(cosine=0.9))
    layered = ToyQuantizer(errors=errors).layered(probe.original, probe)
    (cosine,) = [each.cosine for each in probe.judge(layered.build(dict.fromkeys(NAMES[1:], FLOAT)).model).outputs]
    assert cosine is not None
    ctx = context(chain(), limits=Limits(cosine=1 - (1 - cosine) / 0.95))
    outcome = run_toy(ToyQuantizer(repair=True, errors=errors), ctx)
    assert len(outcome.skipped) == 5 and ctx.judge(outcome.model).accuracy_held
    assert "misses" not in outcome.decisions[0].reason


def test_one_layer_that_just_holds_the_limits_stays() -> None:
    others = NAMES[1:]
    probe = context(chain(), limits=Limits(cosine=0.9))
    layered = ToyQuantizer(errors={"fc0": 0.1}, exclude=others).layered(probe.original, probe)
    (cosine,) = [each.cosine for each in probe.judge(layered.build({}).model).outputs]
    assert cosine is not None
    ctx = context(chain(), limits=Limits(cosine=1 - (1 - cosine) / 0.95))
    outcome = run_toy(ToyQuantizer(repair=True, errors={"fc0": 0.1}, exclude=others), ctx)
    assert outcome.changed == 1 and not outcome.decisions
    assert any("just hold" in note for note in outcome.notes)


def test_a_model_that_misses_the_limits_in_float_is_not_repaired() -> None:
    original, ctx = chain(), context(chain(), limits=HOLD)
    drifted = ToyQuantizer(errors={"fc0": 0.3}).layered(original, context(original, limits=HOLD)).build({}).model
    layered = ToyQuantizer(errors=BAD).layered(drifted, ctx)
    repaired = hold_budget(layered, ctx)
    assert not repaired.given_back and len(repaired.built.changes) == 6 and len(ctx.judged) == 2
    assert repaired.notes[0].startswith("no repair: in float32 the split search misses the limits too")


@pytest.mark.parametrize("repair", [True, "labelled"])
def test_made_up_data_are_no_reason_to_repair(repair: bool) -> None:
    ctx = context(chain(), limits=HOLD)
    made_up = replace(ctx.job.splits["search"], synthetic=True)
    ctx = replace(ctx, job=replace(ctx.job, splits={"search": made_up}))
    outcome = run_toy(ToyQuantizer(repair=repair), ctx)
    assert outcome.changed == 6 and "no repair: the data are made up" in outcome.notes


def test_labelled_repairs_need_labels() -> None:
    outcome = run_toy(ToyQuantizer(repair="labelled"), context(chain(), limits=HOLD))
    assert outcome.changed == 6 and "no repair: the data have no labels" in outcome.notes


def test_a_bound_that_so_few_samples_cannot_prove_is_held_by_the_drop() -> None:
    limits = Limits.parse(["metric_drop={max: 0.02, by: bound}", "cosine=0", "agreement=0"])
    ctx = context(chain(), limits=limits, splits=labelled(48), metric="top1", metric_code=True)
    outcome = run_toy(ToyQuantizer(repair=True), ctx)
    assert 1 <= len(outcome.skipped) <= 2
    assert any("48 samples of the split search prove no metric_drop below 0.061" in note for note in outcome.notes)
    verdict = ctx.judge(outcome.model)
    assert verdict.metrics[0].drop <= 0.018


@pytest.mark.parametrize(("allowed", "told"), [(0.02, True), (0.04, False)])
def test_layers_that_hang_on_a_single_sample_are_told(allowed: float, told: bool) -> None:
    """One of 48 is .021 of top1."""
    limits = Limits.parse([f"metric_drop={allowed}", "cosine=0", "agreement=0"])
    ctx = context(chain(), limits=limits, splits=labelled(48), metric="top1", metric_code=True)
    notes = run_toy(ToyQuantizer(repair=True), ctx).notes
    assert any(note.startswith("one of the 48 samples of the split search is 0.021 of top1") for note in notes) == told


def test_a_repair_leaves_something_quantized_or_names_what_does() -> None:
    """A layer that is the last in int8 may not pay, so that the pass leaves it too: that would be the float model."""
    errors = dict.fromkeys(NAMES, 0.3)
    ctx = context(chain(), limits=Limits(cosine=0.999))
    layered = ToyQuantizer(errors=errors).layered(ctx.original, ctx)
    whole = layered.build

    def build(levels: Mapping[str, str]) -> Built:
        return whole(levels) if len(levels) < 5 else replace(whole(dict.fromkeys(NAMES, FLOAT)), changes=[])

    repaired = hold_budget(replace(layered, build=build), ctx)
    assert len(repaired.built.changes) >= 2
    (decision,) = repaired.decisions
    assert decision.reason.startswith("the best that was found, but it misses the limits")
