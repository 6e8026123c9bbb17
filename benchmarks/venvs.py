"""Virtual environments for peers whose pinned versions clash with optkit's, made when first used.

``requirements-NAME.txt`` -> ``~/.cache/optkit-peers/venvs/NAME``; made anew when the requirements changed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
EXCEPTION = re.compile(r"^[\w.]*(Error|Exception)\b")
PLACES = ("RuntimeError: Exception from", "Exception from", "Check '", "FrontEnd API failed", "Summary:")


def cache_folder() -> Path:
    """``$OPTKIT_PEERS``, else ``~/.cache/optkit-peers``: environments and what the peers made."""
    return Path(os.environ.get("OPTKIT_PEERS") or Path.home() / ".cache" / "optkit-peers")


def requirements(name: str) -> Path:
    """The pinned packages of an environment."""
    return HERE / f"requirements-{name}.txt"


def python(name: str) -> Path:
    """The interpreter of an environment, with all its packages installed.

    Raises:
        RuntimeError: pip failed; with the end of what it said.
    """
    folder = cache_folder() / "venvs" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        stamp, wanted = folder / "requirements.txt", requirements(name).read_text()
        if not (stamp.is_file() and stamp.read_text() == wanted):
            _make(folder, name)
            stamp.write_text(wanted)
    return folder / "bin" / "python"


def _make(folder: Path, name: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    print(f"making the environment of {name} in {folder}", flush=True)
    _checked([sys.executable, "-m", "venv", str(folder)])
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "-q", "install"]
    _checked([*pip, "-r", str(requirements(name))])


def _checked(command: Sequence[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")


def version(name: str, package: str) -> str:
    """The version that an environment's requirements pin, "" where they do not."""
    lines = requirements(name).read_text().splitlines()
    pins = dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))
    return pins.get(package, "").strip()


def run(name: str, script: Path, *arguments: str) -> str:
    """Run a script of this repository in an environment; its stdout.

    The repository is importable there, optkit's own environment is not.

    Raises:
        RuntimeError: the script failed; the last exception of its traceback.
    """
    command = [str(python(name)), str(script), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise RuntimeError(_blame(done.stderr) or f"{script.name} ended with {done.returncode}")
    return done.stdout


def _blame(text: str) -> str:
    """The last exception of a traceback in one line, without the places in sources that OpenVINO puts before it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    begins = [index for index, line in enumerate(lines) if EXCEPTION.match(line)]
    told = [line for line in lines[begins[-1] :] if not line.startswith(PLACES)] if begins else lines[-1:]
    return " ".join(" ".join(told).split())[:250]
