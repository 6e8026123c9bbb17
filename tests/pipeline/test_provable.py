"""Budgets that the data cannot show are refused in the plan, with the smallest that they could."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optkit.errors import DataError
from optkit.evaluate.limits import Limits
from optkit.pipeline.job import Job
from optkit.pipeline.provable import check_provable, check_search, not_proved
from tests.helpers import MemoryData
from tests.passes._quant.toy_quantizer import Labelled, ToyQuantizer
from tests.pipeline import toy
from tests.pipeline.toy import arrays, make_job


def labelled(split: str, count: int, seed: int, **more: Any) -> Labelled:
    x = arrays(count, seed)
    return Labelled(split, x, labels=(x["x"] @ toy.WEIGHTS["w"]).argmax(1), **more)


def job_with(folder: Path, *limits: str, **more: Any) -> Job:
    splits = {"search": labelled("search", 24, 5), "evaluation": labelled("evaluation", 40, 6)}
    given = {"limits": Limits.parse(limits), "metric": {"name": "top1", "args": {"output": "y"}}, "splits": splits}
    return make_job(folder, **{**given, **more})


def test_forty_samples_can_prove_what_the_rule_of_three_says(tmp_path: Path) -> None:
    """No event in 40 trials: 1 - 0.05^(1/40) = .0722, about 3 / 40."""
    check_provable(job_with(tmp_path, "metric_drop={max: 0.0723, by: bound}"))
    with pytest.raises(DataError, match=r"40 evaluation samples cannot prove that top1 drops by .* 0\.07") as error:
        check_provable(job_with(tmp_path, "metric_drop={max: 0.07, by: bound}"))
    assert "the smallest budget that they could is 0.073." in error.value.message
    assert error.value.expected == "at least 42 samples, or a limit of at least 0.073"
    assert "search data of their own (24 samples are set aside for that)" in error.value.fix
    assert 1 - 0.05 ** (1 / 42) <= 0.07 < 1 - 0.05 ** (1 / 41)


def test_budgets_below_labelled_count_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"drops by at most 0\.01"):
        check_provable(job_with(tmp_path, "labelled.metric_drop={max: 0.01, by: bound}"))


def test_no_number_of_samples_proves_that_nothing_is_lost(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        check_provable(job_with(tmp_path, "metric_drop={max: 0, by: bound}"))
    assert error.value.expected == "a limit of at least 0.073"


def test_what_is_held_against_the_drop_itself_may_be_as_small_as_one_likes(tmp_path: Path) -> None:
    check_provable(job_with(tmp_path, "metric_drop=0"))


def test_without_labels_there_is_nothing_to_prove(tmp_path: Path) -> None:
    bare = {"search": MemoryData("search", arrays(24)), "evaluation": MemoryData("evaluation", arrays(40, 6))}
    check_provable(job_with(tmp_path, "labelled.metric_drop={max: 0.01, by: bound}", splits=bare))


def test_metrics_that_move_a_little_everywhere_prove_more(tmp_path: Path) -> None:
    x = arrays(40, 6)
    targets = Labelled("evaluation", x, labels=(x["x"] @ toy.WEIGHTS["w"]).astype(np.float64) + 0.1)
    splits = {"search": targets, "evaluation": targets}
    metric = {"name": "mse", "args": {"output": "y"}}
    check_provable(job_with(tmp_path, "metric_drop={max: 0.000001, by: bound}", splits=splits, metric=metric))


def test_groups_prove_more(tmp_path: Path) -> None:
    grouped = labelled("evaluation", 40, 6, groups=np.arange(40) // 4)
    splits = {"search": grouped, "evaluation": grouped}
    check_provable(job_with(tmp_path, "metric_drop={max: 0.01, by: bound}", splits=splits))


def test_passes_that_choose_by_the_search_data_need_labels_there(tmp_path: Path) -> None:
    job = job_with(tmp_path, "metric_drop=0.01")
    bare = replace(job, splits={**job.splits, "search": MemoryData("search", arrays(24))})
    check_search(job, [ToyQuantizer(repair=True)])
    check_search(bare, [ToyQuantizer()])
    with pytest.raises(DataError, match="'toy-quantizer' cannot see the limit metric_drop") as error:
        check_search(bare, [ToyQuantizer(), ToyQuantizer(repair=True)])
    assert "--data search=FILE" in error.value.fix


def test_a_dry_run_says_that_it_leaves_this_open(tmp_path: Path) -> None:
    (note,) = not_proved(job_with(tmp_path, "labelled.metric_drop={max: 0.01, by: bound}"))
    assert "by: bound" in note
    assert not_proved(job_with(tmp_path, "metric_drop=0.01")) == []
