"""What ``benchmarks/train.py`` prunes and trains: models with their data, recipes, and what is to be reached."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.torch import save_file

import optkit
from benchmarks import images, scores, zoo_subjects
from benchmarks.artefacts import made, subject_folder
from benchmarks.subjects import Subject, batches, export, saved, written
from optkit.recipe.load import shipped
from sample_models.download import MOVIE_REVIEWS
from tests import zoo

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "sample_models"
SPLITS = ("train", "calibration", "search", "evaluation")
Recipe = dict[str, Any]
"""Plain data, as a YAML file holds it."""


@dataclass(frozen=True)
class Variant:
    """One result."""

    label: str
    recipe: Recipe


@dataclass(frozen=True)
class Goal:
    """A figure of one result, and the least (or ``most``) it has to be: a number, or what another result has."""

    label: str
    figure: str
    wanted: float | str
    most: bool = False


@dataclass(frozen=True)
class Case:
    """One model."""

    subject: Subject
    variants: tuple[Variant, ...]
    goals: tuple[Goal, ...]
    said: str
    """What is trained on, and what judged on."""
    metric: str | None = None
    """Where the data have labels."""


def load(name: str) -> Case:
    """One by its name in ``CASES``; downloads, trains and exports on first use."""
    return CASES[name]()


def without(recipe: Recipe, *prefixes: str) -> Recipe:
    """The recipe without the passes whose names, or ids, begin so."""

    def words(step: str | dict[str, Any]) -> list[str]:
        if isinstance(step, str):
            return [step]
        ((name, options),) = step.items()
        return [name, (options or {}).get("id", name)]

    kept = [step for step in recipe["passes"] if not any(word.startswith(prefixes) for word in words(step))]
    return recipe | {"passes": kept}


def _shipped(name: str) -> Recipe:
    recipe: Recipe = yaml.safe_load(shipped()[name].read_text())
    return recipe


# --- digits -------------------------------------------------------------------------------------------------------


def _classifier(name: str, title: str, model: Path, factory: str, data: dict[str, Path], said: str) -> Case:
    """Images with labels, at batch 64, by the shipped recipe prune-int8 and by its part before the integers."""
    with np.load(data["evaluation"]) as file:
        pictures, labels = file["image"], file["labels"]
    recipe = _shipped("prune-int8")
    subject = Subject(
        name=name,
        title=title,
        model=model,
        factory=factory,
        signature=None,
        baseline=export(name, optkit.Model.open(model, factory=factory), data),
        points=({"batch": 64},),
        calibration=None,
        evaluation=batches({"image": pictures}, 50),
        score=scores.classes("logits", labels),
        headline="top1",
        feeds=lambda point: list(batches({"image": pictures}, point["batch"])[:4]),
        data=data,
    )
    variants = (
        Variant("pruned, distilled", without(recipe, "quantize", "fuse-after")),
        Variant("prune-int8", recipe),
    )
    goals = (Goal("prune-int8", "speedup, batch 64", 4), Goal("prune-int8", "drop", 0.005, most=True))
    return Case(subject, variants, goals, said, metric="top1")


def digits() -> Case:
    """The sample model, on its own data."""
    data = {split: SAMPLES / "data" / f"digits_{split}.npz" for split in SPLITS}
    return _classifier(
        "digits",
        "The digits CNN of sample_models (8 x 8 pixels, 55 k)",
        SAMPLES / "digits_cnn.safetensors",
        f"{SAMPLES / 'models.py'}:digits_cnn",
        data,
        "Trained on the labelled split train, 1,147 images; judged on 450 others.",
    )


def mnist() -> Case:
    """The sample model that is trained when first used."""
    from sample_models import mnist as source

    splits = source.split()

    def make(place: Path) -> None:
        save_file(source.train(splits["train"]).state_dict(), place / source.WEIGHTS)

    code = [(SAMPLES / name).read_text() for name in ("mnist.py", "models.py")]
    folder, _ = made(subject_folder("mnist"), "model", code, make)
    return _classifier(
        "mnist",
        "The MNIST CNN of sample_models (28 x 28 pixels, 0.9 M)",
        folder / source.WEIGHTS,
        f"{SAMPLES / 'models.py'}:mnist_cnn",
        {split: saved("mnist", split, arrays) for split, arrays in splits.items()},
        "Trained on 3,600 labelled images, chosen on 400, judged on 1,000 others.",
    )


# --- photos -------------------------------------------------------------------------------------------------------

HELD_OUT = 8
"""Of the 20 labelled photos; views of one photo are all trained on, or all judged on as never seen."""
VIEWS = 64
"""Of each photo to train on; all of them fit into the memory that training keeps them in."""

CALIBRATED = 384
"""Of these views."""


def efficientnet() -> Case:
    """EfficientNet-Lite0 against itself: how often the pruned one has the same first choice."""
    base = zoo_subjects.efficientnet()
    files = sorted((zoo.fetch("foolbox") / "foolbox" / "data").glob("imagenet_*.jpg"))
    held = set(np.random.default_rng(0).permutation(len(files))[:HELD_OUT].tolist())
    judged = [np.load(zoo.photos() / f"{file.stem}.npz") for file in files]
    labels = np.concatenate([view["labels"] for view in judged])
    unseen = np.repeat([number in held for number in range(len(files))], [len(view["labels"]) for view in judged])
    views = _views([file for number, file in enumerate(files) if number not in held])
    some = np.random.default_rng(1).permutation(len(views))[:CALIBRATED]
    subject = replace(
        base,
        score=scores.photos("output", labels, unseen),
        headline="agreement",
        data={
            "train": saved("efficientnet", "train", {"image": views}),
            "calibration": saved("efficientnet", "calibration-train", {"image": views[some]}),
            "search": saved("efficientnet", "search", {"image": images.other_photos(24)}),
            "evaluation": saved("efficientnet", "choice", {"image": images.other_photos(4)}),
        },
    )
    prune = {"prune-channels": {"target": {"latency": 0.7}, "fine_tune": False}}
    distill = {"distill": {"losses": {"logits": 1, "hidden": 1}}}
    rest = ["export-onnx", "simplify", "fuse-graph", "tune-session"]
    common = {
        "version": 1,
        "outputs": {"output_0": {"classes": True}},
        "train": {"batch": 16, "learning_rate": 0.0002, "steps": 400, "patience": 40},
    }
    return Case(
        subject,
        (
            Variant("pruned", common | {"name": "prune", "passes": [prune, *rest]}),
            Variant("pruned, distilled", common | {"name": "prune-distill", "passes": [prune, distill, *rest]}),
        ),
        (
            Goal("pruned, distilled", "latency, batch 8", 0.75, most=True),
            Goal("pruned, distilled", "agreement", "pruned"),
            Goal("pruned, distilled", "agreement, new photos", "pruned"),
        ),
        f"Taught by the original on {VIEWS} unlabelled views each of {len(files) - HELD_OUT} of the photos and two "
        f"others, chosen by views of six others. Judged on 25 other views of each photo (agreement, top1), and on "
        f"those of the {HELD_OUT} photos that were not trained on (new photos).",
    )


def _views(files: Sequence[Path]) -> np.ndarray:
    """float32[views, 3, 224, 224]: squares and flips of these photos, and of scikit-learn's two."""
    two = [np.load(file)["image"] for file in sorted(zoo.calibration_photos().glob("*.npz"))]
    squares = [
        zoo.photo_views(file, 500 + at, VIEWS + 1)[1:] for at, file in enumerate(files)
    ]  # the first is judged on
    return np.concatenate(squares + two)


