"""What a subject is: one real model with the data, points and scores of its measurement, and what peers made of it.

The subjects themselves: ``benchmarks/zoo_subjects.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import optkit
from benchmarks.artefacts import made, subject_folder
from benchmarks.scores import Arrays, Score
from optkit.model.target import Engine

Point = dict[str, int]
"""Sizes of the dynamic dimensions: ``{"batch": 8, "seq": 128}``."""


@dataclass(frozen=True)
class Subject:
    """One model, with all that its measurement needs."""

    name: str
    title: str
    model: Path
    factory: str | None
    """``FILE.py:fn`` that builds the module of a state_dict."""
    signature: str | None
    """Inputs as optkit's --signature takes them, where the file does not say them."""
    baseline: Path
    """ONNX: what optkit's export-onnx alone makes of it, or the model itself."""
    points: tuple[Point, ...]
    calibration: tuple[Arrays, ...] | None
    """Single samples for static quantization; None = dynamic only."""
    evaluation: tuple[Arrays, ...]
    """Batches that neither calibration nor a choice saw."""
    score: Score
    headline: str
    """Which of the scores is shown first."""
    feeds: Callable[[Point], list[Arrays]]
    """Batches to time with, of a point's sizes."""
    data: dict[str, Path] = field(default_factory=dict)
    """Split -> files for tools that read them (optkit's --data): ``calibration``, and an ``evaluation`` to choose by,
    which shares nothing with the evaluation above."""
    quantize_ops: tuple[str, ...] | None = None
    """Operators worth quantizing, None = the tool's own choice."""
    transformer: bool = False
    """Whether tools that ask for a model type should take it as a transformer."""

    @property
    def is_torch(self) -> bool:
        """False where the original is an ONNX file."""
        return self.model.suffix != ".onnx"

    def opened(self) -> optkit.Model:
        """The original."""
        return optkit.Model.open(self.model, factory=self.factory, signature=self.signature)


@dataclass(frozen=True)
class Product:
    """What one peer made of a subject."""

    label: str
    peer: str
    path: Path | None
    """ONNX, bundle, OpenVINO's .xml, or the subject's own model for torch; None = ``failed`` says why."""
    engine: Engine
    session: dict[str, str] = field(default_factory=dict)
    """Settings of the engine it is to run with."""
    seconds: float = 0.0
    """Making it."""
    note: str = ""
    failed: str = ""


def open_product(subject: Subject, product: Product) -> optkit.Model:
    """The product as optkit's runners take it. ValueError for one that failed."""
    if product.path is None:
        raise ValueError(f"{product.label} was not made: {product.failed}")
    if product.path == subject.model:
        return subject.opened()
    if product.path.suffix == ".xml":  # OpenVINO's own file, of the baseline's inputs and outputs
        return replace(optkit.Model.open(subject.baseline, signature=subject.signature), path=product.path)
    return optkit.Model.open(product.path)


def export(name: str, model: optkit.Model, data: Mapping[str, Path]) -> Path:
    """The baseline of a torch model: optkit's export-onnx and nothing else, kept."""
    from optkit.passes.export_onnx import ExportOnnx

    source = "".join(path.read_text() for path in sorted((Path(optkit.__file__).parent / "passes").glob("*export*.py")))
    key = (model.digest, hashlib.sha256(source.encode()).hexdigest(), version("torch"), version("onnxscript"))

    def make(folder: Path) -> None:
        chosen = {"evaluation": data["evaluation"]}
        optkit.optimize(model, [ExportOnnx()], folder / "bundle", bench=False, data=chosen)

    folder, _ = made(subject_folder(name), "baseline", key, make)
    return folder / "bundle" / "model.onnx"


def batches(arrays: Arrays, size: int, axes: Mapping[str, int] | None = None) -> tuple[Arrays, ...]:
    """Cut samples into batches; a last, smaller one is dropped.

    Args:
        arrays: samples along axis 0, or along ``axes[name]``; arrays without axes go into every batch.
        size: samples in each.
        axes: input -> where its samples lie, if not along 0.
    """
    where = {name: (axes or {}).get(name, 0) for name, array in arrays.items() if array.ndim}
    count = min(arrays[name].shape[axis] for name, axis in where.items()) // size
    cut = {
        name: np.split(np.take(arrays[name], range(count * size), axis), count, axis) for name, axis in where.items()
    }
    return tuple(
        {name: cut[name][index] if name in cut else array for name, array in arrays.items()} for index in range(count)
    )


def saved(subject: str, split: str, arrays: Mapping[str, Any]) -> Path:
    """The samples as an .npz file of that split."""
    path = subject_folder(subject) / "data" / f"{split}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def written(subject: str, split: str, texts: tuple[str, ...] | list[str]) -> Path:
    """The texts as a .txt file of that split, one a line."""
    path = subject_folder(subject) / "data" / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(" ".join(text.split()) for text in texts) + "\n")
    return path
