"""OpenVINO on the baseline ONNX in f32 and bf16, and what NNCF's post-training quantization makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import optkit
from benchmarks import venvs
from benchmarks.artefacts import made, reason
from benchmarks.subjects import Arrays, Product, Subject
from optkit.runner.openvino import PRECISION

PEER = "OpenVINO"
SCRIPT = venvs.HERE / "nncf_quantize.py"
SAMPLES = 300
"""Most samples of calibration: NNCF's own default."""


def products(subject: Subject, folder: Path) -> list[Product]:
    """OpenVINO as it reads the ONNX, in two precisions, and NNCF's int8."""
    return [
        Product("OpenVINO f32", PEER, subject.baseline, "openvino", {PRECISION: "f32"}),
        Product("OpenVINO bf16", PEER, subject.baseline, "openvino", {PRECISION: "bf16"}),
        _nncf(subject, folder),
    ]


def _nncf(subject: Subject, folder: Path) -> Product:
    """``nncf.quantize`` with the preset and everything else at its default."""
    label = "OpenVINO + NNCF int8"
    kind = "transformer" if subject.transformer else "none"
    if subject.calibration is None:
        return Product(label, PEER, None, "openvino", failed="no calibration data")
    samples = subject.calibration[:SAMPLES]

    def make(place: Path) -> None:
        data = save_samples(place / "calibration.npz", samples)
        venvs.run("nncf", SCRIPT, str(subject.baseline), str(data), str(place / "model.xml"), kind)
        data.unlink()

    key = (
        optkit.Model.open(subject.baseline).digest,
        SCRIPT.read_text(),
        venvs.requirements("nncf").read_text(),
        digest(samples),
        kind,
    )
    try:
        place, seconds = made(folder, "nncf", key, make)
    except RuntimeError as error:
        return Product(label, PEER, None, "openvino", failed=reason(error))
    note = f"nncf.quantize, preset performance (default), model_type {kind}, {len(samples)} samples"
    return Product(label, PEER, place / "model.xml", "openvino", {}, seconds, note)


def save_samples(path: Path, samples: tuple[Arrays, ...]) -> Path:
    """All samples in one .npz: ``INDEX/INPUT`` -> array."""
    np.savez(path, **{f"{index}/{name}": array for index, one in enumerate(samples) for name, array in one.items()})
    return path


def digest(samples: tuple[Arrays, ...]) -> str:
    """Of names, shapes and values."""
    import hashlib

    total = hashlib.sha256()
    for one in samples:
        for name, array in sorted(one.items()):
            total.update(f"{name} {array.dtype} {array.shape}".encode())
            total.update(np.ascontiguousarray(array))
    return total.hexdigest()
