"""What a file is that was handed in for a model and is none, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Foreign = tuple[str, str]
"""(what it is, what to do)."""

_DATA = "give the model first, and its inputs with --input or --data"
_MADE_FROM = "start from the model it was made from"
_AGAIN = "look at what it says; if it is what a download gave, download the model again"

_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the model itself", "fetch the model: git lfs pull"),
    (0, b"GGUF", "a GGUF file (llama.cpp)", _MADE_FROM),
    (0, b"\x89HDF\r\n", "an HDF5 file (Keras)", "convert it with: python -m tf2onnx.convert"),
    (4, b"TFL3", "a TensorFlow Lite file", "convert it with: python -m tf2onnx.convert --tflite"),
    (0, b"<?xml", "an XML file (OpenVINO?)", _MADE_FROM),
    (0, b"\xff\xd8\xff", "an image (JPEG)", _DATA),
    (0, b"\x89PNG\r\n", "an image (PNG)", _DATA),
    (0, b"GIF8", "an image (GIF)", _DATA),
    (8, b"WEBP", "an image (WebP)", _DATA),
    (8, b"WAVE", "a sound (WAV)", _DATA),
    (0, b"\x93NUMPY", "an array of numpy (.npy)", _DATA),
    (0, b"%PDF", "a PDF document", "give a model file"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it, and give the model in it"),
)
"""(offset, first bytes, what it is, what to do)."""

_TEXTS = {
    ".py": ("Python code", "give the weights, and the code with --factory FILE.py:fn"),
    ".yaml": ("a YAML file", "give the model first, and a recipe with --recipe"),
    ".yml": ("a YAML file", "give the model first, and a recipe with --recipe"),
    ".json": ("a JSON file", "give the model's folder, or a model file"),
    ".csv": ("a table of text (CSV)", _DATA),
    ".txt": ("a text file", _DATA),
}
"""Ending of a text -> (what it is, what to do)."""

_LOOKED_AT = 4096


def by_magic(head: bytes) -> Foreign | None:
    """What the first 64 bytes of a file say; None where they could be a model's."""
    return next(((what, fix) for offset, magic, what, fix in _MAGIC if head[offset:].startswith(magic)), None)


def as_text(path: Path) -> Foreign | None:
    """What a file of text is; None for one that is binary. Ask only about files that cannot be parsed otherwise."""
    with path.open("rb") as file:
        head = file.read(_LOOKED_AT)
    text = head.decode("utf-8", errors="ignore")
    lost = len(head) - len(text.encode())
    if lost > 3 or any(not char.isprintable() and char not in "\t\r\n\f\ufeff" for char in text):
        return None
    if text.lstrip("\ufeff \r\n\t").lower().startswith(("<!doctype html", "<html")):
        return "a web page (HTML)", "download the model itself: the address led to a page about it, or to a login"
    return _TEXTS.get(path.suffix.lower(), ("a text file", _AGAIN))


def in_zip(names: Sequence[str]) -> Foreign | None:
    """What a zip archive with these members is."""
    if names and all(name.endswith(".npy") for name in names):
        return "a file of arrays (.npz)", _DATA
    return None