# --- sentences ----------------------------------------------------------------------------------------------------


def minilm() -> Case:
    """MiniLM from six layers to three, taught by its own sentence vectors."""
    base = zoo_subjects.minilm()
    texts = sentences()
    subject = replace(base, data=base.data | {"train": written("minilm", "train", texts)})
    recipe = _shipped("shrink-transformer")
    labels = ("6 -> 3 layers, distilled", "shrink-transformer")
    points = [f"speedup, batch {point['batch']}, seq {point['seq']}" for point in base.points]
    float_goals = (Goal(labels[0], "cosine", 0.9), Goal(labels[0], "sentiment lost", 0.03, most=True))
    return Case(
        subject,
        (
            Variant(labels[0], without(recipe, "quantize", "smooth-quant", "fuse-after")),
            Variant(labels[1], recipe),
        ),
        (*(Goal(labels[0], point, 1.8) for point in points), *float_goals),
        f"Taught by the original's vectors of {len(texts):,} unlabelled sentences, judged on 1,000 others.",
    )


def sentences() -> list[str]:
    """Reviews, news and short messages of vaderSentiment's and gensim's archives, none of them in another split."""
    reviews = zoo.movie_reviews()
    held = {_plain(text) for split in ("evaluation", "search", "calibration") for text in reviews[split].texts}
    articles = (re.split(r"(?<=[.!?]) (?=[A-Z])", article) for article in zoo.news_text())
    news = [sentence for article in articles for sentence in article]
    found = {_plain(text): text for text in (*reviews["train"].texts, *_snippets(), *news) if len(text) > 20}
    return [found[key] for key in found if key not in held]


def _plain(text: str) -> str:
    """Without case, space and punctuation, by which the same sentence may differ between collections."""
    return re.sub(r"\W+", "", text).lower()


def _snippets() -> list[str]:
    """Sentences of product reviews, editorials and tweets."""
    archive = next(zoo.fetch(MOVIE_REVIEWS.name).rglob("hutto_ICWSM_2014.tar.gz"))
    lines: list[str] = []
    with tarfile.open(archive) as tar:
        for name in ("amazonReviewSnippets", "nytEditorialSnippets", "tweets"):
            member = tar.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
            lines += member.read().decode("latin-1").splitlines() if member else []
    return [line.split("\t", 2)[2].strip() for line in lines if line.count("\t") >= 2]


CASES: dict[str, Callable[[], Case]] = {
    "digits": digits,
    "mnist": mnist,
    "efficientnet": efficientnet,
    "minilm": minilm,
}
