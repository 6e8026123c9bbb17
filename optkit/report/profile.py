"""What ``optkit profile`` found, as tables, lines and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optkit.bench.profile_facts import ModelProfile, NodeFacts, OperatorFacts, Pair, Peaks, ProfileFacts
from optkit.report.bench import environment_lines
from optkit.report.markdown import table_markdown
from optkit.report.tables import Table, number, size

TOP = 15
"""Nodes, and pairs of nodes, that are shown unless somebody says otherwise."""

SMALL = 0.01
"""Share of the time below which operators are shown together, and families not at all."""

LONGEST = 44
"""Characters of a node's name; of longer ones the end is shown, which tells nodes apart."""


@dataclass(frozen=True)
class Unit:
    """In which times are told: milliseconds, or microseconds where calls are short."""

    name: str
    per_ms: float

    def __call__(self, ms: float | None) -> str:
        """The figure alone; a dash where there is none."""
        if ms is None:
            return "-"
        value = ms * self.per_ms
        return number(value, 3) if abs(value) < 999.5 else f"{value:,.0f}"

    def signed(self, ms: float) -> str:
        """With its sign."""
        return f"{ms * self.per_ms:+.3g}"

    def told(self, ms: float | None) -> str:
        """With its name."""
        return f"{self(ms)} {self.name}"


def unit_of(facts: ProfileFacts) -> Unit:
    """The same for the whole profile."""
    return Unit("ms", 1.0) if facts.model.latency_ms >= 1 else Unit("us", 1000.0)


def profile_tables(facts: ProfileFacts, top: int = TOP) -> list[Table]:
    """Operators and the ``top`` longest nodes of each model, then both models side by side."""
    own = [table for model in _models(facts) for table in (_operators(facts, model), _nodes(facts, model, top))]
    return [*own, _families(facts), _pairs(facts, top)]


def _models(facts: ProfileFacts) -> list[ModelProfile]:
    return [facts.model, *([facts.against] if facts.against else [])]


def _lead(facts: ProfileFacts, model: ModelProfile) -> str:
    """``m.onnx: ``, where there are two ``A, m.onnx: `` and ``B, other.onnx: ``."""
    letter = "" if facts.against is None else "A, " if model is facts.model else "B, "
    return f"{letter}{short_label(model.label)}: "


def _operators(facts: ProfileFacts, model: ModelProfile) -> Table:
    time = unit_of(facts)
    heads = ("operator", "nodes", time.name, "share", "Gop/s", f"headroom {time.name}")
    shown = [each for each in model.operators if each.share >= SMALL]
    rows = [
        (each.operator, str(each.nodes), time(each.ms), _percent(each.share), _rate(each.gops), time(each.gain_ms))
        for each in shown
    ]
    rest = _small(model.operators[len(shown) :], time)
    return _told(Table(f"{_lead(facts, model)}operators", heads, (*rows, *rest)))


def _small(rest: Sequence[OperatorFacts], time: Unit) -> list[tuple[str, ...]]:
    """Those of little share in one row."""
    if not rest:
        return []
    share, count = sum(each.share for each in rest), sum(each.nodes for each in rest)
    name = f"{len(rest)} {'other' if len(rest) == 1 else 'others'}"
    return [(name, str(count), time(sum(each.ms for each in rest)), _percent(share), "-", "-")]


def _nodes(facts: ProfileFacts, model: ModelProfile, top: int) -> Table:
    """The last columns are the first ones to leave out where there is no room."""
    time = unit_of(facts)
    what = "nodes" if len(model.nodes) <= top else f"the {top} longest of {len(model.nodes)} nodes"
    heads = ("node", "operator", time.name, "share", "of limit", "Gop/s", "GB/s", "inputs")
    rows = tuple(_node_row(node, time) for node in model.nodes[:top])
    return _told(Table(f"{_lead(facts, model)}{what}", heads, rows))


