"""The data of the sample models, split by a fixed seed: scikit-learn's digits, sentences of movie reviews."""

from __future__ import annotations

import csv
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 20250101
DIGITS_SIZES = {"evaluation": 450, "search": 200}
DIGITS_CALIBRATION = 128
REVIEWS_SIZES = {"evaluation": 1000, "search": 300, "calibration": 200}
CLEAR_RATING = 0.5
"""Sentences rated at least this far from neutral (on -4..4) have a label; the others only help training."""
REVIEWS_TRAIN = 4000
"""Labelled sentences of train that are stored, for recipes that train: 0.5 MB, the whole split has 1 MB."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Images:
    """image float32[n, 1, 8, 8] in [0, 1], labels int64[n]."""

    image: Array
    labels: Array


@dataclass(frozen=True)
class Reviews:
    """n sentences and their mean ratings, float64[n] in -4..4; the label is the sign."""

    texts: tuple[str, ...]
    ratings: Array

    @property
    def labels(self) -> Array:
        """int64[n]: 1 = positive."""
        return (self.ratings > 0).astype(np.int64)


def digits_splits() -> dict[str, Images]:
    """scikit-learn's digits as train, calibration (a part of train), search and evaluation."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    image, labels = (bunch.images[:, None] / 16).astype(np.float32), bunch.target.astype(np.int64)
    rest = np.random.default_rng(SEED).permutation(len(labels))
    indices: dict[str, Array] = {}
    for split, size in DIGITS_SIZES.items():
        indices[split], rest = rest[:size], rest[size:]
    indices |= {"train": rest, "calibration": rest[:DIGITS_CALIBRATION]}
    return {split: Images(image[chosen], labels[chosen]) for split, chosen in indices.items()}


def read_reviews(folder: Path) -> Reviews:
    """All sentences of the unpacked vaderSentiment source archive; of equal ones the first."""
    archive = next(folder.rglob("hutto_ICWSM_2014.tar.gz"))
    with tarfile.open(archive) as tar:
        member = tar.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        if member is None:
            raise FileNotFoundError(f"{archive} lacks movieReviewSnippets_GroundTruth.txt")
        text = member.read().decode("latin-1")
    rows = (row for row in csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE) if row)
    ratings: dict[str, float] = {}
    for _, rating, sentence in rows:
        ratings.setdefault(sentence.strip(), float(rating))
    return Reviews(tuple(ratings), np.array(list(ratings.values())))


def reviews_splits(reviews: Reviews) -> dict[str, Reviews]:
    """Disjoint evaluation, search and calibration of clearly rated sentences; train is all the rest."""
    order = np.random.default_rng(SEED).permutation(len(reviews.texts))
    clear = order[np.abs(reviews.ratings[order]) >= CLEAR_RATING]
    indices: dict[str, Array] = {}
    for split, size in REVIEWS_SIZES.items():
        indices[split], clear = clear[:size], clear[size:]
    held_out = np.concatenate(list(indices.values()))
    indices["train"] = order[~np.isin(order, held_out)]
    return {
        split: Reviews(tuple(reviews.texts[i] for i in chosen), reviews.ratings[chosen])
        for split, chosen in indices.items()
    }


def stored_train(train: Reviews) -> Reviews:
    """The first ``REVIEWS_TRAIN`` clearly rated sentences of train, whose order is drawn already."""
    chosen = np.flatnonzero(np.abs(train.ratings) >= CLEAR_RATING)[:REVIEWS_TRAIN]
    return Reviews(tuple(train.texts[i] for i in chosen), train.ratings[chosen])
