"""The tools themselves, timed from outside: start-up, and dynamic int8 of a 100 MB MLP. python benchmarks/tool.py"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import venvs
from benchmarks.bench_self import DIRECT, Run, median, run
from benchmarks.makers.command import QUIET
from benchmarks.mlp import write_mlp

REPEATS = 3
STARTUP, MLP = "start-up", "dynamic int8, 100 MB MLP"
OLIVE = "compares nothing; 2 s of it is its wait for telemetry that is switched off"
Row = dict[str, str | float | int]
"""Task, tool, median seconds, median peak memory of the process tree in MB, exit code, note."""


@dataclass(frozen=True)
class Task:
    """One command; it is given a fresh folder each time, for its output and its cache."""

    what: str
    tool: str
    command: Callable[[Path], list[str]]
    note: str = ""
    writes: str = ""
    """File of that folder that it must leave; empty = none."""


def rows(repeats: int = REPEATS) -> list[Row]:
    """All tasks, one after the other in rounds, so that a busy minute does not hit one tool only."""
    with tempfile.TemporaryDirectory() as scratch:
        model = write_mlp(Path(scratch) / "mlp.onnx", width=2500, layers=4)
        recipe = Path(scratch) / "quantize.yaml"
        recipe.write_text("version: 1\nname: quantize\npasses: [quantize-dynamic]\n")
        tasks = [*startup(), *quantizing(model, recipe)]
        for task in tasks:
            once(task, Path(scratch) / "first")  # bytecode and file caches are warm for all
        rounds = [[once(task, Path(scratch) / "work") for task in tasks] for _ in range(repeats)]
    return [row(task, [each[index] for each in rounds]) for index, task in enumerate(tasks)]


def startup() -> list[Task]:
    """What a user waits for before anything happens."""
    optkit, olive = str(Path(sys.executable).with_name("optkit")), _olive()
    return [
        Task(STARTUP, "python -c pass", lambda _: [sys.executable, "-c", "pass"], "a bare interpreter"),
        Task(STARTUP, "optkit --help", lambda _: [optkit, "--help"]),
        Task(STARTUP, "olive --help", lambda _: [olive, "--help"]),
        Task(STARTUP, "optkit optimize --help", lambda _: [optkit, "optimize", "--help"]),
        Task(STARTUP, "olive optimize --help", lambda _: [olive, "optimize", "--help"]),
    ]


def quantizing(model: Path, recipe: Path) -> list[Task]:
    """One job, done by the library call alone and by both tools, nothing cached."""
    optkit = [sys.executable, "-m", "optkit", "optimize", str(model), "--recipe", str(recipe)]
    olive = [_olive(), "quantize", "-m", str(model), "--implementation", "ort", "--precision", "int8"]
    direct = [sys.executable, "-c", DIRECT, str(model)]
    return [
        Task(MLP, "quantize_dynamic", lambda at: [*direct, str(at / "model.onnx")], "the library call", "model.onnx"),
        Task(
            MLP,
            "optkit optimize --no-bench",
            lambda at: [*optkit, "--no-bench", "-o", str(at / "out")],
            "compares the outputs with the original's",
            "out/model.onnx",
        ),
        Task(
            MLP,
            "optkit optimize",
            lambda at: [*optkit, "-o", str(at / "out")],
            "compares outputs, measures both models' speed",
            "out/model.onnx",
        ),
        Task(MLP, "olive quantize", lambda at: [*olive, "-o", str(at / "out")], OLIVE, "out/model.onnx"),
    ]


def _olive() -> str:
    return str(venvs.python("olive").with_name("olive"))


def once(task: Task, folder: Path) -> Run:
    """Run it in a fresh folder, with an empty cache; a run that leaves no file counts as exit code -1 if it said 0."""
    with tempfile.TemporaryDirectory(prefix=folder.name, dir=folder.parent) as name:
        place = Path(name)
        words = ["env", "-C", name, *task.command(place)]  # Olive's cache lies in the working directory
        found = run(words, **QUIET, OPTKIT_CACHE=str(place / "cache"))
        left = not task.writes or (place / task.writes).is_file()
    return found if left or found.code else Run(found.seconds, found.peak_mb, -1, found.output)


def row(task: Task, runs: list[Run]) -> Row:
    """Medians; the worst exit code."""
    middle = median(runs)
    code = next((each.code for each in runs if each.code), 0)
    figures: Row = {"seconds": round(middle.seconds, 3), "peak MB": round(middle.peak_mb)}
    return {"task": task.what, "tool": task.tool, **figures, "exit code": code, "note": task.note}


def main() -> None:
    """Print the rows."""
    print(f"load average {os.getloadavg()[0]:.1f}")
    for each in rows():
        print(" | ".join(f"{key} {value}" for key, value in each.items()), flush=True)


if __name__ == "__main__":
    main()
