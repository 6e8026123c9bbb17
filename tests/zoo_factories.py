"""Factories for the zoo's weights, to be named as ``FILE.py:fn``; they put a package's code on ``sys.path``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

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
