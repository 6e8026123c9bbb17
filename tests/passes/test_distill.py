"""Students that learn from the original: the model pruned, a factory's, a smaller configuration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import optkit
from optkit.data.dataset import Dataset
from optkit.errors import PassError
from optkit.evaluate.limits import Limits
from optkit.model.load_torch import load_module
from optkit.model.model import Model
from optkit.model.surgery import Drop, Set, operate
from optkit.model.target import Target
from optkit.model.torch_call import name_outputs
from optkit.model.torch_folder import save_module
from optkit.passes._base import Outcome
from optkit.passes._train.training import Training
from optkit.passes.distill import Distill
from optkit.pipeline.cache import Cache
from optkit.pipeline.context import StepContext
from optkit.pipeline.job import Job
from optkit.pipeline.make import make, step_key
from optkit.recipe.recipe import Recipe
from tests.helpers import MemoryData, fresh_dir
from tests.passes._train.jobs import SAMPLES, context, digits
from tests.passes.test_drop_layers import family

STUDENT = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, name="logits", classes=10):
        super().__init__()
        self.name = name
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes))

    def forward(self, image):
        return {self.name: self.net(image)}

def build():
    return Small()

def other_name():
    return Small("scores")

def nine():
    return Small(classes=9)

def deaf():
    return nn.Bilinear(3, 3, 3)

class Auxiliary(Small):
    def forward(self, image):
        made = super().forward(image)
        return {**made, "aux": made["logits"] * 2} if self.training else made

def auxiliary():
    return Auxiliary()

def push(student_outputs, teacher_outputs, batch):
    return -student_outputs["logits"][:, 3].mean()

def broken(student_outputs, teacher_outputs, batch):
    return inner(batch)

def inner(batch):
    raise KeyError("no such thing")

def flat(student_outputs, teacher_outputs, batch):
    return teacher_outputs["logits"].mean()

def vector(student_outputs, teacher_outputs, batch):
    return student_outputs["logits"]
"""


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(STUDENT)
    return tmp_path / "mine.py"


def unlabelled(ctx: StepContext) -> StepContext:
    splits: dict[str, Dataset] = {**ctx.job.splits, "train": replace(ctx.job.splits["train"], labels=None)}  # type: ignore[type-var]
    return replace(ctx, job=replace(ctx.job, splits=splits))


def images(folder: Path, **training: Any) -> StepContext:
    """digits_cnn is the original; its training samples have no labels."""
    return unlabelled(context(folder, digits("digits_cnn"), **{"learning_rate": 1e-2, **training}))


def outputs(module: torch.nn.Module, ctx: StepContext, split: str = "search") -> dict[str, torch.Tensor]:
    made = []
    for batch in ctx.job.splits[split].batches():
        with torch.no_grad():
            given = {name: torch.from_numpy(array[: batch.size]) for name, array in batch.inputs.items()}
            made.append(name_outputs(module(**given)))
    return {name: torch.cat([each[name] for each in made]) for name in made[0]}


def agreement(outcome: Outcome, ctx: StepContext) -> float:
    one, other = (outputs(load_module(each), ctx)["logits"].argmax(1) for each in (outcome.model, ctx.original))
    return float((one == other).float().mean())


def texts(split: str, seed: int) -> MemoryData:
    ids = np.random.default_rng(seed).integers(1, 50, (48, 5))
    return MemoryData(split, {"input_ids": ids, "attention_mask": np.array([[1] * 5, [1] * 3 + [0] * 2] * 24)}, 16)


def sentences(model: Model, **training: Any) -> StepContext:
    """A step for a tiny transformer, without metric and labels."""
    folder = fresh_dir()
    splits = {split: texts(split, seed) for seed, split in enumerate(("train", "search", "evaluation"))}
    settings = {"steps": 20, "looks": 2, "device": "cpu", "batch": 16, "learning_rate": 3e-3, **training}
    job = Job(
        original=model,
        target=Target("cpu", 1),
        splits=dict(splits),
        limits=Limits(),
        exact=False,
        cache=Cache(folder / "cache"),
        training=Training(**settings),
    )
    return StepContext(job, folder / "work", "distill")


def pooled_cosine(model: Model, ctx: StepContext) -> float:
    mask = ctx.job.splits["search"].arrays["attention_mask"]  # type: ignore[attr-defined]
    keep = torch.from_numpy(mask).float().unsqueeze(-1)
    means = [
        (outputs(load_module(each), ctx)["last_hidden_state"] * keep).sum(1) / keep.sum(1)
        for each in (model, ctx.original)
    ]
    return float(torch.nn.functional.cosine_similarity(*means).mean())


