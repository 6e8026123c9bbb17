"""optkit against its peers on real models: speed, accuracy, size and memory, all measured alike.

python benchmarks/peers.py                                          every model, every peer -> benchmarks/results.json
python benchmarks/peers.py minilm --only optkit,onnxruntime --budget 1   a quick look -> out/peers.json

What the peers make is kept in ~/.cache/optkit-peers; a second run only measures. At each point all candidates of a
model are timed in one interleaved run by optkit.bench.measure, with equal threads and on the same inputs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import accuracy, results, tool, venvs, zoo_subjects
from benchmarks import scores as judging
from benchmarks.artefacts import made as kept
from benchmarks.artefacts import reason, samples_digest, size_mb, subject_folder
from benchmarks.makers import olive, openvino_, optkit_, ort, torch_
from benchmarks.subjects import Point, Product, Subject, open_product
from optkit import __version__
from optkit.bench.measure import Candidate, Measured, Rules, measure
from optkit.errors import OptkitError
from optkit.model.target import Target
from optkit.pipeline.environment import environment, load_average

SCORES = "scores.json"
MAKERS = (ort, torch_, openvino_, olive, optkit_)
"""The first one's first product is plain onnxruntime, the baseline of all ratios."""
SHARE = 0.6
"""Of the free memory that the processes of one interleaved run may take."""


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    only: tuple[str, ...]
    """Peers, () = all; the baseline is always there."""
    budget_s: float
    """Per candidate and point."""
    launches: int
    threads: int

    def rules(self, candidates: int) -> Rules:
        """For one interleaved run of so many candidates."""
        return Rules(budget_s=self.budget_s * candidates, launches=self.launches)


def compare(subject: Subject, settings: Settings) -> results.SubjectResult:
    """Make, judge and time everything for one subject."""
    products = made(subject, settings.only)
    load = load_average()
    judged = [_judged(subject, product) for product in products]
    running = [product for product, found in zip(products, judged, strict=True) if not found.failed]
    timed = [at_point(subject, running, point, settings) for point in subject.points]
    points = {product.label: tuple(each[product.label] for each in timed) for product in running}
    return results.SubjectResult(
        name=subject.name,
        title=subject.title,
        date=now(),
        headline=subject.headline,
        points=subject.points,
        samples=accuracy.rows(subject),
        candidates=tuple(each.model_copy(update={"points": points.get(each.label, ())}) for each in judged),
        load_average=load,
    )


def made(subject: Subject, only: Sequence[str]) -> list[Product]:
    """What every maker makes of it; a maker that breaks down altogether is a product that failed."""
    products: list[Product] = []
    for maker in MAKERS:
        peer = maker.PEER
        if only and peer not in only and maker is not MAKERS[0]:
            continue
        say(f"{subject.name}: {peer}")
        try:
            products += maker.products(subject, subject_folder(subject.name))
        except Exception as error:  # noqa: BLE001 - one peer's failure is a line in the table, not the end of the run
            traceback.print_exc()
            products.append(Product(peer, peer, None, "", failed=reason(error)))
    return [products[0], *(product for product in products[1:] if not only or product.peer in only)]


def _judged(subject: Subject, product: Product) -> results.Candidate:
    """The product's facts, with its scores; the reason where it does not run."""
    found = results.Candidate(
        label=product.label,
        peer=product.peer,
        engine=product.engine,
        session=product.session,
        seconds=product.seconds,
        size_mb=None if product.path is None else size_mb(product.path),
        note=product.note,
        failed=product.failed,
    )
    if product.failed:
        return found
    try:
        return found.model_copy(update={"scores": scores(subject, product)})
    except RuntimeError as error:
        return found.model_copy(update={"failed": reason(error)})


def scores(subject: Subject, product: Product) -> dict[str, float]:
    """Computed once: paths of products name everything that they depend on.

    Raises:
        RuntimeError: it does not load or run.
    """

    def make(place: Path) -> None:
        say(f"{subject.name}: scores of {product.label}")
        (place / SCORES).write_text(json.dumps(accuracy.scores(subject, product)))

    sources = [Path(module.__file__ or "").read_text() for module in (accuracy, judging)]
    key = (str(product.path), product.engine, product.session, sources, samples_digest(subject.evaluation), versions())
    place, _ = kept(subject_folder(subject.name) / "scores", re.sub(r"\W+", "-", product.label), key, make)
    found: dict[str, float] = json.loads((place / SCORES).read_text())
    return found


def at_point(
    subject: Subject, products: Sequence[Product], point: Point, settings: Settings
) -> dict[str, results.AtPoint]:
    """Label -> what was measured; candidates that do not run at this point are left out, with the reason."""
    found: dict[str, results.AtPoint] = {}
    inputs = subject.feeds(point)
    for group in groups(products):
        say(f"{subject.name} {point}: timing {', '.join(product.label for product in group)}")
        running, failed = list(group), {}
        while True:
            candidates = [_candidate(subject, product, settings.threads) for product in running]
            try:
                measured = measure(candidates, inputs, settings.rules(len(running)), described="real")
                break
            except OptkitError:
                failed |= failing(subject, running, point, settings)
                if not failed or running[0].label in failed:
                    raise
                running = [product for product in running if product.label not in failed]
        found |= {label: results.AtPoint(failed=why) for label, why in failed.items()}
        found |= {product.label: _facts(one) for product, one in zip(running, measured, strict=True)}
    return found


