"""What ``optkit bench`` found, as tables, lines and Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from optkit.bench.facts import BenchFacts, BenchPoint, CandidateFacts, OpenLoop, Percentile
from optkit.model.manifest import Environment, Ratio
from optkit.report.markdown import table_markdown
from optkit.report.tables import Table, number, size

_Row = tuple[BenchPoint, CandidateFacts]


def bench_tables(facts: BenchFacts) -> list[Table]:
    """Latency and verdict, what comes before the steady state, and latency under load."""
    return [_latency(facts), _costs(facts), _loads(facts)]


def _latency(facts: BenchFacts) -> Table:
    columns: dict[str, Callable[[CandidateFacts], str]] = {
        "median ms": lambda each: _ms(each.steady.median_ms),
        "p90": lambda each: _marked(each.steady.percentiles, 90),
        "p95": lambda each: _marked(each.steady.percentiles, 95),
        "p99": lambda each: _marked(each.steady.percentiles, 99),
        "samples/s": lambda each: _rate(each.steady.throughput),
    }
    if any(len(point.candidates) > 1 for point in facts.points):
        columns |= {
            "ratio": lambda each: "" if each.verdict == "baseline" else _interval(each.ratio),
            "verdict": lambda each: each.verdict,
        }
    columns["stable"] = lambda each: "yes" if each.stable else "NO"
    return _table("Latency", facts, columns)


def _costs(facts: BenchFacts) -> Table:
    columns: dict[str, Callable[[CandidateFacts], str]] = {
        "size": lambda each: size(each.size_bytes),
        "peak memory": lambda each: f"{each.peak_mb:.0f} MB",
        "import s": lambda each: number(each.phases.import_s, 3),
        "load s": lambda each: number(each.phases.load_s, 3),
        "session s": lambda each: number(each.phases.session_s, 3),
        "first ms": lambda each: _ms(each.phases.first_ms),
        "warm-up": lambda each: (
            f"{each.phases.warm_up_s:.2g} s, {each.phases.warm_up_calls} calls"
            + ("" if each.phases.steady else ", not steady")
        ),
    }
    return _table("Before the steady state", facts, columns)


def _table(title: str, facts: BenchFacts, columns: dict[str, Callable[[CandidateFacts], str]]) -> Table:
    """A row per candidate and point, led by what tells the rows apart."""
    leading, names = _varying(facts), short_names(facts)
    rows = [
        (
            names[each.label],
            *(value(point, each) for value in leading.values()),
            *(value(each) for value in columns.values()),
        )
        for point, each in _rows(facts)
    ]
    ends = [number - 1 for number in _starts(facts.points)[1:]]
    return Table(title, ("candidate", *leading, *columns), tuple(rows), rules=tuple(ends))


def _loads(facts: BenchFacts) -> Table:
    leading, names = _varying(facts), short_names(facts)
    heads = ("candidate", *leading, "offered/s", "done/s", "p50 ms", "p90", "p95", "p99", "max ms")
    more = ("call ms", "call p99", "lag p99 ms", "keeps up")
    rows = []
    for point in facts.points:
        named = {each.label: each for each in point.candidates}
        for load in point.load:
            where = (value(point, named[load.label]) for value in leading.values())
            rows.append((names[load.label], *where, *_load_row(load)))
    return Table("Under load, from the scheduled arrival", heads + more, tuple(rows))


def _load_row(load: OpenLoop) -> tuple[str, ...]:
    return (
        _rate(load.rate),
        _rate(load.achieved),
        *(_marked(load.percentiles, percent) for percent in (50, 90, 95, 99)),
        _ms(load.max_ms),
        _ms(load.service_ms),
        _ms(load.service_p99_ms),
        _ms(load.lag_p99_ms),
        "NO" if load.saturated else "yes",
    )


def bench_lines(facts: BenchFacts) -> list[str]:
    """What the tables do not say: what was fed, how it was measured, where."""
    return [
        *_fed_lines(facts),
        *_noise_lines(facts),
        *_session_lines(facts),
        _method(facts),
        *([_MARK] if any("~" in cell for table in bench_tables(facts) for row in table.rows for cell in row) else []),
        *environment_lines(facts.environment),
        *facts.notes,
    ]


_MARK = "~ marks a percentile with fewer than ten calls above it."


def _fed_lines(facts: BenchFacts) -> list[str]:
    shared = _shared(facts)
    told = list(dict.fromkeys(point.inputs for point in facts.points))
    more = " and other sizes" if len(told) > 1 else ""
    where = f" from {facts.source}" if facts.source else ""
    return [f"Fed: {told[0]}{more}{where}{f'; {shared}' if shared else ''}."]


def _noise_lines(facts: BenchFacts) -> list[str]:
    return [
        f"Noise floor: the baseline against itself {_interval(point.noise_floor)}, {point.noise_floor.word}"
        + (f" ({_dims(point)}, {point.threads} threads)" if len(facts.points) > 1 else "")
        + "."
        for point in facts.points
        if point.noise_floor is not None
    ]


def _session_lines(facts: BenchFacts) -> Iterator[str]:
    """The entries a candidate was opened with, as they are handed on: what an engine does not know, it ignores."""
    names = short_names(facts)
    told = {each.label: each.session for _, each in _rows(facts) if each.session}
    for label, entries in told.items():
        yield f"Session of {names[label]}: {', '.join(f'{key}={value}' for key, value in sorted(entries.items()))}."


def _method(facts: BenchFacts) -> str:
    launches = max((each.steady.launches for _, each in _rows(facts)), default=0)
    started = "one launch" if launches == 1 else f"{launches} launches"
    return (
        f"Interleaved, a process each, {started}; {sum(point.seconds for point in facts.points):.0f} s "
        f"(asked: {facts.budget_s:g} s a point after the first start); "
        f"{facts.confidence:.0%} intervals; faster and slower only beyond {facts.margin:.0%}; seed {facts.seed}. "
        "A ratio is that of blocks of the same round, not of the two medians."
    )


def environment_lines(here: Environment) -> list[str]:
    """Processor, cores, limits, load and versions."""
    limit = "none" if here.cpu_limit is None else f"{here.cpu_limit:g} cores"
    physical = f"{here.physical_cores} physical, " if here.physical_cores else ""
    cores = f"{physical}{here.cores} logical cores, {here.affinity or here.cores} usable, cgroup limit {limit}"
    memory = f", {size(here.memory_bytes)} memory" if here.memory_bytes else ""
    load = "" if here.load_average is None else f"; load average before: {here.load_average:.2f}"
    packages = ", ".join(f"{name} {version}" for name, version in here.packages.items())
    return [
        f"{here.cpu}: {cores}{memory}{''.join(f', {gpu}' for gpu in here.gpus)}{load}.",
        f"optkit {here.optkit}, Python {here.python}, {here.platform}; {packages}.",
    ]


def bench_markdown(facts: BenchFacts) -> str:
    """The whole report, fit for a pull request."""
    warnings = "\n".join(f"- **Warning:** {warning}" for warning in facts.warnings)
    lines = "\n".join(f"- {line}" for line in bench_lines(facts))
    title = f"# optkit bench: baseline {facts.baseline}"
    tables = [table_markdown(table) for table in bench_tables(facts)]
    return "\n\n".join(part for part in (title, *tables, warnings, lines) if part) + "\n"


def short_names(facts: BenchFacts) -> dict[str, str]:
    """Label -> its last part, as far as those tell the candidates apart."""
    labels = list(dict.fromkeys(each.label for _, each in _rows(facts)))
    names = [label.rstrip("/").rpartition("/")[2] for label in labels]
    return dict(zip(labels, names if len(set(names)) == len(names) else labels, strict=True))


def _rows(facts: BenchFacts) -> Iterator[_Row]:
    return ((point, each) for point in facts.points for each in point.candidates)


def _starts(points: Sequence[BenchPoint]) -> list[int]:
    """Index of each point's first row."""
    return [sum(len(point.candidates) for point in points[:index]) for index in range(len(points))]