def without_layers(model: Model, kept: list[int]) -> Model:
    """The tiny BERT with some of its four layers, as drop-layers leaves it."""
    done = [
        Drop(module="encoder.layer", keep=kept),
        Set(module="", attrs={"config.num_hidden_layers": len(kept)}),
    ]
    return save_module(model, operate(load_module(model), done), done, fresh_dir() / "model", "drop-layers")


def test_a_factorys_student_learns_from_images_without_labels(code: Path, tmp_path: Path) -> None:
    ctx = images(tmp_path, steps=150, looks=3)
    outcome = Distill(student=f"{code}:build")(ctx.original, ctx)
    assert agreement(outcome, ctx) > 0.8
    assert outcome.changed == 4
    assert outcome.changes == [("student", "4 tensors trained by logits 1")]
    assert outcome.model.factory == f"{code}:build"
    assert outcome.model.lineage == (f"distill: {{student: '{code}:build'}}",)
    assert "parameters 55.1 k -> 2.41 k, MACs per sample 354 k -> 2.37 k" in outcome.notes
    assert "losses on 64 samples of train: logits" in " ".join(outcome.notes)


def test_the_same_seed_gives_the_same_student(code: Path, tmp_path: Path) -> None:
    found = []
    for name in "ab":
        ctx = images(tmp_path / name, steps=6, looks=1)
        torch.rand(len(found) + 1)
        found.append(load_module(Distill(student=f"{code}:build")(ctx.original, ctx).model).state_dict())
    assert all(found[0][name].equal(found[1][name]) for name in found[0])


def test_a_hook_adds_its_loss(code: Path, tmp_path: Path) -> None:
    third = []
    for hooks, losses in (((), None), ((f"{code}:push",), {"logits": 1.0, "push": 3.0})):
        ctx = images(tmp_path / str(len(hooks)), steps=20, looks=1)
        outcome = Distill(student=f"{code}:build", hooks=hooks, losses=losses)(ctx.original, ctx)
        third.append(float(outputs(load_module(outcome.model), ctx)["logits"][:, 3].mean()))
    assert third[1] > third[0] + 1
    assert outcome.changes[0][1] == "4 tensors trained by logits 1, push 3"


def test_a_hook_that_raises_is_blamed_with_its_own_frames(code: Path, tmp_path: Path) -> None:
    ctx = images(tmp_path)
    with pytest.raises(PassError) as caught:
        Distill(student=f"{code}:build", hooks=(f"{code}:broken",))(ctx.original, ctx)
    told = caught.value.message
    assert told.count('File "') == 2
    assert "in broken" in told
    assert "in inner" in told
    assert told.endswith("KeyError: 'no such thing'")


@pytest.mark.parametrize(("name", "told"), [("flat", "no gradient"), ("vector", "a tensor [16, 10]")])
def test_a_hook_gives_one_number_with_a_gradient(code: Path, tmp_path: Path, name: str, told: str) -> None:
    ctx = images(tmp_path)
    with pytest.raises(PassError) as caught:
        Distill(student=f"{code}:build", hooks=(f"{code}:{name}",))(ctx.original, ctx)
    assert told in caught.value.message


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("other_name", ["it gives scores float32 [", "the teacher gives logits float32 ["]),
        ("nine", ["logits float32 [2, 9]", "logits float32 [2, 10]"]),
        ("deaf", ["does not run on the inputs of the original"]),
    ],
)
def test_a_student_that_does_not_match_is_refused_before_training(
    code: Path, tmp_path: Path, name: str, told: list[str]
) -> None:
    ctx = images(tmp_path)
    with pytest.raises(PassError) as caught:
        Distill(student=f"{code}:{name}")(ctx.original, ctx)
    assert all(each in caught.value.message for each in told), caught.value.message
    assert not (ctx.checkpoints() / "distill").exists()


def test_training_what_the_steps_before_left_may_bring_nothing(tmp_path: Path) -> None:
    ctx = images(tmp_path, steps=2, learning_rate=1e-12)
    left = save_module(ctx.original, ctx.load_torch(ctx.original), [], tmp_path / "left", "as it was")
    outcome = Distill()(left, ctx)
    assert (outcome.changed, outcome.model) == (0, left)
    assert "brought nothing: top1 was" in outcome.notes[0] and "patience (now 5)" in outcome.notes[0]


