"""Writes the bundle: model, manifest, recipe, report and preprocessing, all or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from optkit.data.preprocess import preprocess_files
from optkit.model.bundle import copy_file, data_name, is_alone, staged
from optkit.model.digest import model_files, sha256_files
from optkit.model.manifest import Manifest
from optkit.model.model import Assets, Model, config_entries
from optkit.model.onnx_file import load_onnx, move_external, save_onnx
from optkit.pipeline.asked import check_ending
from optkit.pipeline.names import file_name
from optkit.report.json import dump
from optkit.report.markdown import markdown
from optkit.report.snippet import open_model
from optkit.runner.session import PROVIDER, provider_options


def publish(manifest: Manifest, result: Model, out: Path, *, force: bool) -> Manifest:
    """Put the result at ``out`` by one rename; for ``out.onnx`` and ``out.ort`` only the model.

    Returns:
        The manifest with the digest that the written model has, and notes on what the model alone lacks.

    Raises:
        UsageError: the step that gives the format of ``out`` had no effect or was rolled back.
        OutputError: the disk is full, or the place is not writable.
    """
    check_ending(out, result.form)
    with staged(out, force=force) as folder:
        if is_alone(out):
            manifest = manifest.model_copy(update={"notes": (*manifest.notes, *_left_out(result, out))})
            return _as_written(manifest, _model_alone(result, folder, out.name), out.parent)
        manifest = _as_written(manifest, _copy_model(result, folder), out)
        _write_assets(result.assets, folder)
        _write(folder / "manifest.json", dump(manifest) + "\n")
        _write(folder / "recipe.yaml", _recipe_text(manifest))
        _write(folder / "report.md", markdown(manifest))
        _write(folder / "open_model.py", open_model(manifest))
        return manifest


def _left_out(result: Model, out: Path) -> tuple[str, ...]:
    """What a bundle says about the model and ``out.onnx`` alone cannot."""
    notes = []
    if result.session:
        notes.append(
            f"{out.name} alone does not set the onnxruntime session options it wants: {_wanted(result.session)}"
        )
    if result.assets.preprocess:
        inputs = ", ".join(result.assets.preprocess)
        notes.append(f"{out.name} alone does not include the preprocessing of {inputs}: a bundle does")
    return tuple(notes)


def _wanted(session: Mapping[str, str]) -> str:
    """``set the config entries a.b=1; of SessionOptions execution_mode=parallel``."""
    own = provider_options(session)
    entries = config_entries(session)
    others = {key: value for key, value in session.items() if key not in entries and not key.startswith(PROVIDER)}
    kinds = {"the config entries": entries, "of SessionOptions": others, "of the execution provider": own}
    return "set " + "; ".join(
        f"{kind} {', '.join(f'{key}={value}' for key, value in found.items())}"
        for kind, found in kinds.items()
        if found
    )


def _as_written(manifest: Manifest, files: list[Path], place: Path) -> Manifest:
    """With path, digest and size of the files as they will be in the folder ``place``."""
    size = sum(file.stat().st_size for file in files)
    facts = {"path": str(place / files[0].name), "digest": sha256_files(files), "size_bytes": size}
    return manifest.model_copy(update={"result": manifest.result.model_copy(update=facts)})


def _copy_model(result: Model, folder: Path) -> list[Path]:
    """The model as ``model.onnx`` (or ``.ort``) and ``model.onnx.data``; several data files keep their own names."""
    first, *data = model_files(result)
    model = folder / ("model.ort" if result.form == "ort" else "model.onnx")
    copy_file(first, model)
    given = [file.absolute().relative_to(first.absolute().parent) for file in data]
    names = [Path(f"{model.name}.data")] if len(data) == 1 else given
    for file, name in zip(data, names, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy_file(file, folder / name)
    if names != given:
        move_external(model, {given[0].as_posix(): names[0].name})
    return [model, *(folder / name for name in names)]


def _model_alone(result: Model, folder: Path, name: str) -> list[Path]:
    """The model under its name; its data are named by their digest, so that they never replace those of another."""
    model = folder / name
    first, *data = model_files(result)
    if not data:
        copy_file(first, model)
        return [model]
    save_onnx(load_onnx(first), model)
    written = folder / f"{name}.data"
    if not written.exists():
        return [model]
    file = written.rename(folder / data_name(name, sha256_files([written])))
    move_external(model, {written.name: file.name})
    return [model, file]


def _write_assets(assets: Assets, folder: Path) -> None:
    """``preprocess.json``, and the folders (tokenizers) that it names, below ``preprocess/``."""
    if not assets.preprocess:
        return
    entries = {name: dict(entry) for name, entry in assets.preprocess.items()}
    taken: set[str] = set()
    for name, entry in entries.items():
        files = preprocess_files({name: entry}, assets.folder or Path())
        if not files:
            continue
        taken.add(plain := file_name(name, taken))
        entry["tokenizer"] = f"preprocess/{plain}"
        (folder / "preprocess" / plain).mkdir(parents=True)
        for file in files:
            target = folder / "preprocess" / plain / ("tokenizer.json" if len(files) == 1 else file.name)
            copy_file(file, target)
    _write(folder / "preprocess.json", dump(entries) + "\n")


def _write(file: Path, text: str) -> None:
    """UTF-8; file names that are no text come out escaped."""
    file.write_text(text, encoding="utf-8", errors="backslashreplace")


def _recipe_text(manifest: Manifest) -> str:
    import yaml

    return yaml.safe_dump(manifest.recipe, sort_keys=False, allow_unicode=True, width=110)
