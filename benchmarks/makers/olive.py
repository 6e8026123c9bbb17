"""Olive by its own commands: fp32 and int8 of the baseline ONNX, and of the Hugging Face folder where there is one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optkit
from benchmarks import venvs
from benchmarks.artefacts import SAMPLES, samples_digest, save_samples
from benchmarks.makers.command import NOTE, note_if_unquantized, product, require, run
from benchmarks.subjects import Product, Subject

PEER = "Olive"
SCRIPT = venvs.HERE / "olive_data.py"
FROM_ONNX = {
    "optimize": ("Olive fp32", ["optimize", "--precision", "fp32"]),
    "dynamic": ("Olive dynamic int8", ["quantize", "--implementation", "ort", "--precision", "int8"]),
}
"""Given the baseline."""
FROM_FOLDER = {
    "hf-optimize": ("Olive export + fp32", ["optimize", "--precision", "fp32", "--exporter", "dynamo_exporter"]),
    "hf-auto": ("Olive export + int8", ["auto-opt", "--precision", "int8", "--use_dynamo_exporter"]),
    "hf-static": ("Olive optimize int8", ["optimize", "--precision", "int8", "--exporter", "dynamo_exporter"]),
}
"""Given the original. Without dynamo_exporter the first and last want a model builder for language models only, and the
second exports by tracing, which fails on transformers 5."""
TASKS = {"minilm": "feature-extraction", "smollm2": "text-generation"}


def products(subject: Subject, folder: Path) -> list[Product]:
    """Every command that fits; one that leaves no model says what it ended with and why."""
    found = [_by_command(subject, folder, name, *FROM_ONNX[name], subject.baseline) for name in FROM_ONNX]
    found.append(_static(subject, folder))
    if subject.name in TASKS:
        for name, (label, words) in FROM_FOLDER.items():
            whole = [*words, "-t", TASKS[subject.name]]
            found.append(_by_command(subject, folder, name, label, whole, subject.model))
    return found


def _key(model: Path) -> tuple[str, str]:
    return optkit.Model.open(model).digest, venvs.requirements("olive").read_text()


def _by_command(subject: Subject, folder: Path, name: str, label: str, words: Sequence[str], model: Path) -> Product:
    def make(place: Path) -> None:
        _olive([*words, "-m", model, "-o", place], place)
        fill_inputs(place / "model.onnx", subject.baseline)
        if "int8" in words:
            note_if_unquantized(place / "model.onnx")

    note = " ".join(["olive", *words])
    return product(label, PEER, folder, f"olive-{name}", (*_key(model), words), make, note)


def _olive(words: Sequence[str | Path], place: Path) -> None:
    """Run it with a cache of its own, which goes away afterwards."""
    import shutil

    run([venvs.python("olive").with_name("olive"), *words], place)
    shutil.rmtree(place / ".olive-cache", ignore_errors=True)
    require(place / "model.onnx")


def _static(subject: Subject, folder: Path) -> Product:
    """OnnxStaticQuantization by a workflow file; ``olive quantize`` reads data sets of the hub only."""
    label, samples = "Olive static int8", (subject.calibration or ())[:SAMPLES]
    if not samples:
        return Product(label, PEER, None, "onnxruntime", failed="no calibration data")
    key = (
        *_key(subject.baseline),
        samples_digest(samples),
        SCRIPT.read_text(),
        json.dumps(workflow(Path(), Path(), Path())),
    )
    note = f"olive run, OnnxStaticQuantization with its defaults, {len(samples)} samples"
    return product(label, PEER, folder, "olive-static", key, partial(_run_static, subject, samples), note)


def _run_static(subject: Subject, samples: tuple[Any, ...], place: Path) -> None:
    data, config = save_samples(place / "calibration.npz", samples), place / "workflow.json"
    config.write_text(json.dumps(workflow(subject.baseline, data, place), indent=1))
    _olive(["run", "--config", config], place)
    data.unlink()
    note_if_unquantized(place / "model.onnx")


def workflow(model: Path, data: Path, out: Path) -> dict[str, Any]:
    """An Olive workflow that quantizes statically with samples of ours."""
    system = {
        "type": "LocalSystem",
        "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
    }
    source = {
        "name": "calibration",
        "user_script": str(SCRIPT),
        "load_dataset_config": {"type": "npz_samples", "params": {"path": str(data)}},
        "dataloader_config": {"type": "no_auto_batch_dataloader"},
    }
    return {
        "input_model": {"type": "OnnxModel", "model_path": str(model)},
        "systems": {"local": system},
        "host": "local",
        "target": "local",
        "data_configs": [source],
        "passes": {"quantize": {"type": "OnnxStaticQuantization", "data_config": "calibration"}},
        "output_dir": str(out),
        "no_artifacts": True,
    }


def fill_inputs(path: Path, baseline: Path) -> None:
    """Inputs that Olive's export adds (token_type_ids) become zeros of the first input's shape, and a note says so."""
    import onnx

    wanted = {each.name for each in onnx.load(baseline, load_external_data=False).graph.input}
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    extra = [each for each in graph.input if each.name not in wanted]
    if not extra:
        return
    like = next(each.name for each in graph.input if each.name in wanted)
    for each in extra:
        graph.input.remove(each)
        graph.node.insert(0, onnx.helper.make_node("Sub", [like, like], [each.name]))
    onnx.save(model, path)
    names = ", ".join(each.name for each in extra)
    (path.parent / NOTE).write_text(f"its input {names} is filled with zeros\n")