def test_a_student_that_learns_nothing_is_an_error(code: Path, tmp_path: Path) -> None:
    ctx = images(tmp_path, steps=1, learning_rate=1e-12)
    with pytest.raises(PassError, match="brought nothing") as caught:
        Distill(student=f"{code}:build")(ctx.original, ctx)
    assert "learning_rate" in caught.value.fix


def test_time_that_is_too_short_is_named(code: Path, tmp_path: Path) -> None:
    ctx = images(tmp_path, seconds=1e-6)
    with pytest.raises(PassError, match="brought nothing") as caught:
        Distill(student=f"{code}:build")(ctx.original, ctx)
    assert "steps and seconds (now 24 and 1e-06)" in caught.value.fix


def test_outputs_that_a_student_has_in_training_only_do_not_count(code: Path, tmp_path: Path) -> None:
    ctx = images(tmp_path)
    losses = {"logits": 1.0, "embeddings": 1.0}
    with pytest.raises(PassError, match="nothing but class scores"):
        Distill(student=f"{code}:auxiliary", losses=losses)(ctx.original, ctx)
    assert Distill(student=f"{code}:auxiliary", losses={"embeddings": 1.0})(ctx.original, ctx).changed


def test_the_original_itself_is_no_student(tmp_path: Path) -> None:
    ctx = images(tmp_path)
    with pytest.raises(PassError, match="nothing to learn from itself"):
        Distill()(ctx.original, ctx)


def test_labels_have_to_be_there(code: Path, tmp_path: Path) -> None:
    ctx = images(tmp_path)
    with pytest.raises(PassError, match="train has none"):
        Distill(student=f"{code}:build", losses={"labels": 1.0})(ctx.original, ctx)


def test_labels_are_used_where_they_are(code: Path, tmp_path: Path) -> None:
    ctx = context(tmp_path, digits("digits_cnn"), steps=4, looks=1, learning_rate=1e-2)
    outcome = Distill(student=f"{code}:build")(ctx.original, ctx)
    assert outcome.changes == [("student", "4 tensors trained by logits 1, labels 0.5")]


def test_hidden_needs_layers(code: Path, tmp_path: Path) -> None:
    ctx = images(tmp_path)
    with pytest.raises(PassError, match="no lists of layers"):
        Distill(student=f"{code}:build", losses={"hidden": 1.0})(ctx.original, ctx)


def test_named_layers_of_other_widths_are_projected(code: Path, tmp_path: Path) -> None:
    ctx = images(tmp_path, steps=12, looks=1)
    layers = {"net.2": "classifier.2"}
    outcome = Distill(student=f"{code}:build", layers=layers)(ctx.original, ctx)
    assert outcome.changes[1] == ("net.2", "learns from the original's classifier.2")
    told = next(note for note in outcome.notes if note.startswith("losses")).split("hidden ")[1]
    before, after = map(float, told.split(" -> "))
    assert after < 0.9 * before


def test_a_layer_that_is_not_there_gets_a_suggestion(code: Path, tmp_path: Path) -> None:
    ctx = images(tmp_path)
    with pytest.raises(PassError, match=r"student has no module 'net\.9'") as caught:
        Distill(student=f"{code}:build", layers={"net.9": "classifier.2"})(ctx.original, ctx)
    assert caught.value.fix.startswith("did you mean 'net.")


def test_layers_that_differ_in_more_than_width_are_refused(code: Path, tmp_path: Path) -> None:
    ctx = images(tmp_path)
    with pytest.raises(PassError, match="more than their width"):
        Distill(student=f"{code}:build", layers={"net.2": "features.0"})(ctx.original, ctx)


def test_dropped_layers_are_made_good() -> None:
    model, _ = family("bert")
    ctx = sentences(model)
    dropped = without_layers(model, [0, 3])
    outcome = Distill()(dropped, ctx)
    assert outcome.changes == [
        ("student", f"{outcome.changed} tensors trained by embeddings 1, hidden 0.5"),
        ("encoder.layer.0", "learns from the original's encoder.layer.2"),
        ("encoder.layer.1", "learns from the original's encoder.layer.3"),
    ]
    assert 1 - pooled_cosine(outcome.model, ctx) < 0.5 * (1 - pooled_cosine(dropped, ctx))
    assert json.loads((outcome.model.path / "surgery.json").read_text())[0]["keep"] == [0, 3]


def test_a_smaller_configuration_of_the_family() -> None:
    model, _ = family("bert")
    ctx = sentences(model)
    outcome = Distill(student={"num_hidden_layers": 1, "intermediate_size": 24})(model, ctx)
    built = load_module(outcome.model)
    assert (len(built.encoder.layer), built.config.intermediate_size) == (1, 24)
    assert "weights of the student from the teacher: 20 of 23 tensors, layers 0 of encoder.layer" in outcome.notes
    assert pooled_cosine(outcome.model, ctx) > 0.95
    assert json.loads((outcome.model.path / "surgery.json").read_text()) == []