def _told(table: Table) -> Table:
    """Without columns that say nothing, as those of limits for torch."""
    kept = [index for index in range(len(table.heads)) if any(row[index] not in ("", "-") for row in table.rows)]
    heads, *rows = [tuple(row[index] for index in kept) for row in (table.heads, *table.rows)]
    return Table(table.title, heads, tuple(rows))


def _node_row(node: NodeFacts, time: Unit) -> tuple[str, ...]:
    rate = node.rate
    return (
        _short(_name(node)) + (f" x {number(node.calls, 3)}" if node.calls != 1 else ""),
        "" if node.operator == _name(node) else node.operator,
        time(node.ms),
        _percent(node.share),
        "-" if rate is None or rate.reached is None else f"{rate.reached:.0%}{_BY[rate.bound_by]}",
        _rate(rate.gops if rate else None),
        _rate(rate.gb_s if rate else None),
        " ".join(node.inputs),
    )


_BY = {"memory": " mem", "arithmetic": "", "": ""}


def _name(node: NodeFacts) -> str:
    """That of the model's own node, which its author knows; else onnxruntime's."""
    return node.origin or node.name


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"...{name[3 - LONGEST :]}"


def _families(facts: ProfileFacts) -> Table:
    time = unit_of(facts)
    heads = ("family", "A nodes", f"A {time.name}", "B nodes", f"B {time.name}", f"B - A {time.name}")
    rows = [
        (
            each.name,
            str(each.nodes),
            time(each.ms),
            str(each.other_nodes),
            time(each.other_ms),
            time.signed(each.difference_ms),
        )
        for each in facts.families
        if max(each.ms or 0.0, each.other_ms or 0.0) >= SMALL * facts.model.latency_ms
    ]
    return Table("B against A, by family of operators", heads, tuple(rows))


def _pairs(facts: ProfileFacts, top: int) -> Table:
    time = unit_of(facts)
    rows = [
        (_short(each.name), time(each.ms), time(each.other_ms), time.signed(each.difference_ms), _rewritten(each))
        for each in facts.pairs[:top]
    ]
    title = f"The {len(rows)} largest differences among {len(facts.pairs)} nodes whose names correspond"
    heads = ("node", f"A {time.name}", f"B {time.name}", f"B - A {time.name}", "operators")
    return Table(title, heads, (*rows, *_unpaired(facts, time)), rules=(len(rows) - 1,))


def _unpaired(facts: ProfileFacts, time: Unit) -> list[tuple[str, ...]]:
    """What the pairs leave out."""
    if facts.against is None or not facts.pairs:
        return []
    one, other = (sum(node.ms for node in model.nodes) for model in _models(facts))
    one -= sum(each.ms or 0.0 for each in facts.pairs)
    other -= sum(each.other_ms or 0.0 for each in facts.pairs)
    return [("nodes of one model only", time(one), time(other), time.signed(other - one), "")]


def _rewritten(pair: Pair) -> str:
    left, right = " + ".join(pair.operators), " + ".join(pair.other_operators)
    return left if left == right else f"{left} -> {right}"


def profile_lines(facts: ProfileFacts) -> list[str]:
    """What the tables do not say: how long a call takes, what is left to gain, what was fed, how it was measured."""
    own = [text for model in _models(facts) for text in _model_lines(facts, model)]
    where = f" from {facts.source}" if facts.source else ""
    return [
        *own,
        *([_against_line(facts.model, facts.against)] if facts.against else []),
        *([_peaks_line(facts.peaks)] if facts.peaks else []),
        *_limit_lines(facts),
        f"Fed: {facts.inputs}{where}; {_threads(facts.threads)}.",
        *environment_lines(facts.environment),
        *(f"Note: {note}" for note in facts.notes),
        *([f"Written: {facts.trace} (open it in https://ui.perfetto.dev)"] if facts.trace else []),
    ]


def _model_lines(facts: ProfileFacts, model: ModelProfile) -> list[str]:
    time = unit_of(facts)
    return [_lead(facts, model) + text for text in (_account(model, time), _gain(model, time)) if text]


