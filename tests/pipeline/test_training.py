"""Steps that train: what their key depends on, what an interruption leaves, and that nothing is left after success."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from optkit.errors import PassError
from optkit.model.model import Model
from optkit.passes._base import Context, Outcome, PassKind
from optkit.passes._train.training import Training
from optkit.passes.export_onnx import ExportOnnx
from optkit.pipeline.cache import PARTIAL_S
from optkit.pipeline.job import Job
from optkit.pipeline.make import make, step_key
from optkit.pipeline.provable import check_training
from optkit.recipe.recipe import Recipe
from tests.helpers import MemoryData
from tests.pipeline import toy
from tests.pipeline.toy import arrays, make_job

CODE = "def fit(model, loader, steps, callback):\n    return None\n"


class Trains(toy.ScaleBy):
    """Train in three rounds, each of which leaves a file and one byte among the calls."""

    kind: ClassVar[PassKind] = "trains"
    uses_data: ClassVar[tuple[str, ...]] = ("train",)
    trap: str = ""
    """A file that, where it is, ends the third round and itself."""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        for round_ in range(3):
            file = ctx.checkpoints() / f"round-{round_}"
            if file.exists():
                continue
            if round_ == 2 and self.trap and Path(self.trap).exists():
                reason = Path(self.trap).read_text()
                Path(self.trap).unlink()
                raise PassError(reason) if reason else KeyboardInterrupt
            with Path(self.calls).open("a") as calls:
                calls.write(".")
            file.touch()
        return toy.ScaleBy(factor=self.factor)(model, ctx)


def job_with(folder: Path, **training: object) -> Job:
    """A job with a training split and these options of the block ``train:``."""
    job = make_job(folder)
    splits = {**job.splits, "train": MemoryData("train", arrays(8, 1))}
    return replace(job, splits=splits, training=Training.model_validate(training))


def partials(job: Job) -> list[Path]:
    folder = job.cache.root / "partial"
    return sorted(folder.iterdir()) if folder.exists() else []


def test_the_key_changes_with_the_training_and_its_data_where_the_pass_trains(tmp_path: Path) -> None:
    job = job_with(tmp_path)
    other = job_with(tmp_path, steps=7)
    moved = replace(job, splits={**job.splits, "train": MemoryData("train", arrays(8, 2))})
    keys = [step_key(each, Trains(), each.original) for each in (job, other, moved)]
    assert len(set(keys)) == 3
    assert step_key(job, toy.ScaleBy(), job.original) == step_key(other, toy.ScaleBy(), job.original)


def test_the_key_changes_with_the_code_of_the_users_function_and_not_with_its_place(tmp_path: Path) -> None:
    keys = []
    for folder, code in (("a", CODE), ("b", CODE), ("c", CODE.replace("None", "model"))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(code)
        job = job_with(tmp_path, function=f"{tmp_path / folder / 'mine.py'}:fit")
        keys.append(step_key(job, Trains(), job.original))
    assert keys[0] == keys[1] != keys[2]
    plain = job_with(tmp_path)
    assert step_key(plain, Trains(), plain.original) not in keys
    (tmp_path / "helper.py").write_text("RATE = 1\n")
    (tmp_path / "mine.py").write_text("import helper\n" + CODE)
    job = job_with(tmp_path, function=f"{tmp_path / 'mine.py'}:fit")
    first = step_key(job, Trains(), job.original)
    (tmp_path / "helper.py").write_text("RATE = 2\n")
    assert step_key(job, Trains(), job.original) != first


def test_a_function_counts_from_the_recipe_wherever_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.py").write_text(CODE)
    file = tmp_path / "recipes" / "r.yaml"
    file.write_text("version: 1\npasses: [simplify]\ntrain: {function: 'mine.py:fit', steps: 7}\n")
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.load(file)
    assert recipe.train.function == f"{tmp_path / 'recipes' / 'mine.py'}:fit"
    assert recipe.train.steps == 7
    again = Recipe.model_validate(recipe.resolved())
    assert again.train == recipe.train


@pytest.mark.parametrize("reason", ["", "the learning rate"])
def test_what_an_interruption_leaves_is_used_again_and_gone_after_success(reason: str, tmp_path: Path) -> None:
    job = job_with(tmp_path)
    trap, calls = tmp_path / "trap", tmp_path / "calls"
    trap.write_text(reason)
    pass_ = Trains(trap=str(trap), calls=str(calls))
    with pytest.raises(PassError if reason else KeyboardInterrupt):
        make(job, pass_, job.original, label="s")
    (folder,) = partials(job)
    assert sorted(file.name for file in folder.iterdir()) == ["round-0", "round-1"]
    assert not make(job, pass_, job.original, label="s").cached
    assert calls.read_text() == "..."
    assert partials(job) == []
    assert make(job, pass_, job.original, label="s").cached
    assert calls.read_text() == "..."


def test_another_step_does_not_see_what_an_interruption_left(tmp_path: Path) -> None:
    job = job_with(tmp_path)
    trap, calls = tmp_path / "trap", tmp_path / "calls"
    trap.touch()
    with pytest.raises(KeyboardInterrupt):
        make(job, Trains(trap=str(trap), calls=str(calls)), job.original, label="s")
    (left,) = partials(job)
    make(job, Trains(calls=str(calls), factor=2.0), job.original, label="s")
    assert calls.read_text() == ".." + "..."
    assert partials(job) == [left]


def test_what_nobody_came_back_to_goes_in_the_end(tmp_path: Path) -> None:
    cache = job_with(tmp_path).cache
    old, young = cache.partial("a" * 64), cache.partial("b" * 64)
    (old / "checkpoint.pt").touch()
    then = time.time() - PARTIAL_S - 60
    os.utime(old, (then, then))
    cache.partial("c" * 64)
    assert not old.exists()
    assert young.exists()


def test_emptying_the_cache_takes_what_interruptions_left(tmp_path: Path) -> None:
    cache = job_with(tmp_path).cache
    left = cache.partial("a" * 64)
    cache.remove(["b"])
    assert left.exists()
    cache.remove()
    assert not left.exists()


def test_a_function_that_is_not_there_is_told_in_the_plan(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    job = job_with(tmp_path, function=f"{tmp_path / 'mine.py'}:fitt")
    with pytest.raises(PassError, match="no function 'fitt'; did you mean 'fit'"):
        check_training(job, [Trains()])
    check_training(job, [toy.ScaleBy()])


class Hooked(Trains):
    """Names code."""

    code_options: ClassVar[tuple[str, ...]] = ("hooks",)
    hooks: tuple[str, ...] = ()


def test_hooks_that_are_not_there_are_told_in_the_plan(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    file, job = tmp_path / "mine.py", job_with(tmp_path)
    with pytest.raises(PassError, match="no function 'pit'"):
        check_training(job, [Hooked(hooks=(f"{file}:fit", f"{file}:pit"))])
    check_training(job, [Hooked(hooks=(f"{file}:fit",))])


def test_the_key_changes_with_the_export_that_training_looks_through(tmp_path: Path) -> None:
    job = job_with(tmp_path)
    one, other = (replace(job, exporter=ExportOnnx(opset=opset)) for opset in (17, 18))
    assert step_key(one, Trains(), job.original) != step_key(other, Trains(), job.original)
    assert step_key(one, toy.ScaleBy(), job.original) == step_key(other, toy.ScaleBy(), job.original)
