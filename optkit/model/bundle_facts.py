"""What a bundle says about its model: session options, lineage, preprocessing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from optkit.errors import ModelError, UsageError
from optkit.model.model import Assets
from optkit.model.signature import Signature, TensorSpec, parse_signature


@dataclass(frozen=True)
class BundleFacts:
    """What ``manifest.json`` and ``preprocess.json`` say, and the model file beside them."""

    file: Path
    session: Mapping[str, str]
    lineage: tuple[str, ...]
    """Titles of the passes that changed the model, oldest first."""
    signature: Signature
    """As the manifest states it; empty where it cannot be written in that form."""
    assets: Assets


def read_bundle(folder: Path) -> BundleFacts:
    """Read a bundle's manifest and preprocessing.

    Raises:
        ModelError: one of them cannot be read, or there is no model beside them.
    """
    from optkit.model.manifest import Manifest

    file = folder / "manifest.json"
    with reading_manifest(file):
        manifest = Manifest.model_validate_json(file.read_bytes())
    return BundleFacts(
        file=_model_file(folder),
        session=dict(manifest.session),
        lineage=tuple(step.title for step in manifest.steps if step.status == "changed"),
        signature=Signature(_stated(manifest.result.inputs), _stated(manifest.result.outputs)),
        assets=_assets(folder),
    )


@contextmanager
def reading_manifest(file: Path) -> Iterator[None]:
    """What the block makes of a manifest's contents.

    Raises:
        ModelError: in place of pydantic's ValidationError, with the first place that is not as optkit writes it.
    """
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ModelError(
            f"The bundle's manifest cannot be used: {place + ': ' if place else ''}{first['msg']}.",
            expected="manifest.json as this version of optkit writes it",
            fix=f"make the bundle again with optkit optimize, or give its model alone: {file.parent / 'model.onnx'}",
            file=file,
        ) from error


def _model_file(folder: Path) -> Path:
    for name in ("model.onnx", "model.ort"):
        if (folder / name).is_file():
            return folder / name
    raise ModelError(
        "The bundle has lost its model.",
        expected="model.onnx or model.ort beside manifest.json",
        fix="copy the whole folder again",
        file=folder,
    )


def _stated(specs: tuple[str, ...]) -> tuple[TensorSpec, ...]:
    try:
        return parse_signature("; ".join(specs))
    except UsageError:  # a dtype or rank that a signature cannot state
        return ()


def _assets(folder: Path) -> Assets:
    file = folder / "preprocess.json"
    if not file.is_file():
        return Assets()
    preprocess = read_object(file)
    if not all(isinstance(entry, dict) for entry in preprocess.values()):
        raise ModelError(
            "The bundle's preprocess.json cannot be read.",
            expected="input name -> preprocessing entry",
            fix="copy the whole folder again",
            file=file,
        )
    return Assets(preprocess, folder)


def read_object(file: Path) -> dict[str, dict[str, object]]:
    """A JSON file whose outermost value is an object.

    Raises:
        ModelError: it is not.
    """
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"This is no JSON: {error}.", expected="a JSON object", fix="copy it again", file=file
        ) from error
    if not isinstance(value, dict):
        raise ModelError("This JSON is no object.", expected="a JSON object", fix="copy it again", file=file)
    return value
