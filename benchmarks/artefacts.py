"""What was made once is kept: ``~/.cache/optkit-peers/SUBJECT/NAME-KEY``, with the seconds that making it took."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

from benchmarks.scores import Arrays
from benchmarks.venvs import cache_folder

FACTS = "made.json"

SAMPLES = 300
"""Most samples of calibration that a peer gets: NNCF's own default."""


def subject_folder(subject: str) -> Path:
    """Where everything about one subject lies."""
    return cache_folder() / subject


def made(folder: Path, name: str, key: object, make: Callable[[Path], None]) -> tuple[Path, float]:
    """``make(scratch folder)`` once per name and key.

    Args:
        folder: parent of the result.
        name: what it is; older results of that name are removed.
        key: everything the result depends on, as text (``repr``).
        make: writes files into the empty folder it is given.

    Returns:
        The finished folder, and how long making it took.

    Raises:
        RuntimeError: ``make`` failed; the reason. Nothing is kept then.
    """
    target = folder / f"{name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder / name}.lock"):
        if not (target / FACTS).is_file():
            _make(target, make)
            _remove_others(target, name)
    return target, json.loads((target / FACTS).read_text())["seconds"]


def _make(target: Path, make: Callable[[Path], None]) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    begin = time.perf_counter()
    try:
        make(target)
    except Exception as error:
        shutil.rmtree(target)
        raise RuntimeError(reason(error)) from error
    (target / FACTS).write_text(json.dumps({"seconds": time.perf_counter() - begin}))


def _remove_others(target: Path, name: str) -> None:
    for path in target.parent.glob(f"{name}-{'?' * 12}"):
        if path != target:
            shutil.rmtree(path)


def reason(error: BaseException) -> str:
    """One short line that says what went wrong; of optkit's own errors the message alone."""
    lines = [line.strip() for line in str(getattr(error, "message", error)).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def size_mb(path: Path) -> float:
    """Size of a model file with what lies beside it (external data, OpenVINO's .bin), or of a folder; MB of 10^6."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
    beside = [path, path.with_name(path.name + ".data")] + ([path.with_suffix(".bin")] if path.suffix == ".xml" else [])
    return sum(file.stat().st_size for file in beside if file.is_file()) / 1e6


def save_samples(path: Path, samples: Sequence[Arrays]) -> Path:
    """All samples in one .npz: ``INDEX/INPUT`` -> array."""
    np.savez(path, **{f"{index}/{name}": array for index, one in enumerate(samples) for name, array in one.items()})
    return path


def samples_digest(samples: Sequence[Arrays]) -> str:
    """Of names, shapes and values."""
    total = hashlib.sha256()
    for one in samples:
        for name, array in sorted(one.items()):
            total.update(f"{name} {array.dtype} {array.shape}".encode())
            total.update(np.ascontiguousarray(array))
    return total.hexdigest()
