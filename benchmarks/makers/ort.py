"""onnxruntime: the baseline as it is, and what its quantizers make of it with all options at their defaults."""

from __future__ import annotations

import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import optkit
from benchmarks import venvs
from benchmarks.artefacts import SAMPLES, samples_digest, save_samples
from benchmarks.makers.command import note_if_unquantized, product, require, run
from benchmarks.subjects import Product, Subject

PEER = "onnxruntime"
SCRIPT = venvs.HERE / "ort_quantize.py"
KINDS = {
    "dynamic": ("onnxruntime dynamic int8", "quantize_dynamic, defaults"),
    "static": ("onnxruntime static int8", "quantize_static, defaults"),
    "fused": ("onnxruntime fused + dynamic int8", "onnxscript's optimize_for_ort, then quantize_dynamic"),
}


def products(subject: Subject, folder: Path) -> list[Product]:
    """Plain, dynamic, static where there are samples, fused and dynamic for transformers."""
    kinds = [kind for kind in KINDS if subject.transformer or kind != "fused"]
    return [Product("onnxruntime", PEER, subject.baseline, "onnxruntime"), *(_made(subject, folder, k) for k in kinds)]


def _made(subject: Subject, folder: Path, kind: str) -> Product:
    label, note = KINDS[kind]
    samples = subject.calibration[:SAMPLES] if kind == "static" and subject.calibration else ()
    if kind == "static":
        if not samples:
            return Product(label, PEER, None, "onnxruntime", failed="no calibration data")
        note += f", {len(samples)} samples"
    versions = [version(name) for name in ("onnxruntime", "onnx", "onnxscript")]
    key = (optkit.Model.open(subject.baseline).digest, kind, SCRIPT.read_text(), versions, samples_digest(samples))
    make = partial(_quantize, subject, kind, samples)
    return product(label, PEER, folder, f"ort-{kind}", key, make, note)


def _quantize(subject: Subject, kind: str, samples: tuple, place: Path) -> None:
    data = [save_samples(place / "calibration.npz", samples)] if samples else []
    run([sys.executable, SCRIPT, kind, subject.baseline, place, *data], place)
    for file in data:
        file.unlink()
    require(place / "model.onnx")
    note_if_unquantized(place / "model.onnx")
