"""Files that are handed in for a model and are none: what they are, and what to do."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from optkit.errors import ModelError
from optkit.model.open import open_model


def refused(path: Path, match: str) -> ModelError:
    with pytest.raises(ModelError, match=match) as caught:
        open_model(path)
    assert (caught.value.exit_code, str(caught.value.file)) == (3, str(path))
    return caught.value


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"GGUF\x03\x00\x00\x00" + b"\0" * 32, "GGUF file"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 32, "HDF5"),
        (b"\x1c\x00\x00\x00TFL3" + b"\0" * 32, "TensorFlow Lite"),
        (b'<?xml version="1.0"?><net/>', "XML"),
        (pickle.dumps({"a": 1}), "Python pickle, but not one of torch.save"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF" + b"\0" * 32, r"an image \(JPEG\)"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 32, r"an image \(PNG\)"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt " + b"\0" * 32, r"a sound \(WAV\)"),
        (b"\x93NUMPY\x01\x00" + b"\0" * 32, r"an array of numpy \(.npy\)"),
        ("Für Elise\n".encode() * 300, "a text file"),
        (b"\n<!DOCTYPE html><title>Sign in</title>", r"a web page \(HTML\)"),
    ],
)
def test_foreign_files_are_named(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "model").write_bytes(content)
    refused(tmp_path / "model", what)


@pytest.mark.parametrize(
    ("name", "what", "fix"),
    [
        ("x.txt", "a text file", "--input or --data"),
        ("x.csv", "a table of text", "--input or --data"),
        ("net.PY", "Python code", "--factory FILE.py:fn"),
        ("r.yaml", "a YAML file", "a recipe with --recipe"),
        ("notes", "a text file", "look at what it says"),
        ("m.onnx", "a text file", "download the model again"),
        ("m.pt", "a text file", "download the model again"),
    ],
)
def test_texts_are_named_by_their_ending(tmp_path: Path, name: str, what: str, fix: str) -> None:
    (tmp_path / name).write_text("a,b\n1,2\n")
    assert fix in refused(tmp_path / name, what).fix


def test_a_damaged_onnx_file_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch")
    refused(tmp_path / "m.onnx", "cut off or no ONNX model")


def test_arrays_are_no_model(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones(3))
    assert "--input or --data" in refused(tmp_path / "x.npz", r"a file of arrays \(.npz\)").fix
