"""torch itself on the original: eager, and torch.compile with its defaults (inductor)."""

from __future__ import annotations

from pathlib import Path

from benchmarks.subjects import Product, Subject

PEER = "torch"


def products(subject: Subject, folder: Path) -> list[Product]:
    """Nothing is written: both run the original. None for an ONNX original, which torch does not open."""
    del folder
    if not subject.is_torch:
        return []
    return [
        Product("torch eager", PEER, subject.model, "torch"),
        Product("torch.compile", PEER, subject.model, "torch-compile", note="inductor, compiles in the first call"),
    ]
