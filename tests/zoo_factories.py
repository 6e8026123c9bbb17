"""Factories for the zoo's weights, to be named as ``FILE.py:fn``; they put a package's code on ``sys.path``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

ROOT = str(Path(__file__).resolve().parent.parent)


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0: float32[B, 3, 224, 224] in (x - 127) / 128 -> logits[B, 1000]."""
    _add_path(ROOT)
    from tests import zoo

    _add_path(str(zoo.fetch("efficientnet-lite-pytorch")))
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0")


def _add_path(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def speaker_encoder() -> nn.Module:
    """Resemblyzer's voice encoder, by the layout of its checkpoint: mels float32[B, T, 40] -> float32[B, 256].

    Three LSTM layers, the last hidden state through a linear layer and ReLU, scaled to unit length (Wan et al. 2018,
    "Generalized End-to-End Loss for Speaker Verification").
    """
    import torch
    from torch import nn

    class SpeakerEncoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
            self.linear = nn.Linear(256, 256)
            # The checkpoint carries the training loss's scale and offset; strict loading wants them here.
            self.similarity_weight = nn.Parameter(torch.ones(1))
            self.similarity_bias = nn.Parameter(torch.zeros(1))

        def forward(self, mels: Tensor) -> dict[str, Tensor]:
            _, (hidden, _) = self.lstm(mels)
            raw = torch.relu(self.linear(hidden[-1]))
            return {"embedding": raw / raw.norm(dim=1, keepdim=True)}

    return SpeakerEncoder()
