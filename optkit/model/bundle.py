"""Bundles: what ``optkit optimize`` leaves behind, written in a hidden sibling and put in place by one rename."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from optkit.errors import OutputError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_FICLONE = 0x40049409


def check_output(out: Path, *, force: bool) -> None:
    """Refuse an output path before any work is done; clear up what killed runs left beside it.

    Raises:
        OutputError: it exists (without ``force``), or its folder is not there or not writable.
    """
    _clear_leftovers(out)
    parent = out.absolute().parent
    if out.exists() and not force:
        raise OutputError(
            f"The output {out} exists already.",
            expected="a path where nothing is yet",
            fix="choose another one with -o, or replace it with --force",
        )
    if out.exists() and not (out.is_file() if out.suffix == ".onnx" else _replaceable(out)):
        kind = "a file" if out.suffix == ".onnx" else "a bundle (a folder with model.onnx and manifest.json)"
        raise OutputError(
            f"The output {out} exists and is not {kind}, so that --force does not replace it.",
            expected=kind if out.suffix == ".onnx" else f"{kind}, or an empty folder",
            fix="choose another path with -o",
        )
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"The folder {parent} is not writable.", expected="a folder you may write to", fix="choose another -o"
        )


def _replaceable(out: Path) -> bool:
    if not out.is_dir():
        return False
    has_model = (out / "model.onnx").is_file() or (out / "model.ort").is_file()
    return (has_model and (out / "manifest.json").is_file()) or not any(out.iterdir())


@contextlib.contextmanager
def staged(out: Path, *, force: bool) -> Iterator[Path]:
    """A fresh hidden folder beside ``out`` that becomes ``out`` when the block ends well, and vanishes otherwise.

    Where ``out`` ends in ``.onnx``, the files in it move beside each other instead, ``out`` itself last.

    Raises:
        OutputError: the disk is full, or the place is not writable.
    """
    out = out.absolute()
    staging = out.parent / f".{out.name}.staging-{os.getpid()}"
    new = [folder for folder in out.parents if not folder.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove(staging)
        staging.mkdir()
        yield staging
        _sync(staging)
        if out.suffix == ".onnx":
            _put_files(staging, out, force=force)
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


def _put_files(staging: Path, out: Path, *, force: bool) -> None:
    """Data first, the model last: whoever finds the model finds its own data, never another one's."""
    files = sorted(staging.iterdir(), key=lambda file: file.name == out.name)
    taken = [out.parent / file.name for file in files if (out.parent / file.name).exists()]
    if taken and not force:
        raise _taken(taken[0])
    if len(files) > 1:
        out.unlink(missing_ok=True)
    for file in files:
        file.replace(out.parent / file.name)
    _sync_folder(out.parent)


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
