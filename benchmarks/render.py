"""results.json -> RESULTS.md, results.svg and the README's table: python benchmarks/render.py

Everything that is said is computed from the file, what optkit loses included.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import results, venvs
from benchmarks.results import AtPoint, Candidate, Results, SubjectResult

PAGE = venvs.HERE / "RESULTS.md"
PLOT = venvs.HERE / "results.svg"
README = venvs.ROOT / "README.md"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
SHORT = ("minilm", "efficientnet")
"""Subjects of the README's table."""
KEPT = 0.01
"""Share of the headline score that a product may lose and still count as keeping it."""
FALLING = {"perplexity", "max_error"}
"""Scores of which less is better."""


def page(found: Results) -> str:
    """RESULTS.md."""
    parts = [
        "# optkit against its peers",
        "Written by `python benchmarks/render.py` from `results.json`; measured by `make bench-peers`.",
        "![Speed against accuracy](results.svg)",
        *_conditions(found),
        "## In short",
        in_short(found),
        *(_subject(subject) for subject in found.subjects),
    ]
    if found.tool:
        parts += ["## The tools themselves", _tool(found)]
    return "\n\n".join(parts) + "\n"


def _conditions(found: Results) -> list[str]:
    here, rules = found.environment, found.rules
    memory = f", {here.memory_bytes / 1e9:.0f} GB" if here.memory_bytes else ""
    versions = ", ".join(f"{peer} {version}" for peer, version in found.versions.items())
    return [
        f"- {here.cpu}{_features(here.cpu_features)}, {here.cores} logical cores{memory}\n"
        f"- {here.platform}; Python {here.python}\n"
        f"- {versions}\n"
        f"- {found.date}, `{found.command}`\n"
        f"- {rules['threads']:.0f} threads for all; {rules['budget_s']:g} s of measuring a candidate and point",
        "All candidates of a model take turns in one run, a process each. What the columns mean:",
        "- **ms**: median latency of one call.\n"
        f"- **x**: how many times as fast as plain onnxruntime, with the {rules['confidence']:.0%} interval; "
        f"differences within {rules['margin']:.0%} are called *same*. A `?` marks a machine too noisy for that.\n"
        "- **MB**: the model on disk. **peak MB**: largest resident memory of its process, at the last point. "
        "**ready in**: from a fresh process to the end of the first call there, imports and compilation included.\n"
        "- Scores are computed alike for all, on data that neither calibration nor any choice saw. torch has no row "
        "where the original is an ONNX file.",
    ]