def failing(subject: Subject, products: Sequence[Product], point: Point, settings: Settings) -> dict[str, str]:
    """Label -> why, of the candidates that fail on their own."""
    why: dict[str, str] = {}
    for product in products:
        try:
            candidate = _candidate(subject, product, settings.threads)
            measure([candidate], subject.feeds(point), Rules(budget_s=0.1, launches=1))
        except OptkitError as error:
            why[product.label] = reason(error)
    return why


def groups(products: Sequence[Product]) -> list[list[Product]]:
    """Candidates whose processes fit into memory together, the baseline in each group."""
    import psutil

    room = SHARE * psutil.virtual_memory().available / 1e6
    found: list[list[Product]] = [[]]
    for product in products[1:]:
        if found[-1] and sum(map(_memory_mb, [products[0], *found[-1], product])) > room:
            found.append([])
        found[-1].append(product)
    return [[products[0], *group] for group in found]


def _memory_mb(product: Product) -> float:
    """A generous guess: an engine, and the weights as the file, as read and as prepared."""
    return 500 + 3 * (size_mb(product.path) if product.path else 0)


def _candidate(subject: Subject, product: Product, threads: int) -> Candidate:
    return Candidate(
        open_product(subject, product), Target(threads=threads, engine=product.engine), dict(product.session)
    )


def _facts(measured: Measured) -> results.AtPoint:
    phases = measured.phases
    return results.AtPoint(
        median_ms=measured.steady.median_ms,
        ratio=measured.ratio,
        peak_mb=measured.peak_mb,
        first_ms=phases.first_ms,
        start_s=phases.import_s + phases.load_s + phases.session_s,
        stable=measured.stable,
        launches=measured.steady.launches,
    )


def versions() -> dict[str, str]:
    """Peer -> version."""
    here = environment(Target()).packages
    return {
        "optkit": __version__,
        "onnxruntime": here.get("onnxruntime", ""),
        "torch": here.get("torch", ""),
        "OpenVINO": here.get("openvino", ""),
        "NNCF": venvs.version("nncf", "nncf"),
        "Olive": venvs.version("olive", "olive-ai"),
    }


def merged(path: Path, found: Iterable[results.SubjectResult], fresh: results.Results) -> results.Results:
    """The results with the subjects of this run; those of others stay if the machine and versions are the same."""
    kept: dict[str, results.SubjectResult] = {}
    tools = fresh.tool
    if path.is_file():
        before = results.read(path)
        if before.versions == fresh.versions and before.environment.cpu == fresh.environment.cpu:
            kept, tools = {each.name: each for each in before.subjects}, fresh.tool or before.tool
    kept |= {each.name: each for each in found}
    order = [name for name in zoo_subjects.SUBJECTS if name in kept]
    return fresh.model_copy(update={"subjects": tuple(kept[name] for name in order), "tool": tools})


def say(text: str) -> None:
    """A line on stderr, with the time."""
    print(f"{datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def now() -> str:
    """ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="MODEL", help=", ".join(zoo_subjects.SUBJECTS))
    parser.add_argument("--only", default="", help="peers: " + ",".join(maker.PEER for maker in MAKERS))
    parser.add_argument("--budget", type=float, default=1.5, help="seconds of measuring per candidate and point")
    parser.add_argument("--launches", type=int, default=2, help="most launches of every process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--without", default="", help="models to leave out")
    parser.add_argument("--no-tool", action="store_true", help="do not time the tools themselves")
    parser.add_argument("--output", type=Path, help="JSON file; its other models are kept")
    given = parser.parse_args(words)
    if unknown := {*given.names, *filter(None, given.without.split(","))} - set(zoo_subjects.SUBJECTS):
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(zoo_subjects.SUBJECTS)}")
    if unknown := set(filter(None, given.only.split(","))) - {maker.PEER for maker in MAKERS}:
        parser.error(f"no peer {', '.join(sorted(unknown))}; there are {', '.join(m.PEER for m in MAKERS)}")
    return given


def main() -> None:
    """Measure, keep, print."""
    given = arguments()
    only = tuple(filter(None, given.only.split(",")))
    settings = Settings(only, given.budget, given.launches, given.threads)
    output = given.output or (venvs.ROOT / "out" / "peers.json" if given.names or only else results.FILE)
    names = [name for name in given.names or zoo_subjects.SUBJECTS if name not in given.without.split(",")]
    target, rules = Target(threads=given.threads), settings.rules(1)
    fresh = results.Results(
        date=now(),
        command=" ".join(["python benchmarks/peers.py", *sys.argv[1:]]),
        environment=environment(target, load_average()),
        versions=versions(),
        rules={
            "budget_s": given.budget,
            "launches": given.launches,
            "threads": given.threads,
            "confidence": rules.confidence,
            "margin": rules.margin,
        },
        subjects=(),
    )
    for name in names:
        found = compare(zoo_subjects.load(name), settings)
        results.write(merged(output, [found], fresh), output)
    if not (given.no_tool or given.names or only):
        results.write(merged(output, [], fresh.model_copy(update={"tool": tuple(tool.rows())})), output)
    say(f"wrote {output}")


if __name__ == "__main__":
    main()
