"""Bundles: what ``optkit optimize`` leaves behind, written in a hidden sibling and put in place by one rename."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import filecmp
import glob
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from optkit.errors import ModelError, OutputError

_PARTS = (
    "model.onnx",
    "model.ort",
    "model.onnx.data",
    "manifest.json",
    "recipe.yaml",
    "report.md",
    "open_model.py",
    "preprocess.json",
)
MODEL_ENDINGS = (".onnx", ".ort")
"""Of outputs that are a model alone, and no bundle."""
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_FICLONE = 0x40049409


def is_alone(out: str | Path) -> bool:
    """Whether an output is to be a model alone (``out.onnx``, ``out.ort``), and no bundle."""
    return Path(out).suffix in MODEL_ENDINGS


def check_output(out: Path, *, force: bool) -> None:
    """Refuse an output path before any work is done; clear up what killed runs left beside it.

    Raises:
        OutputError: it exists (without ``force``), is a link that leads nowhere, would take away or come to stand
            beside what is not optkit's, or its folder is not there or not writable.
    """
    if out.is_symlink() and not out.exists():
        raise OutputError(
            f"The output {out} is a link that leads nowhere.",
            expected="a path where nothing is yet, or a link to an output",
            fix="remove the link, or choose another path with -o",
        )
    alone, out = is_alone(out), real_place(out)
    _clear_leftovers(out)
    parent = out.parent
    if out.exists() and not force:
        raise OutputError(
            f"The output {out} exists already.",
            expected="a path where nothing is yet",
            fix="choose another one with -o, or replace it with --force",
        )
    if out.exists() and not (out.is_file() if alone else _replaceable(out)):
        kind = "a file" if alone else "a bundle (a folder with model.onnx and optkit's manifest.json)"
        raise OutputError(
            f"The output {out} exists and is not {kind}, so that --force does not replace it.",
            expected=kind if alone else f"{kind}, or an empty folder",
            fix="choose another path with -o",
        )
    foreign = _foreign_data(out) if alone else _foreign_files(out)
    if foreign:
        raise OutputError(
            f"Beside the output {out} lies {foreign[0].name}, which is no part of it."
            if alone
            else f"The output {out} holds files that are no part of a bundle, so that --force does not replace it: "
            + ", ".join(str(file.relative_to(out)) for file in foreign[:5])
            + (f" and {len(foreign) - 5} more." if len(foreign) > 5 else "."),
            expected="only what optkit wrote",
            fix="move them elsewhere, or choose another path with -o",
        )
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"The folder {parent} is not writable.", expected="a folder you may write to", fix="choose another -o"
        )


def real_place(out: Path) -> Path:
    """The absolute path that is written to: what a link leads to, else the path itself."""
    return out.resolve() if out.is_symlink() else out.absolute()


def data_name(name: str, digest: str) -> str:
    """``out.1a2b3c4d.data``: the file for the data of ``out.onnx``, by their sha256."""
    return f"{name.removesuffix('.onnx')}.{digest[:8]}.data"


def _replaceable(out: Path) -> bool:
    if not out.is_dir():
        return False
    has_model = (out / "model.onnx").is_file() or (out / "model.ort").is_file()
    return (has_model and _is_manifest(out / "manifest.json")) or not any(out.iterdir())


def _is_manifest(file: Path) -> bool:
    """Whether it is optkit's, of any version."""
    from optkit.model.bundle_facts import read_object

    try:
        return {"schema_version", "recipe_name"} <= read_object(file).keys()
    except (OSError, ModelError):
        return False


def _foreign_files(out: Path) -> list[Path]:
    """What no bundle has in it."""
    if not out.is_dir():
        return []
    own = {*(out / name for name in _PARTS), *_data_files(out / "model.onnx")}
    own.update((out / "preprocess").glob("*/tokenizer*.json"))
    own.update((out / "__pycache__").glob("open_model.*.pyc"))
    return sorted(path for path in out.rglob("*") if not path.is_dir() and path not in own)


def _foreign_data(out: Path) -> list[Path]:
    """``out.onnx.data`` that ``out.onnx`` does not know: it would look like the new model's."""
    data = out.with_name(f"{out.name}.data")
    return [data] if data.exists() and data not in _data_files(out) else []