_TELLING: dict[str, Callable[[BenchPoint, CandidateFacts], str]] = {
    "engine": lambda _, each: _engine(each),
    "threads": lambda _, each: str(each.threads),
    "dims": lambda point, _: _dims(point),
}
"""Columns that are there only where their cells differ; else a line says them once."""


def _varying(facts: BenchFacts) -> dict[str, Callable[[BenchPoint, CandidateFacts], str]]:
    return {name: value for name, value in _TELLING.items() if len({value(*row) for row in _rows(facts)}) > 1}


def _shared(facts: BenchFacts) -> str:
    """``onnxruntime on cpu, 2 threads, batch=8``: what all rows have in common."""
    first = next(_rows(facts), None)
    if first is None:
        return ""
    told = {"engine": "{}", "threads": "{} threads", "dims": "{}"}
    varying = _varying(facts)
    common = [told[name].format(value(*first)) for name, value in _TELLING.items() if name not in varying]
    return ", ".join(part for part in common if part)


def _engine(each: CandidateFacts) -> str:
    where = "" if each.provider == "cpu" else f" on {each.provider}"
    return f"{each.engine}{where}" + (f" {each.precision}" if each.precision else "")


def _dims(point: BenchPoint) -> str:
    return ", ".join(f"{name}={count}" for name, count in point.dims.items())


def _interval(ratio: Ratio) -> str:
    return f"{_times(ratio.speedup)}x [{_times(ratio.low)}, {_times(ratio.high)}]"


def _times(value: float) -> str:
    return f"{value:.3f}" if 0.1 <= value < 10 else number(value, 3)


def _marked(percentiles: Sequence[Percentile], percent: float) -> str:
    """The percentile, with ``~`` before it where too few calls lie above."""
    found = next((each for each in percentiles if each.percent == percent), None)
    return "-" if found is None else ("" if found.enough else "~") + _ms(found.ms)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else number(value)


def _ms(value: float) -> str:
    return number(value, 3 if value < 1000 else 5)
