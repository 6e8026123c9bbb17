"""The waterfall: every number with its mark, every step with what happened, and nothing cut off at 80 columns."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from optkit.cli import render
from optkit.model.manifest import Artifact, Drift, Environment, Manifest, StepRecord, Timing
from optkit.report.markdown import markdown
from optkit.report.waterfall import COSINES, MARK, ms, timing_lines, waterfall
from tests.report.facts import limit, verdict
from tests.timing import ratio

NO_BENCH = "not timed: --no-bench"
USED_UP = "not timed: too little of the time for timing is left"
HERE = Environment(
    optkit="0", python="3.11", platform="p", cpu="c", cpu_features=(), cores=2, threads=2, provider="cpu", packages={}
)
FULL = Timing(result=ratio(1.6, width=0.1, baseline_ms=2.0), launches=3, torch_eager_ms=7.0)
SLOWER = "measured slower: 0.50x [0.47, 0.53]"


def artifact(digest: str, size: int, form: str = "onnx", kind: str = "onnx") -> Artifact:
    return Artifact(path=f"{digest}.x", form=form, kind=kind, digest=digest, size_bytes=size)


def step(name: str, digest: str, status: Any = "changed", cosine: float | None = 0.9999, **more: Any) -> StepRecord:
    drift = Drift(output="y", cosine=cosine, max_error_std=0.1) if cosine is not None else None
    facts: dict[str, Any] = {"title": name, "config": {}, "size_bytes": 2000, "drift": drift, **more}
    return StepRecord(id=name, name=name, status=status, digest=digest, **facts)


STEPS = (
    step("export", "base", changes=()),
    step("tidy", "base", "no effect", None, reason="nothing matches"),
    step("fuse", "fused", speedup=ratio(1.25, baseline_ms=2.0)),
    step("slow", "fused", "rolled back", reason=SLOWER, speedup=ratio(0.5, baseline_ms=1.6)),
    step("cut", "final", timing_note=USED_UP),
)


def manifest(**more: Any) -> Manifest:
    facts: dict[str, Any] = {
        "original": artifact("orig", 3000, "torch", "pt2"),
        "baseline": artifact("base", 2000),
        "result": artifact("final", 900),
        "steps": STEPS,
        "timing": FULL,
        "timing_s": 12.4,
        **more,
    }
    return Manifest(
        recipe_name="r",
        created="now",
        recipe={},
        verdict=verdict(limit("cosine", held=True)),
        environment=HERE,
        output=None,
        **facts,
    )


def untimed() -> Manifest:
    bare = {"speedup": None, "timing_note": NO_BENCH}
    steps = [s.model_copy(update=bare) if s.speedup or s.timing_note else s for s in STEPS if s.status != "rolled back"]
    return manifest(steps=tuple(steps), timing=None, timing_note=NO_BENCH, timing_s=0.0)


def rows(found: Manifest) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in waterfall(found).rows}


def test_every_step_has_size_latency_speed_and_drift_with_coarse_figures_marked() -> None:
    found = rows(manifest())
    assert found == {
        "original": ("3.0 kB", "~7 ms", "torch eager", "", "pt2"),
        "export": ("2.0 kB", "2 ms", "baseline", "0.999900", "changed"),
        "tidy": ("no effect", "", "", "", "no effect: nothing matches"),
        "fuse": ("2.0 kB", "~1.6 ms", "~1.25x", "0.999900", "changed"),
        "slow": ("rolled back", "~3.2 ms", "~0.50x", "0.999900", f"rolled back: {SLOWER}"),
        "cut": ("2.0 kB", "not timed", "", "0.999900", f"changed; {USED_UP}"),
        "result": ("900 B", "1.25 ms", "1.60x vs baseline: faster", "0.900000", "export, fuse, cut; rolled back: slow"),
    }
    assert waterfall(manifest()).heads == (
        *("step", "size", "latency", "speed vs step before", "cosine to original", "what happened"),
    )


def test_torch_eager_says_why_it_was_not_timed() -> None:
    found = rows(manifest(timing=FULL.model_copy(update={"torch_eager_ms": None, "torch_note": USED_UP})))
    assert found["original"] == ("3.0 kB", "not timed", "torch eager", "", f"pt2; {USED_UP}")


def test_a_steps_note_is_told_also_where_the_result_has_the_same() -> None:
    noisy = "not steady: the machine was too noisy"
    steps = (step("fuse", "final", speedup=ratio(1.25), timing_note=noisy),)
    assert rows(manifest(steps=steps, timing_note=noisy))["fuse"][-1] == f"changed; {noisy}"


def test_an_onnx_original_is_the_baseline_itself() -> None:
    found = rows(manifest(original=artifact("base", 2000), steps=STEPS[2:3]))
    assert found["original"] == ("2.0 kB", "2 ms", "baseline", "", "onnx")
    assert list(found) == ["original", "fuse", "result"]


def test_a_baseline_that_no_step_made_has_a_row_of_its_own() -> None:
    found = rows(manifest(steps=(step("prune", "p", timing_note=""), step("export", "e"))))
    assert found["(export)"] == ("2.0 kB", "2 ms", "baseline", "", "the original, exported alone")
    assert found["export"][1:3] == ("", "")


def test_a_step_kept_although_slower_says_so() -> None:
    reason = f"kept although {SLOWER} (keep: always)"
    found = rows(manifest(steps=(step("slow", "s", reason=reason, speedup=ratio(0.5)),)))
    assert found["slow"] == ("2.0 kB", "~2 ms", "~0.50x", "0.999900", reason)


def test_the_lines_below_tell_the_interval_the_marks_and_the_cost() -> None:
    assert timing_lines(manifest()) == [
        COSINES,
        MARK,
        "Result against baseline: faster, 1.60x [1.44, 1.76], 99% interval from 10 interleaved blocks in 3 launches.",
        "Timed on real, 2 threads; timing took 12 s.",
    ]
    noted = manifest(timing_note="measured twice", timing=FULL.model_copy(update={"launches": 1}), steps=())
    assert timing_lines(noted)[1].endswith("in 1 launch; measured twice.")


def test_not_timed_is_said_everywhere() -> None:
    found = untimed()
    cells = rows(found)
    assert [cells[name][1] for name in ("original", "export", "fuse", "cut", "result")] == ["not timed"] * 5
    assert timing_lines(found) == [COSINES, "Not timed: --no-bench."]
    report = markdown(found)
    assert report.count("not timed") == 5 and "Not timed: --no-bench." in report and "~" not in report


def test_markdown_has_the_whole_table() -> None:
    report = markdown(manifest())
    assert "| fuse | 2.0 kB | ~1.6 ms | ~1.25x | 0.999900 | changed |" in report
    assert f"| slow | rolled back | ~3.2 ms | ~0.50x | 0.999900 | rolled back: {SLOWER} |" in report
    assert "coarse estimate" in report


@pytest.mark.parametrize("width", [80, 140])
def test_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    text = StringIO()
    shown = Console(file=text, width=width, highlight=False, force_terminal=True, color_system=None)
    monkeypatch.setattr(render, "console", lambda: shown)
    render.show_manifest(manifest())
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    flat = " ".join(" ".join(lines).split())
    assert lines[0][-1] == "┓" and "~1.25x" in flat and "torch eager" in flat
    if width == 80:
        assert f"slow: rolled back: {SLOWER}" in flat and "tidy: no effect: nothing matches" in flat


@pytest.mark.parametrize(
    ("value", "text"), [(0.05137, "0.0514 ms"), (3.3, "3.3 ms"), (99.94, "99.9 ms"), (1240.2, "1240 ms")]
)
def test_milliseconds_have_three_digits(value: float, text: str) -> None:
    assert ms(value) == text
