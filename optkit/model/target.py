"""The machine at hand: which provider runs the model, with how many threads, on which shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Target:
    """Where and how the result will run."""

    provider: str = "cpu"
    """Short name of an execution provider: cpu, cuda, tensorrt, openvino, directml, coreml, ..."""
    threads: int = 0
    """Intra-op threads; 0 = as many as the process may use."""
    shapes: Mapping[str, int] = field(default_factory=dict)
    """Sizes of dynamic dimensions to measure at: ``{batch: 8, seq: 128}``."""