def _features(have: Sequence[str]) -> str:
    """Those that decide how fast 8 bits and bfloat16 are."""
    told = [name for name in ("avx2", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16") if name in have]
    return f" ({', '.join(told)})" if told else ""


# --- one subject --------------------------------------------------------------------------------------------------


def _subject(subject: SubjectResult) -> str:
    names = list(dict.fromkeys(name for each in subject.candidates for name in each.scores))
    names.sort(key=lambda name: name != subject.headline)
    head = ["", *(text for point in subject.points for text in (f"{at(point)}: ms", "x"))]
    head += [*names, "MB", "peak MB", "ready in"]
    running = sorted((each for each in subject.candidates if not each.failed), key=_speed, reverse=True)
    rows = [_row(each, names) for each in running]
    parts = [f"## {subject.title}", _scored(subject), table(head, rows)]
    if failed := [f"- {each.label}: {each.failed}" for each in subject.candidates if each.failed]:
        parts.append("Not there:\n\n" + "\n".join(failed))
    if notes := [f"- {each.label}: {each.note}" for each in running if each.note]:
        parts.append("<details><summary>How they were made</summary>\n\n" + "\n".join(notes) + "\n\n</details>")
    return "\n\n".join(parts)


def _scored(subject: SubjectResult) -> str:
    load = "" if subject.load_average is None else f", load average before it {subject.load_average:.1f}"
    return f"Scores on {subject.samples} samples. Measured {subject.date}{load}. Fastest first, by the last point."


def _row(candidate: Candidate, names: Sequence[str]) -> list[str]:
    label = f"**{candidate.label}**" if candidate.peer == "optkit" else candidate.label
    cells = [label, *(text for each in candidate.points for text in (_ms(each), _times(each)))]
    cells += [_score(candidate.scores.get(name)) for name in names]
    last = candidate.points[-1] if candidate.points else AtPoint()
    return [*cells, _number(candidate.size_mb, ".1f"), _number(last.peak_mb, ".0f"), _ready(last)]


def _ready(at_point: AtPoint) -> str:
    if at_point.start_s is None or at_point.first_ms is None:
        return ""
    return f"{at_point.start_s + at_point.first_ms / 1000:.1f} s"


def _ms(at_point: AtPoint) -> str:
    ms = at_point.median_ms
    return at_point.failed if ms is None else f"{ms:.3g}" if ms < 100 else f"{ms:.0f}"


def _times(at_point: AtPoint) -> str:
    ratio = at_point.ratio
    if ratio is None:
        return ""
    if ratio.low == ratio.high == 1:
        return "1"
    doubt = "" if at_point.stable else " ?"
    return f"{ratio.speedup:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] {ratio.word}{doubt}"


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def _number(value: float | None, how: str) -> str:
    return "" if value is None else format(value, how)


# --- who is ahead ---------------------------------------------------------------------------------------------------


def in_short(found: Results) -> str:
    """Per model and point, the fastest of optkit and of the others, among those that keep the score."""
    head = ["", "optkit's fastest", "ms", "fastest of the others", "ms", "optkit is"]
    rows = [_duel(subject, index) for subject in found.subjects for index in range(len(subject.points))]
    text = f"The fastest products that lose at most {KEPT:.0%} of plain onnxruntime's score, side by side."
    return f"{text}\n\n{table(head, filter(None, rows))}"


def _duel(subject: SubjectResult, index: int) -> list[str] | None:
    ours = fastest(subject, index, lambda each: each.peer == "optkit")
    theirs = fastest(subject, index, lambda each: each.peer != "optkit")
    name = f"{subject.name}, {at(subject.points[index])}"
    if theirs is None:
        return None
    other = [theirs.label, _ms(theirs.points[index])]
    if ours is None:
        return [name, "none that keeps the score", "", *other, "**behind**"]
    ratio = (theirs.points[index].median_ms or 0) / (ours.points[index].median_ms or 1)
    word = (
        "same" if abs(ratio - 1) <= 0.02 else f"{ratio:.2f} x as fast" if ratio > 1 else f"**{1 / ratio:.2f} x slower**"
    )
    return [name, ours.label, _ms(ours.points[index]), *other, word]


def fastest(subject: SubjectResult, index: int, wanted: Callable[[Candidate], bool]) -> Candidate | None:
    """The quickest candidate at a point that is wanted, ran there and keeps the headline score."""
    running = [
        each
        for each in subject.candidates
        if wanted(each) and each.points and each.points[index].median_ms is not None and keeps(each, subject)
    ]
    return min(running, key=lambda each: each.points[index].median_ms or 0.0, default=None)


def keeps(candidate: Candidate, subject: SubjectResult) -> bool:
    """Whether it loses at most ``KEPT`` of the baseline's headline score."""
    name = subject.headline
    wanted, found = subject.candidates[0].scores.get(name), candidate.scores.get(name)
    if wanted is None or found is None:
        return False
    return found <= wanted * (1 + KEPT) if name in FALLING else found >= wanted * (1 - KEPT)


def _speed(candidate: Candidate) -> float:
    ratio = candidate.points[-1].ratio if candidate.points else None
    return ratio.speedup if ratio else 0.0


# --- tool, README -----------------------------------------------------------------------------------------------------


def _tool(found: Results) -> str:
    head = list(dict.fromkeys(key for row in found.tool for key in row))
    return table(head, [[_cell(row.get(key, "")) for key in head] for row in found.tool])


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def short_table(found: Results) -> str:
    """The README's: the best of each peer for two of the models."""
    head = ["", "latency, ms", "x plain onnxruntime", "score", "MB"]
    rows = []
    for subject in (each for each in found.subjects if each.name in SHORT):
        rows.append([f"**{subject.title}**", " / ".join(at(point) for point in subject.points), "", "", ""])
        rows += [_short_row(each, subject) for each in best_of_each(subject)]
    text = (
        f"Of each tool the fastest result that keeps the score within {KEPT:.0%}; {found.environment.cpu}, "
        f"{found.rules['threads']:.0f} threads, {found.date[:10]}. All models and results, what failed, where optkit "
        "is behind: [benchmarks/RESULTS.md](benchmarks/RESULTS.md)."
    )
    return f"{text}\n\n{table(head, rows)}"


def _short_row(candidate: Candidate, subject: SubjectResult) -> list[str]:
    label = f"**{candidate.label}**" if candidate.peer == "optkit" else candidate.label
    ratios = [f"{point.ratio.speedup:.2f}" if point.ratio else "-" for point in candidate.points]
    score = f"{subject.headline} {_score(candidate.scores.get(subject.headline))}"
    times = " / ".join(_ms(point) for point in candidate.points)
    return [label, times, " / ".join(ratios), score, _number(candidate.size_mb, ".1f")]


def best_of_each(subject: SubjectResult) -> list[Candidate]:
    """The baseline and each peer's fastest at the last point among those that keep the score, slowest first."""
    chosen = {subject.candidates[0].label: subject.candidates[0]}
    for peer in dict.fromkeys(each.peer for each in subject.candidates):
        best = fastest(subject, -1, lambda each, peer=peer: each.peer == peer)
        if best is not None:
            chosen[best.label] = best
    return sorted(chosen.values(), key=_speed)


def with_table(readme: str, found: Results) -> str:
    """The README's text with a fresh table between the markers.

    Raises:
        ValueError: it has no markers.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the README lacks {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{short_table(found)}\n{END}{after}"


def at(point: dict[str, int]) -> str:
    """``batch 8, seq 128``."""
    return ", ".join(f"{name} {size}" for name, size in point.items())


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def main() -> None:
    """Write all three."""
    found = results.read()
    PAGE.write_text(page(found))
    README.write_text(with_table(README.read_text(), found))
    venvs.run("plot", venvs.HERE / "plot.py", str(results.FILE), str(PLOT))


if __name__ == "__main__":
    main()
