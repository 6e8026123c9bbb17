"""The benchmark of pruning and distillation: its recipes, its goals and its page."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from benchmarks import scores, train, train_cases
from benchmarks.results import AtPoint
from benchmarks.train import CaseResult, Row, TrainResults
from benchmarks.train_cases import Goal
from optkit.model.manifest import Environment, MetricResult, Ratio
from tests import zoo

POINTS = ({"batch": 64},)


def row(label: str, speedup: float, top1: float, **more: object) -> Row:
    ratio = Ratio(
        baseline_ms=1.0, candidate_ms=1 / speedup, speedup=speedup, low=0.9 * speedup, high=1.1 * speedup,
        confidence=0.99, blocks=8, inputs="real",
    )  # fmt: skip
    points = (AtPoint(median_ms=1 / speedup, ratio=ratio),)
    return Row(label=label, size_mb=0.25, scores={"top1": top1}, points=points, **more)


def rows() -> tuple[Row, ...]:
    drop = MetricResult(
        name="top1", better="higher", original=0.99, result=0.987, drop=0.003, low=-0.002, high=0.008, bound=0.0075,
        samples=450, smallest_provable=0.006,
    )  # fmt: skip
    base = row(train.BASE, 1.0, 0.99).model_copy(update={"points": (AtPoint(median_ms=1.0),)})
    return (
        base,
        row("pruned", 2.5, 0.9),
        row("taught", 4.0, 0.987, metric=drop, notes=("distill: trained 20 steps",)),
        Row(label="int8", failed="exit 4: a limit was missed"),
    )


def case() -> CaseResult:
    goals = (Goal("taught", "speedup, batch 64", 4), Goal("int8", "drop", 0.005, most=True))
    return CaseResult(
        name="digits", title="Digits", said="Trained on some, judged on others.", date="2026-01-01", samples=450,
        points=POINTS, rows=rows(), goals=tuple(train.reached(goal, POINTS, rows()) for goal in goals), seconds=60,
    )  # fmt: skip


def test_figures_are_scores_losses_and_shares_of_the_latency() -> None:
    base, _, taught, failed = rows()
    found = train.figures(taught, base, POINTS)
    assert found == pytest.approx({
        "top1": 0.987, "top1 lost": 0.003, "speedup, batch 64": 4.0, "latency, batch 64": 0.25, "drop": 0.003,
    })  # fmt: skip
    assert train.figures(failed, base, POINTS) == {}


@pytest.mark.parametrize(
    ("goal", "held", "measured"),
    [
        (Goal("taught", "speedup, batch 64", 4), True, 4.0),
        (Goal("pruned", "speedup, batch 64", 4), False, 2.5),
        (Goal("pruned", "latency, batch 64", 0.4, most=True), True, 0.4),
        (Goal("taught", "drop", 0.002, most=True), False, 0.003),
        (Goal("taught", "top1", "pruned"), True, 0.987),
        (Goal("pruned", "top1", "pruned"), False, 0.9),
        (Goal("int8", "drop", 0.5, most=True), False, None),
        (Goal("taught", "top1", "int8"), False, 0.987),
    ],
)
def test_a_goal_is_reached_where_the_figure_is_there_and_good_enough(
    goal: Goal, held: bool, measured: float | None
) -> None:
    found = train.reached(goal, POINTS, rows())
    assert (found.held, found.measured) == (held, pytest.approx(measured))


def test_the_page_tells_what_was_missed_and_what_failed() -> None:
    here = Environment(
        optkit="0.1.0", python="3.11", platform="Linux", cpu="a CPU", cpu_features=(), cores=2, threads=2,
        provider="cpu", packages={"torch": "2.9"},
    )  # fmt: skip
    text = train.page(TrainResults(environment=here, cases=(case(),)))
    assert "| taught | 0.25 | 4.00 [3.60, 4.40] | 0.9870 | 0.0030 (0.0075) | 0.25 |  |" in text
    assert "- reached, 4: taught: speedup, batch 64 at least 4" in text
    assert "- **missed**, not measured: int8: drop at most 0.005" in text
    assert "- int8: exit 4: a limit was missed" in text
    assert "- taught: distill: trained 20 steps" in text


def test_other_cases_stay_in_the_file(tmp_path: Path) -> None:
    here = Environment(
        optkit="0.1.0", python="3.11", platform="", cpu="", cpu_features=(), cores=2, threads=2, provider="cpu",
        packages={},
    )  # fmt: skip
    file = tmp_path / "train.json"
    file.write_text(
        TrainResults(environment=here, cases=(case().model_copy(update={"name": "minilm"}),)).model_dump_json()
    )
    assert [each.name for each in train.merged(file, case(), here).cases] == ["digits", "minilm"]


def test_a_recipe_without_its_integers() -> None:
    recipe = {
        "passes": ["distill", {"fuse-graph": {"id": "fuse-before"}}, {"quantize-static": {"repair": "labelled"}},
                   {"fuse-graph": {"id": "fuse-after"}}, {"simplify": None}],
        "name": "x",
    }  # fmt: skip
    kept = train_cases.without(recipe, "quantize", "fuse-after")
    assert kept == {"passes": ["distill", {"fuse-graph": {"id": "fuse-before"}}, {"simplify": None}], "name": "x"}
    assert len(recipe["passes"]) == 5


def test_the_same_sentence_is_found_however_it_is_written() -> None:
    assert train_cases._plain("It's  GOOD, really!") == train_cases._plain("its good really")


def test_views_to_train_on_are_seeded_and_not_those_that_are_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_cases, "VIEWS", 3)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    photo = tmp_path / "photo.png"
    Image.fromarray(pixels).save(photo)
    other = np.ones((2, 3, 224, 224), np.float32)
    np.savez(tmp_path / "other.npz", image=other)
    monkeypatch.setattr(zoo, "calibration_photos", lambda: tmp_path)
    views = train_cases._views([photo])
    assert views.shape == (5, 3, 224, 224) and views.dtype == np.float32
    assert abs(views).max() <= 1 and len({view.tobytes() for view in views}) == 4
    np.testing.assert_array_equal(views, train_cases._views([photo]))
    np.testing.assert_array_equal(views[3:], other)
    judged = {view.tobytes() for number in range(20) for view in zoo.photo_views(photo, number, 3)}
    assert not judged & {view.tobytes() for view in views}


def test_new_photos_are_scored_apart() -> None:
    wanted, found = np.eye(4)[[0, 1, 2, 3]], np.eye(4)[[0, 1, 3, 3]]
    score = scores.photos("y", np.array([0, 0, 2, 3]), np.array([False, False, True, True]))
    result = score([{"y": wanted[:2]}, {"y": wanted[2:]}], [{"y": found[:2]}, {"y": found[2:]}])
    assert result == {"agreement": 0.75, "top1": 0.5, "agreement, new photos": 0.5}


def test_optkit_is_asked_as_a_user_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(train, "run", lambda command, place, **_: asked.append([str(word) for word in command]))
    monkeypatch.setattr(train, "shapes", lambda _: {"batch": 64})
    subject = SimpleNamespace(
        name="digits", model=Path("m.safetensors"), factory="f.py:fn", signature=None, data={"train": Path("t.npz")}
    )
    train._optimize(SimpleNamespace(subject=subject, metric="top1"), {"name": "x", "passes": []}, tmp_path)
    (words,) = asked
    assert words[:4] == [sys.executable, "-m", "optkit", "optimize"]
    assert words[words.index("--factory") + 1] == "f.py:fn" and words[words.index("--metric") + 1] == "top1"
    assert "train=t.npz" in words and 'target.shapes={"batch": 64}' in words and "--signature" not in words
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text()) == {"name": "x", "passes": []}