def test_attention_maps_come_nearer() -> None:
    model, _ = family("bert")
    ctx = sentences(model)
    outcome = Distill(student={"num_hidden_layers": 2}, losses={"attention": 1.0, "hidden": 0.5})(model, ctx)
    told = next(note for note in outcome.notes if note.startswith("losses")).split("attention ")[1]
    before, after = map(float, told.split(" -> "))
    assert after < 0.5 * before


def test_models_without_attention_maps_say_so(code: Path, tmp_path: Path) -> None:
    ctx = images(tmp_path)
    with pytest.raises(PassError, match=r"no attention maps .* in the student"):
        Distill(student=f"{code}:build", losses={"attention": 1.0}, layers={"net.2": "classifier.2"})(ctx.original, ctx)


def test_a_student_of_its_own_comes_first(code: Path) -> None:
    model, _ = family("bert")
    dropped = without_layers(model, [0, 2])
    with pytest.raises(PassError, match="would be lost"):
        Distill(student={"num_hidden_layers": 1})(dropped, sentences(model))


def test_losses_do_not_go_with_a_training_function(code: Path, tmp_path: Path) -> None:
    ctx = images(tmp_path, function=f"{code}:push")
    with pytest.raises(PassError, match="not used"):
        Distill(student=f"{code}:build", losses={"logits": 1.0})(ctx.original, ctx)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"losses": {"logit": 1}}, r"no loss 'logit' \(did you mean 'logits'\?\)"),
        ({"losses": {}}, "nothing to learn by"),
        ({"losses": {"logits": 0}}, "greater than 0"),
        ({"hooks": ["nothing"]}, "names no function"),
        ({"hooks": ["a.py:hidden"]}, "two losses are named 'hidden'"),
        ({"hooks": ["a.py:x", "b.py:x"]}, "two losses are named 'x'"),
        ({"student": "small"}, "names no function"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Distill.model_validate(options)


def test_code_of_the_options_is_part_of_the_key(code: Path, tmp_path: Path) -> None:
    ctx = images(tmp_path)
    pass_ = Distill(student=f"{code}:build", hooks=(f"{code}:push",))
    assert pass_.code() == (f"{code}:build", f"{code}:push")
    assert Distill(student={"num_hidden_layers": 1}).code() == ()
    before = step_key(ctx.job, pass_, ctx.original)
    assert step_key(ctx.job, pass_, ctx.original) == before
    code.write_text(STUDENT.replace("Linear(64, 32)", "Linear(64, 16)"))
    assert step_key(ctx.job, pass_, ctx.original) != before


def test_files_of_code_count_from_the_recipe(code: Path) -> None:
    recipe = Recipe(passes=[{"distill": {"student": "mine.py:build", "hooks": ["mine.py:push", "pkg:fn"]}}])
    rooted = recipe.rooted(code.parent).passes[0].options
    assert isinstance(rooted, Distill)
    assert (rooted.student, rooted.hooks) == (f"{code}:build", (f"{code}:push", "pkg:fn"))


def test_the_students_factory_travels_through_the_cache(code: Path, tmp_path: Path) -> None:
    ctx = images(tmp_path, steps=6, looks=1)
    pass_ = Distill(student=f"{code}:build")
    for cached in (False, True):
        made = make(ctx.job, pass_, ctx.original, label="distill")
        assert made.cached is cached
        assert made.model is not None
        assert made.model.factory == f"{code}:build"
        assert load_module(made.model).net[1].out_features == 32


def test_a_whole_recipe(code: Path, tmp_path: Path) -> None:
    data = {split: str(SAMPLES / "data" / f"digits_{split}.npz") for split in ("calibration", "search", "evaluation")}
    recipe = Recipe(
        passes=[{"distill": {"student": f"{code}:build"}}, "export-onnx"],
        data={**data, "train": data["calibration"]},
        train={"steps": 60, "looks": 1, "batch": 32, "learning_rate": 2e-2, "device": "cpu"},
        limits={"cosine": 0.5, "agreement": 0.7},
        metric="top1",
    )
    manifest = optkit.optimize(digits("digits_cnn"), recipe, tmp_path / "out", bench=False)
    assert manifest.verdict.metrics[0].result > 0.8
    assert Model.open(tmp_path / "out").size_bytes < 20_000
