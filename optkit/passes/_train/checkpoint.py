"""What an interrupted training leaves on disk, and what a finished one does, so that it is not trained again."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Place:
    """One file in the folder of a stage; only what was written for the same start is read again."""

    folder: Path
    start: str
    """Digest of the weights and settings that the training began with."""

    def save(self, name: str, state: dict[str, Any]) -> Path:
        """Write plain data with tensors; the file is the old one or the whole new one at any moment."""
        import torch

        self.folder.mkdir(parents=True, exist_ok=True)
        path, fresh = self.folder / f"{name}.pt", self.folder / f"{name}.{os.getpid()}.part"
        try:
            torch.save({"start": self.start, **state}, fresh)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
        return path

    def load(self, name: str) -> dict[str, Any] | None:
        """What was saved under the name; None where there is none, it is damaged, or began otherwise."""
        import torch

        try:
            state = torch.load(self.folder / f"{name}.pt", map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except Exception:  # noqa: BLE001  a damaged file raises anything, and only costs the training anew
            return None
        return dict(state) if isinstance(state, dict) and state.get("start") == self.start else None

    def drop(self, name: str) -> None:
        """Remove one, if it is there."""
        (self.folder / f"{name}.pt").unlink(missing_ok=True)


def weights(module: nn.Module) -> dict[str, Any]:
    """A copy of all parameters and buffers on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


def start_digest(module: nn.Module, *settings: object) -> str:
    """sha256 over the weights by name and whatever else decides how a training goes."""
    import torch

    total = hashlib.sha256(repr(settings).encode())
    for name, value in sorted(module.state_dict().items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
