"""Pruning and distillation on real models: make bench-train -> benchmarks/train.json and TRAIN.md

python benchmarks/train.py                          every model; on a quiet machine, about an hour
python benchmarks/train.py digits minilm            some of them; the others' results are kept
python benchmarks/train.py minilm --steps 20        a quick look -> out/train.json

Every training takes at most ``--seconds``. Results are timed against the original's fp32 ONNX in one interleaved run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import accuracy, peers, train_cases, venvs
from benchmarks.artefacts import size_mb, subject_folder
from benchmarks.makers.command import product, run
from benchmarks.makers.optkit_ import LOOSE, shapes, sources
from benchmarks.render import at, table
from benchmarks.results import AtPoint, Facts
from benchmarks.subjects import Product, Subject
from benchmarks.train_cases import Case, Goal, Recipe, Variant
from optkit.model.machine import fingerprint
from optkit.model.manifest import Environment, MetricResult
from optkit.model.target import Target
from optkit.pipeline.environment import environment, load_average

FILE, PAGE = venvs.HERE / "train.json", venvs.HERE / "TRAIN.md"
BASE = "fp32 ONNX"
TRAINING = ("prune-channels", "drop-layers", "distill")
"""Passes whose notes say what became smaller, and how training went."""


class Row(Facts):
    """One result."""

    label: str
    failed: str = ""
    seconds: float = 0.0
    """Making it, training and measuring together; steps that results share count for the first."""
    size_mb: float | None = None
    scores: dict[str, float] = Field(default_factory=dict)
    metric: MetricResult | None = None
    """As the verdict has it, where the data have labels."""
    points: tuple[AtPoint, ...] = ()
    notes: tuple[str, ...] = ()


class Reached(Facts):
    """A goal, and what was measured."""

    text: str
    measured: float | None
    held: bool


class CaseResult(Facts):
    """One model."""

    name: str
    title: str
    said: str
    date: str
    samples: int
    points: tuple[dict[str, int], ...]
    rows: tuple[Row, ...]
    """The original as ``BASE`` first."""
    goals: tuple[Reached, ...]
    seconds: float
    """Most for each training."""
    load_average: float | None = None


class TrainResults(Facts):
    """Everything."""

    environment: Environment
    cases: tuple[CaseResult, ...]


# --- one case -----------------------------------------------------------------------------------------------------


def measured(case: Case, settings: peers.Settings, training: Mapping[str, Any]) -> CaseResult:
    """Make, judge and time all results of one case."""
    subject = case.subject
    base = Product(BASE, "onnxruntime", subject.baseline, "onnxruntime")
    products = [base, *(optimized(case, variant, training) for variant in case.variants)]
    load = load_average()
    running = [each for each in products if not each.failed]
    timed = [peers.at_point(subject, running, point, settings) for point in subject.points]
    rows = tuple(_row(subject, each, [point[each.label] for point in timed if each in running]) for each in products)
    return CaseResult(
        name=subject.name,
        title=subject.title,
        said=case.said,
        date=peers.now(),
        samples=accuracy.rows(subject),
        points=subject.points,
        rows=rows,
        goals=tuple(reached(goal, subject.points, rows) for goal in case.goals),
        seconds=training["seconds"],
        load_average=load,
    )


def optimized(case: Case, variant: Variant, training: Mapping[str, Any]) -> Product:
    """What ``optkit optimize`` makes of it, kept; a product that failed says why."""
    recipe = variant.recipe | {"train": variant.recipe.get("train", {}) | training}
    subject = case.subject
    data = [(split, _content(path)) for split, path in sorted(subject.data.items())]
    key = (subject.opened().digest, subject.signature, recipe, data, sources(), fingerprint(Target()))
    folder = subject_folder(subject.name)
    peers.say(f"{subject.name}: {variant.label}")
    name = "train-" + re.sub(r"\W+", "-", variant.label)
    found = product(variant.label, "optkit", folder, name, key, partial(_optimize, case, recipe))
    if found.path is None:
        peers.say(f"{subject.name}: {variant.label} failed: {found.failed}")
        return found
    bundle = found.path.parent / "bundle"
    session = _manifest(bundle)["session"]
    return Product(found.label, found.peer, bundle / "model.onnx", found.engine, session=session, seconds=found.seconds)


def _optimize(case: Case, recipe: Recipe, place: Path) -> None:
    """Results of one case share a cache, so that what they have in common is pruned and trained once."""
    subject = case.subject
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    given = ["--factory", subject.factory] if subject.factory else []
    given += ["--signature", subject.signature] if subject.signature else []
    given += ["--metric", case.metric] if case.metric else []
    for split, path in subject.data.items():
        given += ["--data", f"{split}={path}"]
    given += ["--set", f"target.shapes={json.dumps(shapes(subject))}", *LOOSE, "-o", place / "bundle", "--force"]
    command = [sys.executable, "-m", "optkit", "optimize", subject.model, "--recipe", place / "recipe.yaml", *given]
    run(command, place, OPTKIT_CACHE=str(subject_folder(subject.name) / "train-cache"))


def _content(path: Path) -> str:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def _manifest(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return found


def _row(subject: Subject, product_: Product, points: Sequence[AtPoint]) -> Row:
    if product_.path is None:
        return Row(label=product_.label, failed=product_.failed)
    known = {} if product_.path == subject.baseline else _manifest(product_.path.parent)
    metrics = known["verdict"]["metrics"] if known else []
    notes = [
        f"{step['id']}: {note}" for step in known.get("steps", ()) if step["name"] in TRAINING for note in step["notes"]
    ]
    rolled = [f"{step['id']}: {step['status']}, {step['reason']}" for step in known.get("steps", ()) if _undone(step)]
    return Row(
        label=product_.label,
        seconds=product_.seconds,
        size_mb=size_mb(product_.path),
        scores=peers.scores(subject, product_),
        metric=MetricResult.model_validate(metrics[0]) if metrics else None,
        points=tuple(points),
        notes=(*notes, *rolled),
    )


def _undone(step: Mapping[str, Any]) -> bool:
    return step["status"] == "rolled back" or (step["status"] == "no effect" and step["name"].startswith("quantize"))


# --- goals --------------------------------------------------------------------------------------------------------


def figures(row: Row, base: Row, points: Sequence[dict[str, int]]) -> dict[str, float]:
    """Everything a goal may name: scores, what they lost, and speedup and share of the latency at each point."""
    found = dict(row.scores)
    found |= {f"{name} lost": base.scores[name] - value for name, value in row.scores.items() if name in base.scores}
    for point, each in zip(points, row.points, strict=False):
        if each.ratio is not None:
            found |= {f"speedup, {at(point)}": each.ratio.speedup, f"latency, {at(point)}": 1 / each.ratio.speedup}
    if row.metric is not None:
        found["drop"] = row.metric.drop
    return found


def reached(goal: Goal, points: Sequence[dict[str, int]], rows: Sequence[Row]) -> Reached:
    """Whether a result, or one better than another, is as it should be; not, where it failed."""
    known = {row.label: figures(row, rows[0], points) for row in rows}
    value = known[goal.label].get(goal.figure)
    wanted = known[goal.wanted].get(goal.figure) if isinstance(goal.wanted, str) else goal.wanted
    told = f"that of '{goal.wanted}'" if isinstance(goal.wanted, str) else f"{goal.wanted:g}"
    words = "more than" if isinstance(goal.wanted, str) else "at most" if goal.most else "at least"
    text = f"{goal.label}: {goal.figure} {words} {told}"
    if value is None or wanted is None:
        return Reached(text=text, measured=value, held=False)
    held = value > wanted if isinstance(goal.wanted, str) else value <= wanted if goal.most else value >= wanted
    return Reached(text=text, measured=value, held=held)


# --- words --------------------------------------------------------------------------------------------------------


def page(found: TrainResults) -> str:
    """TRAIN.md."""
    here = found.environment
    head = [
        "# Pruning and distillation",
        "Written by `python benchmarks/train.py` (`make bench-train`) from `train.json`, reached or not.",
        f"{here.cpu}, {here.threads} threads of {here.cores} logical cores; optkit {here.optkit}, "
        f"onnxruntime {here.packages.get('onnxruntime', '?')}, torch {here.packages.get('torch', '?')}. "
        f"**x**: how many times as fast as the original's fp32 ONNX, with its 99% interval, in one interleaved run.",
    ]
    return "\n\n".join([*head, *(section(case) for case in found.cases)]) + "\n"


def section(case: CaseResult) -> str:
    """One case as Markdown."""
    names = list(dict.fromkeys(name for row in case.rows for name in row.scores))
    labelled = any(row.metric for row in case.rows)
    head = ["", *(text for point in case.points for text in (f"{at(point)}: ms", "x")), *names]
    head += [*(["drop (95 % bound)"] if labelled else []), "MB", "made in"]
    rows = [_cells(row, names, labelled) for row in case.rows if not row.failed]
    load = "" if case.load_average is None else f", load average before it {case.load_average:.1f}"
    goals = [f"- {_word(goal)}: {goal.text}" for goal in case.goals]
    notes = [f"- {row.label}: {note}" for row in case.rows for note in ([row.failed] if row.failed else row.notes)]
    parts = [
        f"## {case.title}",
        f"{case.said} Scores on {case.samples} samples; at most {case.seconds:g} s for each training. "
        f"Measured {case.date}{load}.",
        table(head, rows),
        "\n".join(goals),
    ]
    if notes:
        parts.append("<details><summary>How they were made</summary>\n\n" + "\n".join(notes) + "\n\n</details>")
    return "\n\n".join(parts)


def _cells(row: Row, names: Sequence[str], labelled: bool) -> list[str]:
    drop = [f"{row.metric.drop:.4f} ({row.metric.bound:.4f})" if row.metric else ""] if labelled else []
    size = "" if row.size_mb is None else f"{row.size_mb:.3g}"
    made_in = f"{row.seconds:.0f} s" if row.seconds else ""
    scores = [f"{row.scores[name]:.4f}" if name in row.scores else "" for name in names]
    return [row.label, *(text for point in row.points for text in _timed(point)), *scores, *drop, size, made_in]


def _timed(point: AtPoint) -> tuple[str, str]:
    if point.ratio is None:
        return point.failed, ""
    ratio = point.ratio
    interval = "1" if ratio.low == ratio.high == 1 else f"{ratio.speedup:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{point.median_ms:.3g}", interval + ("" if point.stable else " ?")


def _word(goal: Reached) -> str:
    value = "not measured" if goal.measured is None else f"{goal.measured:.4g}"
    return f"{'reached' if goal.held else '**missed**'}, {value}"


# --- all of it ----------------------------------------------------------------------------------------------------


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="MODEL", help=", ".join(train_cases.CASES))
    parser.add_argument("--seconds", type=float, default=480, help="most for each training")
    parser.add_argument("--steps", type=int, help="most for each training; then only a quick look")
    parser.add_argument("--budget", type=float, default=3, help="seconds of measuring per candidate and point")
    parser.add_argument("--launches", type=int, default=3, help="most launches of every process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file; its other models are kept; the page lies beside it")
    given = parser.parse_args(words)
    if unknown := set(given.names) - set(train_cases.CASES):
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(train_cases.CASES)}")
    return given


def merged(output: Path, found: CaseResult, here: Environment) -> TrainResults:
    """What ``output`` has already, with this case in its place."""
    before = TrainResults.model_validate_json(output.read_text()).cases if output.is_file() else ()
    kept = {case.name: case for case in before} | {found.name: found}
    return TrainResults(environment=here, cases=tuple(kept[name] for name in train_cases.CASES if name in kept))


def main() -> None:
    """Measure, keep, print."""
    given = arguments()
    settings = peers.Settings((), given.budget, given.launches, given.threads)
    training = {"seconds": given.seconds} | ({"steps": given.steps} if given.steps else {})
    output = given.output or (venvs.ROOT / "out" / "train.json" if given.steps else FILE)
    output.parent.mkdir(parents=True, exist_ok=True)
    for name in given.names or train_cases.CASES:
        found = measured(train_cases.load(name), settings, training)
        results = merged(output, found, environment(Target(threads=given.threads), load_average()))
        output.write_text(results.model_dump_json(indent=1) + "\n")
        output.with_name(PAGE.name).write_text(page(results))
        print(section(found), flush=True)
    peers.say(f"wrote {output} ({shlex.join(sys.argv)})")


if __name__ == "__main__":
    main()