def short_label(label: str) -> str:
    """``runs/m.onnx@cuda`` -> ``m.onnx@cuda``."""
    return label.rstrip("/").rpartition("/")[2] or label


def _account(model: ModelProfile, time: Unit) -> str:
    """How the nodes' times add up to the latency."""
    engine = f"{model.engine} {model.version}" + ("" if model.provider == "cpu" else f" on {model.provider}")
    off = f" less the profiler's own {model.profiler_us:.1f} us each" if model.profiler_us else ""
    share = (
        f"scaled by {model.scale:.2f} to add up to the latency"
        if model.scale < 1
        else f"together {model.nodes_ms / model.latency_ms:.0%} of the latency"
    )
    return (
        f"a call takes {time.told(model.latency_ms)} on {engine} (median of {model.calls:,}), and "
        f"{time.told(model.profiled_ms)} with the profiler on. Times of its {len(model.nodes)} nodes are what the "
        f"profiler saw{off}, {share}."
    )


def _gain(model: ModelProfile, time: Unit) -> str:
    """What is left to gain, and where, in plain words."""
    gains = {node: node.rate.gain_ms for node in model.nodes if node.rate is not None and node.rate.gain_ms is not None}
    if model.gain_ms is None or not gains:
        return ""
    operator = max(model.operators, key=lambda each: each.gain_ms or 0.0)
    node, most = max(gains.items(), key=lambda item: item[1])
    others = [each for each in model.operators if each.gain_ms is None]
    kinds = ", ".join(each.operator for each in others[:3])
    rest = f" Everything else takes {time.told(sum(each.ms for each in others))}, most of it {kinds}." if others else ""
    return (
        f"at most {time.told(model.gain_ms)} could be gained if its {len(gains)} products ran at this machine's limits "
        f"(headroom), {time.told(operator.gain_ms)} of it in {operator.operator} ({_nodes_of(operator)}), most in "
        f"{_name(node)} ({time.told(most)}).{rest}"
    )


def _nodes_of(operator: OperatorFacts) -> str:
    return "1 node" if operator.nodes == 1 else f"{operator.nodes} nodes"


def _against_line(one: ModelProfile, other: ModelProfile) -> str:
    ratio = one.latency_ms / other.latency_ms
    word = f"{ratio:.2f} times as fast as" if ratio >= 1 else f"{1 / ratio:.2f} times as slow as"
    return f"B was {word} A, one profiled after the other; to compare the two properly: optkit bench"


def _peaks_line(peaks: Peaks) -> str:
    copies = ", ".join(f"{number(each.gb_s, 3)} within {size(each.bytes)}" for each in peaks.copies)
    return (
        f"Limits measured on this machine with {_threads(peaks.threads)}: {peaks.fp32_gflops:,.0f} GFLOP/s in float32, "
        f"{peaks.int8_gops:,.0f} GOP/s in int8; copying, in GB/s: {copies}."
    )


def _limit_lines(facts: ProfileFacts) -> list[str]:
    """What the column says, where it says something."""
    reached = [each.rate.reached for model in _models(facts) for each in model.nodes if each.rate]
    known = [each for each in reached if each is not None]
    if not known:
        return []
    above = " Above 100%: the data lay in a faster cache, or the machine was busier when its limits were measured."
    return [
        "'of limit' is the least time these limits allow a node over the time it took; 'mem': memory sets it, else "
        "arithmetic does." + (above if max(known) > 1 else "")
    ]


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def profile_markdown(facts: ProfileFacts, top: int = TOP) -> str:
    """The whole report, fit for a pull request."""
    title = f"# optkit profile: {facts.model.label}" + (f" against {facts.against.label}" if facts.against else "")
    lines = "\n".join(f"- {line}" for line in profile_lines(facts))
    tables = [table_markdown(table) for table in profile_tables(facts, top)]
    return "\n\n".join(part for part in (title, *tables, lines) if part) + "\n"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.0995 else f"{share:.0%}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else number(value, 2 if value < 10 else 3)
