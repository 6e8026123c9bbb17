"""OpenVINO on the baseline ONNX in f32 and bf16, and what NNCF's post-training quantization makes of it."""

from __future__ import annotations

from pathlib import Path

import optkit
from benchmarks import venvs
from benchmarks.artefacts import SAMPLES, made, reason, samples_digest, save_samples
from benchmarks.subjects import Product, Subject
from optkit.runner.openvino import PRECISION

PEER = "OpenVINO"
SCRIPT = venvs.HERE / "nncf_quantize.py"


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
        samples_digest(samples),
        kind,
    )
    try:
        place, seconds = made(folder, "nncf", key, make)
    except RuntimeError as error:
        return Product(label, PEER, None, "openvino", failed=reason(error))
    note = f"nncf.quantize, preset performance (default), model_type {kind}, {len(samples)} samples"
    return Product(label, PEER, place / "model.xml", "openvino", {}, seconds, note)
