"""What ``optkit run`` did, and as tables."""

from __future__ import annotations

from optkit.model.manifest import Fact, MeasuredOn
from optkit.report.tables import Table, number


class TopClass(Fact):
    """The class one sample got."""

    sample: int
    """Index of the sample, from 0."""
    index: int
    """Index of the class with the highest score."""
    score: float
    """That score, as the model gives it."""


class OutputFacts(Fact):
    """One output over all samples."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    """Of the whole run; samples first where the output has them."""
    minimum: float | None = None
    """Of the finite values; null where there are none (strings, empty outputs)."""
    mean: float | None = None
    maximum: float | None = None
    nonfinite: int = 0
    """NaN and infinite values."""
    top1: tuple[TopClass, ...] = ()
    """The first few samples, where the output looks like class scores."""
    note: str = ""


class RunFacts(Fact):
    """One run of a model over its inputs."""

    model: str
    kind: str
    provider: str
    """Short name of the execution provider, or ``torch``."""
    threads: int
    data: MeasuredOn
    """What was fed."""
    outputs: tuple[OutputFacts, ...]
    placement: dict[str, dict[str, int]]
    """Provider -> operator -> nodes, as onnxruntime placed them after its basic optimizations; empty for torch."""
    load_seconds: float
    """Until the model was ready."""
    seconds: float
    """Reading, preprocessing and computing of all samples; a bench measures better."""
    written: str | None = None
    """The .npz file with the outputs."""
    notes: tuple[str, ...] = ()


def run_tables(facts: RunFacts) -> list[Table]:
    """Outputs, classes of the first samples, and which nodes ran where."""
    return [_outputs(facts), _classes(facts), _nodes(facts)]


def _outputs(facts: RunFacts) -> Table:
    rows = [
        (
            each.name,
            each.dtype,
            str(list(each.shape)),
            number(each.minimum),
            number(each.mean),
            number(each.maximum),
            "; ".join(filter(None, [f"{each.nonfinite} NaN or infinite" if each.nonfinite else "", each.note])),
        )
        for each in facts.outputs
    ]
    return Table("Outputs", ("output", "dtype", "shape", "min", "mean", "max", "note"), tuple(rows))


def _classes(facts: RunFacts) -> Table:
    rows = [
        (each.name, str(top.sample), str(top.index), number(top.score)) for each in facts.outputs for top in each.top1
    ]
    return Table("First samples", ("output", "sample", "top class", "score"), tuple(rows))


def _nodes(facts: RunFacts) -> Table:
    rows = []
    for provider, counts in facts.placement.items():
        most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        rows.append((provider, str(sum(counts.values())), ", ".join(f"{count} {name}" for name, count in most)))
    return Table("What ran where", ("provider", "nodes", "operators"), tuple(rows))


def run_lines(facts: RunFacts) -> list[str]:
    """What the tables do not say: notes, what was fed, how long it took, what was written."""
    data = facts.data
    made_up = " SYNTHETIC inputs: give real ones with --input." if data.synthetic else ""
    where = "torch on the CPU" if facts.provider == "torch" else facts.provider
    took = (
        f"{data.samples} samples of {data.source}, batch {data.batch}, on {where} with {facts.threads} threads: "
        f"{facts.seconds:.2f} s (ready after {facts.load_seconds:.2f} s).{made_up}"
    )
    return [*facts.notes, took, *([f"Written: {facts.written}"] if facts.written else [])]
