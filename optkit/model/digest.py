"""Content digests: equal content, equal digest, wherever and whenever it was written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optkit.model.imports import find_source, reachable_files
from optkit.model.onnx_file import external_files
from optkit.model.torch_folder import FILES as TORCH_FILES

if TYPE_CHECKING:
    from optkit.model.model import Model

_COMPANIONS = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template*",
    "*processor_config.json",
    "generation_config.json",
    "*.index.json",
)


def digest_model(model: Model) -> str:
    """sha256 (hex) over the model's files in a fixed order, and its factory's source with what that imports.

    A model of one file without a factory has the digest that ``sha256sum`` prints. Names and times of files do not
    count, except that the locations of external data are part of an ONNX file's content.
    """
    content = sha256_files(model_files(model))
    if model.factory is None:
        return content
    return hashlib.sha256(f"{content}\n{digest_factory(model.factory)}".encode()).hexdigest()


def model_files(model: Model) -> list[Path]:
    """The files that make up the model: the file itself and its external data, or the parts of a folder.

    Of a Hugging Face folder: config.json, the weights, and what the tokenizer or image processor reads, by name.
    """
    if model.kind == "huggingface":
        return huggingface_files(model.path)
    if model.kind == "torch-folder":
        return [model.path / name for name in TORCH_FILES]
    if model.kind == "onnx":
        return [model.path, *external_files(model.path)]
    return [model.path]


def huggingface_files(folder: Path) -> list[Path]:
    """The files of a Hugging Face folder that decide what the model computes, sorted by name."""
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    others = {file for pattern in _COMPANIONS for file in folder.glob(pattern)}
    found = {folder / "config.json", *weights, *others}
    return sorted((file for file in found if file.is_file()), key=lambda file: file.name)


def sha256_files(paths: Sequence[Path]) -> str:
    """sha256 (hex) over the content of the files, in the order given; of one file, that file's own."""
    digests = [_sha256(path) for path in paths]
    return digests[0].hex() if len(digests) == 1 else hashlib.sha256(b"".join(digests)).hexdigest()


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def digest_factory(factory: str) -> str:
    """Over the reference, and names and bytes of all files its module reaches; over the reference alone without any."""
    place, _, function = factory.rpartition(":")
    start, root = _source_file(place)
    name = start.name if start is not None and place.endswith(".py") else place
    lines = [f"{name}:{function}"]
    if start is not None and start.is_file():
        reached = reachable_files(start, root)
        lines += [f"{name} {_sha256(file).hex()}" for name, file in sorted(reached.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _source_file(place: str) -> tuple[Path | None, Path]:
    """The file of ``FILE.py`` or ``pkg.module``, found without importing anything, and the folder it counts from."""
    if place.endswith(".py"):
        folder = Path(place).parent.resolve()
        return folder / Path(place).name, folder
    return find_source(place, Path.cwd()) or (None, Path.cwd())
