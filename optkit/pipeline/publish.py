"""Writes the bundle: model, manifest, recipe, report and preprocessing, all or nothing."""

from __future__ import annotations

from pathlib import Path

from optkit.data.preprocess import preprocess_files
from optkit.model.bundle import copy_file, staged
from optkit.model.digest import model_files
from optkit.model.manifest import Manifest
from optkit.model.model import Assets, Model
from optkit.report.json import dump
from optkit.report.markdown import markdown


def publish(manifest: Manifest, result: Model, out: Path, *, force: bool) -> None:
    """Put the result at ``out`` by one rename; for ``out.onnx`` only the model.

    Raises:
        OutputError: the disk is full, or the place is not writable.
    """
    with staged(out, force=force) as folder:
        if out.suffix == ".onnx":
            _model_alone(result, folder, out.name)
            return
        _copy_model(result, folder)
        _write_assets(result.assets, folder)
        _write(folder / "manifest.json", dump(manifest) + "\n")
        _write(folder / "recipe.yaml", _recipe_text(manifest))
        _write(folder / "report.md", markdown(manifest))


def _copy_model(result: Model, folder: Path) -> None:
    """The model as ``model.onnx`` (or ``.ort``); data files keep the names the model knows them by."""
    first, *data = model_files(result)
    copy_file(first, folder / ("model.ort" if result.form == "ort" else "model.onnx"))
    for file in data:
        target = folder / file.absolute().relative_to(first.absolute().parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        copy_file(file, target)


def _model_alone(result: Model, folder: Path, name: str) -> None:
    first, *data = model_files(result)
    if not data:
        copy_file(first, folder / name)
        return
    from optkit.model.onnx_file import load_onnx, save_onnx

    save_onnx(load_onnx(first), folder / name)


def _write_assets(assets: Assets, folder: Path) -> None:
    """``preprocess.json``, and the folders (tokenizers) that it names, below ``preprocess/``."""
    if not assets.preprocess:
        return
    entries = {name: dict(entry) for name, entry in assets.preprocess.items()}
    for name, entry in entries.items():
        files = preprocess_files({name: entry}, assets.folder or Path())
        if files:
            entry["tokenizer"] = f"preprocess/{name}"
            (folder / "preprocess" / name).mkdir(parents=True)
        for file in files:
            copy_file(file, folder / "preprocess" / name / ("tokenizer.json" if len(files) == 1 else file.name))
    _write(folder / "preprocess.json", dump(entries) + "\n")


def _write(file: Path, text: str) -> None:
    """UTF-8; file names that are no text come out escaped."""
    file.write_text(text, encoding="utf-8", errors="backslashreplace")


def _recipe_text(manifest: Manifest) -> str:
    import yaml

    return yaml.safe_dump(manifest.recipe, sort_keys=False, allow_unicode=True, width=110)