def _data_files(model: Path) -> list[Path]:
    """The external data of a model file, where it is one."""
    from optkit.model.onnx_file import external_files

    try:
        return external_files(model) if model.is_file() else []
    except ModelError:
        return []


@contextlib.contextmanager
def staged(out: Path, *, force: bool) -> Iterator[Path]:
    """A fresh hidden folder beside ``out`` that becomes ``out`` when the block ends well, and vanishes otherwise.

    Where ``out`` ends in ``.onnx`` or ``.ort``, the files in it move beside each other instead, ``out`` itself
    last. Where ``out`` is a link, it stays, and what it leads to is replaced.

    Raises:
        OutputError: the disk is full, or the place is not writable.
    """
    name, out = out.name, real_place(out)
    staging = out.parent / f".{out.name}.staging-{os.getpid()}"
    new = [folder for folder in out.parents if not folder.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove(staging)
        staging.mkdir()
        yield staging
        _sync(staging)
        if is_alone(name):
            _put_files(staging, name, out, force=force)
        else:
            _put(staging, out, force=force)
    except OSError as error:
        raise write_error(error, out) from error
    finally:
        _remove(staging)
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()


def disk_full(error: OSError) -> bool:
    """Whether the disk, and not who wrote to it, is to blame."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def write_error(error: OSError, path: Path, *, fix: str = "choose another path with -o") -> OutputError:
    """An operating system's complaint about writing to ``path`` as a sentence."""
    full = disk_full(error)
    return OutputError(
        f"{path} cannot be written: {error.strerror or error}.",
        expected="free space on that disk" if full else "a place you may write to",
        fix="free some space, or choose another disk with -o (and OPTKIT_CACHE for the cache)" if full else fix,
    )


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, sharing its blocks where the filesystem can (reflink); never a hard link."""
    with source.open("rb") as reader, target.open("wb") as writer:
        try:
            import fcntl

            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except (OSError, ImportError):
            shutil.copyfileobj(reader, writer, 8 << 20)


def _put(staging: Path, out: Path, *, force: bool) -> None:
    if not out.exists():
        staging.rename(out)
    elif not force:
        raise _taken(out)
    elif not _exchange(staging, out):
        aside = out.parent / f".{out.name}.old-{os.getpid()}"
        out.rename(aside)
        try:
            staging.rename(out)
        except BaseException:
            aside.rename(out)
            raise
        _remove(aside)
    _sync_folder(out.parent)


def _taken(place: Path) -> OutputError:
    return OutputError(
        f"The output cannot be put in place: {place} exists, and was not to be expected when optkit began.",
        expected="a path where nothing is yet",
        fix="choose another one with -o, or replace it with --force",
    )


def _put_files(staging: Path, name: str, out: Path, *, force: bool) -> None:
    """New data first, then the model, then the old model's data go: at every moment there is a whole model.

    Data are named by their digest, so that new ones take the place of old ones only where they are the same.
    """
    if out.exists() and not force:
        raise _taken(out)
    data = [file for file in staging.iterdir() if file.name != name]
    for file in data:
        there = out.parent / file.name
        if there.exists() and not (there.is_file() and filecmp.cmp(file, there, shallow=False)):
            raise _taken(there)
    pattern = re.compile(re.escape(name.removesuffix(".onnx")) + r"\.[0-9a-f]{8}\.data")
    old = [file for file in _data_files(out) if file.parent == out.parent and pattern.fullmatch(file.name)]
    for file in data:
        file.replace(out.parent / file.name)
    _sync_folder(out.parent)
    (staging / name).replace(out)
    _sync_folder(out.parent)
    for file in old:
        if file.name not in {new.name for new in data}:
            file.unlink(missing_ok=True)


def _exchange(left: Path, right: Path) -> bool:
    """Swap two paths in one step (Linux ``renameat2``); False where that is not to be had."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(left), _AT_FDCWD, os.fsencode(right), _RENAME_EXCHANGE) == 0)


def _clear_leftovers(out: Path) -> None:
    """Of processes that were killed: put an output back that was only set aside, and remove what was half written."""
    for kind in ("old", "staging"):
        for left in out.absolute().parent.glob(f".{glob.escape(out.name)}.{kind}-*"):
            owner = left.name.rpartition("-")[2]
            if not owner.isdigit() or psutil.pid_exists(int(owner)):
                continue
            if kind == "staging" or out.exists():
                _remove(left)
            else:
                left.rename(out)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
