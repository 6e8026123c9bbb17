"""The content-addressed cache: results of passes, outputs of originals, facts. Entries are verified by digest."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from optkit.errors import OptkitError, OutputError, UsageError
from optkit.model.bundle import disk_full, write_error
from optkit.model.digest import sha256_files

DEFAULT_CAP = 20 * 10**9
"""Bytes; ``OPTKIT_CACHE_SIZE`` overrides, in GB."""
GRACE_S = 600.0
"""Entries used in these last seconds are not evicted: a comparison may be reading them."""

WAIT_S = 1.0
"""Seconds of waiting for another process that need no word."""

PARTIAL_S = 14 * 24 * 3600.0
"""Seconds after which nobody comes back to an interrupted step."""

FULL_BYTES = 2**16
"""A failure with less free space than this is the disk's."""


@dataclass(frozen=True)
class Entry:
    """One cached result, for ``optkit cache ls``."""

    key: str
    what: str
    """Pass name, or what else it holds."""
    size_bytes: int
    used: float
    """Unix time of the last use."""


def key_of(facts: Mapping[str, Any]) -> str:
    """sha256 over plain facts, independent of their order."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _acquire(lock: FileLock) -> None:
    """Wait for a lock, and say so when that takes long."""
    try:
        lock.acquire(timeout=WAIT_S)
    except Timeout:
        sys.stderr.write("another optkit works on this; waiting\n")
        lock.acquire()


def _whole(folder: Path) -> bool:
    """Whether every file is there with its digest; notes the use if so.

    Raises:
        OSError: one cannot be read for another reason than not being there.
    """
    try:
        entry = json.loads((folder / "entry.json").read_text())
        if any(sha256_files([folder / name]) != digest for name, digest in entry["digests"].items()):
            return False
        _touch(folder / "entry.json")
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


def _touch(file: Path) -> None:
    """Note the use; in a cache that may only be read nothing is noted."""
    try:
        os.utime(file)
    except PermissionError:
        return
    except OSError as error:
        if error.errno != errno.EROFS:
            raise


class Cache:
    """Folders by key below one root. Safe for several processes at a time."""

    def __init__(self, root: Path, cap_bytes: int = DEFAULT_CAP) -> None:
        self.root = root
        self.cap_bytes = cap_bytes

    @classmethod
    def default(cls) -> Cache:
        """``$OPTKIT_CACHE``, else the user's cache folder; the cap from ``$OPTKIT_CACHE_SIZE`` (GB)."""
        from platformdirs import user_cache_path

        root = os.environ.get("OPTKIT_CACHE")
        size = os.environ.get("OPTKIT_CACHE_SIZE")
        try:
            cap = abs(int(float(size) * 10**9)) if size else DEFAULT_CAP
        except (ValueError, OverflowError) as error:
            raise UsageError(
                f"OPTKIT_CACHE_SIZE={size} is no number.", expected="gigabytes, like 20", fix="set or unset it"
            ) from error
        return cls(Path(root) if root else user_cache_path("optkit"), cap)

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Only one process at a time works on a key."""
        folder = self.root / "locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / f"{key[:40]}.lock")
            _acquire(lock)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """No process evicts what is used while the block lasts, however long that is."""
        with self.workdir("run-"):
            yield

    @contextlib.contextmanager
    def workdir(self, kind: str = "") -> Iterator[Path]:
        """A fresh folder on the cache's filesystem; gone afterwards, whatever happens.

        Raises:
            OutputError: it cannot be made, or whoever worked in it found the disk full.
        """
        base = self.root / "work"
        try:
            base.mkdir(parents=True, exist_ok=True)
            self._sweep(base)
            folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-{kind}", dir=base))
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield folder
        except Exception as error:  # libraries tell a full disk in their own words
            if self._is_full(error):
                raise self._unwritable(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def partial(self, key: str) -> Path:
        """A folder for what an interrupted step leaves, to go on from; ``finished`` removes it."""
        folder = self.root / "partial" / key[:40]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for other in folder.parent.iterdir():
                with contextlib.suppress(FileNotFoundError):  # another process has just finished it
                    if other != folder and time.time() - other.stat().st_mtime > PARTIAL_S:
                        shutil.rmtree(other, ignore_errors=True)
            os.utime(folder)
        except OSError as error:
            raise self._unwritable(error) from error
        return folder

    def finished(self, key: str) -> None:
        """The step of that key is done: nothing to go on from."""
        shutil.rmtree(self.root / "partial" / key[:40], ignore_errors=True)

    def _is_full(self, error: Exception) -> bool:
        if isinstance(error, OSError) and disk_full(error):
            return True
        of_libraries = not isinstance(error, OptkitError) or isinstance(error.__cause__, Exception)
        return of_libraries and shutil.disk_usage(self.root).free < FULL_BYTES

    def get(self, key: str) -> Path | None:
        """The verified folder of a key, or None.

        A damaged entry stays until it is put anew: who removed it might meet the sound one of another process.
        """
        folder = self._folder(key)
        try:
            whole = _whole(folder) or _whole(folder)  # again, as another process may just have put it anew
        except OSError:  # too many open files, no permission, a disk that is away: no word about the entry
            return None
        return folder if whole else None

    def put(self, key: str, made: Path, what: str) -> Path:
        """Move a finished folder into the cache, and evict the least recently used beyond the cap."""
        files = sorted(path for path in made.rglob("*") if path.is_file())
        digests = {str(path.relative_to(made)): sha256_files([path]) for path in files}
        size = sum(path.stat().st_size for path in files)
        try:
            (made / "entry.json").write_text(json.dumps({"what": what, "size": size, "digests": digests}))
            folder = self._folder(key)
            folder.parent.mkdir(parents=True, exist_ok=True)
            self._replace(made, folder)
        except OSError as error:
            raise self._unwritable(error) from error
        self._evict(keep=key)
        return folder

    def get_facts(self, key: str) -> Any:
        """The plain data put under a key, or None (also where another process removes them this very moment)."""
        folder = self.get(key)
        try:
            return None if folder is None else json.loads((folder / "facts.json").read_text())
        except FileNotFoundError:
            return None

    def put_facts(self, key: str, facts: Any, what: str) -> None:
        """Keep plain data under a key."""
        with self.workdir() as folder:
            made = folder / "facts"
            made.mkdir()
            (made / "facts.json").write_text(json.dumps(facts))
            self.put(key, made, what)

    def entries(self) -> list[Entry]:
        """All entries, most recently used first."""
        found = []
        for file in (self.root / "entries").glob("*/*/entry.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                entry = json.loads(file.read_text())
                found.append(Entry(file.parent.name, entry["what"], entry["size"], file.stat().st_mtime))
        return sorted(found, key=lambda entry: -entry.used)

    def remove(self, keys: list[str] | None = None) -> list[Entry]:
        """Remove the entries whose key starts with one of ``keys``; for None all, and what interrupted steps left.

        Raises:
            UsageError: a key is empty, with which every key starts.
        """
        if keys is not None and not all(map(str.strip, keys)):
            raise UsageError(
                "An empty key would remove everything.",
                expected="beginnings of keys, as optkit cache ls shows them",
                fix="name a key; or, to remove everything: optkit cache rm --all",
            )
        gone = [e for e in self.entries() if keys is None or any(e.key.startswith(key) for key in keys)]
        for entry in gone:
            shutil.rmtree(self._folder(entry.key), ignore_errors=True)
        if keys is None:
            shutil.rmtree(self.root / "partial", ignore_errors=True)
        return gone

    def _replace(self, made: Path, folder: Path) -> None:
        """Rename onto ``folder``, which another process may fill at the same moment: the later one wins."""
        while True:
            try:
                made.rename(folder)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            with self.workdir() as aside, contextlib.suppress(FileNotFoundError):
                folder.rename(aside / "old")

    def _unwritable(self, error: OSError) -> OutputError:
        return write_error(error, self.root, fix="choose another place for the cache: export OPTKIT_CACHE=FOLDER")

    def _folder(self, key: str) -> Path:
        return self.root / "entries" / key[:2] / key

    def _evict(self, keep: str) -> None:
        total, held = 0, self._held_since()
        for entry in self.entries():
            total += entry.size_bytes
            if total > self.cap_bytes and entry.key != keep and entry.used < held:
                shutil.rmtree(self._folder(entry.key), ignore_errors=True)

    def _held_since(self) -> float:
        """Unix time; entries used later may belong to a run that still goes on."""
        began = [time.time() - GRACE_S]
        for marker in (self.root / "work").glob("*-run-*"):
            with contextlib.suppress(OSError):
                began.append(marker.stat().st_mtime)
        return min(began)

    def _sweep(self, base: Path) -> None:
        """Remove what killed processes left behind."""
        for folder in base.iterdir():
            owner = folder.name.split("-")[0]
            if owner.isdigit() and not psutil.pid_exists(int(owner)):
                shutil.rmtree(folder, ignore_errors=True)
