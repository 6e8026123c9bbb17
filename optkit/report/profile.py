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
        return "-" if ms is None else number(ms * self.per_ms, 3 if abs(ms * self.per_ms) < 1000 else 5)

    def signed(self, ms: float) -> str:
        """With its sign."""
        return f"{ms * self.per_ms:+.3g}"

    def told(self, ms: float | None) -> str:
        """With its name."""
        return f"{self(ms)} {self.name}"


def unit_of(facts: ProfileFacts) -> Unit:
    """The same for the whole profile."""
    return Unit("ms", 1.0) if facts.model.latency_ms >= 1 else Unit("us", 1000.0)


def profile_tables(facts: ProfileFacts, top: int = TOP, *, shapes: bool = True) -> list[Table]:
    """Operators and the longest nodes of each model, then both models side by side.

    Args:
        facts: of the profile.
        top: nodes to show.
        shapes: show the nodes' inputs, which takes a wide table.
    """
    own = [table for model in _models(facts) for table in (_operators(facts, model), _nodes(facts, model, top, shapes))]
    return [*own, _families(facts), _pairs(facts, top)]


def _models(facts: ProfileFacts) -> list[ModelProfile]:
    return [facts.model, *([facts.against] if facts.against else [])]


def _letter(facts: ProfileFacts, model: ModelProfile) -> str:
    """``A: `` for the model and ``B: `` for the other one, where there is one."""
    return "" if facts.against is None else "A: " if model is facts.model else "B: "


def _operators(facts: ProfileFacts, model: ModelProfile) -> Table:
    time = unit_of(facts)
    heads = ("operator", "nodes", time.name, "share", "Gop/s", f"to gain {time.name}")
    shown = [each for each in model.operators if each.share >= SMALL]
    rows = [
        (each.operator, str(each.nodes), time(each.ms), _percent(each.share), _rate(each.gops), time(each.gain_ms))
        for each in shown
    ]
    return Table(f"{_letter(facts, model)}Operators", heads, (*rows, *_small(model.operators[len(shown) :], time)))


def _small(rest: Sequence[OperatorFacts], time: Unit) -> list[tuple[str, ...]]:
    """Those of little share in one row."""
    if not rest:
        return []
    share, count = sum(each.share for each in rest), sum(each.nodes for each in rest)
    name = f"{len(rest)} {'other' if len(rest) == 1 else 'others'}"
    return [(name, str(count), time(sum(each.ms for each in rest)), _percent(share), "-", "-")]


def _nodes(facts: ProfileFacts, model: ModelProfile, top: int, shapes: bool) -> Table:
    time = unit_of(facts)
    what = "Nodes" if len(model.nodes) <= top else f"The {top} longest of {len(model.nodes)} nodes"
    heads = ("node", "operator", time.name, "share", "Gop/s", "GB/s", "of limit", "inputs")
    rows = [(*_node_row(node, time), " ".join(node.inputs)) for node in model.nodes[:top]]
    table = Table(f"{_letter(facts, model)}{what}", heads, tuple(rows))
    return table if shapes else table.without_last()


def _node_row(node: NodeFacts, time: Unit) -> tuple[str, ...]:
    rate = node.rate
    return (
        _short(node.name) + (f" x {number(node.calls, 3)}" if node.calls != 1 else ""),
        "" if node.operator == node.name else node.operator,
        time(node.ms),
        _percent(node.share),
        _rate(rate.gops if rate else None),
        _rate(rate.gb_s if rate else None),
        "-" if rate is None or rate.reached is None else f"{rate.reached:.0%}{_BY[rate.bound_by]}",
    )


_BY = {"memory": " mem", "arithmetic": "", "": ""}


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
        f"Fed: {facts.inputs}{where}; {_threads(facts.threads)}.",
        *environment_lines(facts.environment),
        *facts.notes,
        *([f"Written: {facts.trace} (open it in https://ui.perfetto.dev)"] if facts.trace else []),
    ]


def _model_lines(facts: ProfileFacts, model: ModelProfile) -> list[str]:
    time = unit_of(facts)
    lead = f"{_letter(facts, model)}{short_label(model.label)}: "
    return [lead + text for text in (_account(model, time), _gain(model, time)) if text]


def short_label(label: str) -> str:
    """``runs/m.onnx@cuda`` -> ``m.onnx@cuda``."""
    return label.rstrip("/").rpartition("/")[2] or label


def _account(model: ModelProfile, time: Unit) -> str:
    """How the nodes' times add up to the latency."""
    engine = f"{model.engine} {model.version}" + ("" if model.provider == "cpu" else f" on {model.provider}")
    inside = min(1.0, model.nodes_ms / model.latency_ms)
    off = f", of which {model.profiler_us:.1f} us in each node are its own and taken off" if model.profiler_us else ""
    scaled = f", and what is left is scaled by {model.scale:.2f} to add up to the latency" if model.scale < 1 else ""
    return (
        f"a call takes {time.told(model.latency_ms)} on {engine} (median of {model.calls:,}); its {len(model.nodes)} "
        f"nodes account for {inside:.0%} of that. With the profiler it takes {time.told(model.profiled_ms)}{off}"
        f"{scaled}."
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
        f"at most {time.told(model.gain_ms)} could be gained, if its {len(gains)} products ran at this machine's "
        f"limits, {time.told(operator.gain_ms)} of it in {operator.operator} ({operator.nodes} nodes); the node "
        f"with most to gain is {node.name} ({time.told(most)}).{rest}"
    )


def _against_line(one: ModelProfile, other: ModelProfile) -> str:
    ratio = one.latency_ms / other.latency_ms
    word = f"{ratio:.2f} times as fast as" if ratio >= 1 else f"{1 / ratio:.2f} times as slow as"
    return f"B was {word} A, one profiled after the other; to compare the two properly: optkit bench"


def _peaks_line(peaks: Peaks) -> str:
    copies = ", ".join(f"{number(each.gb_s, 3)} within {size(each.bytes)}" for each in peaks.copies)
    return (
        f"Limits measured on this machine with {_threads(peaks.threads)}: {peaks.fp32_gflops:,.0f} GFLOP/s in float32, "
        f"{peaks.int8_gops:,.0f} GOP/s in int8; copying, in GB/s: {copies}. 'of limit' is the least time these allow "
        "a node over the time it took; 'mem': memory sets it."
    )


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
