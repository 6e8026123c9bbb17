"""The machine at hand: which engine runs the model, on which provider, with how many threads, on which shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Engine = Literal["", "onnxruntime", "openvino", "torch", "torch-compile"]


@dataclass(frozen=True)
class Target:
    """Where and how the result will run."""

    provider: str = "cpu"
    """Short name of an execution provider: cpu, cuda, tensorrt, openvino, directml, coreml, ..."""
    threads: int = 0
    """Intra-op threads; 0 = as many as the process may use."""
    shapes: Mapping[str, int] = field(default_factory=dict)
    """Sizes of dynamic dimensions to measure at: ``{batch: 8, seq: 128}``."""
    engine: Engine = ""
    """Empty = onnxruntime for ONNX and ORT files, torch for torch forms. ``openvino`` is Intel's own runtime on an
    ONNX file, not onnxruntime's provider of that name."""
