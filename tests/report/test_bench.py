"""What a bench found, as tables, lines and Markdown."""

from __future__ import annotations

from typing import Any

import pytest

from optkit.bench.facts import BenchFacts, BenchPoint, CandidateFacts, OpenLoop, Percentile, Phases, Steady
from optkit.model.manifest import Environment, Ratio
from optkit.report.bench import bench_lines, bench_markdown, bench_tables

HERE = Environment(
    optkit="0.1.0",
    python="3.11.1",
    platform="Linux",
    cpu="Some CPU",
    cpu_features=("avx2",),
    cores=4,
    threads=2,
    provider="cpu",
    packages={"onnxruntime": "1.31.1"},
    physical_cores=2,
    affinity=4,
    cpu_limit=2.0,
    memory_bytes=8 * 10**9,
    load_average=0.25,
)


def ratio(speedup: float = 1.0, half: float = 0.01, **more: Any) -> Ratio:
    facts: dict[str, Any] = {"baseline_ms": 2.0, "candidate_ms": 2.0 / speedup, "speedup": speedup, "blocks": 30}
    facts |= {"low": speedup - half, "high": speedup + half, "confidence": 0.99, "inputs": "real, x float32[8,4]"}
    return Ratio(**(facts | more))


def candidate(label: str, speedup: float = 1.0, **more: Any) -> CandidateFacts:
    ms = 2.0 / speedup
    steady = Steady(
        median_ms=ms,
        mean_ms=ms,
        percentiles=tuple(
            Percentile(percent=p, ms=ms * (1 + p / 1000), enough=p < 99) for p in (50.0, 90.0, 95.0, 99.0)
        ),
        throughput=8 / ms * 1e3,
        calls=300,
        blocks=30,
        launches=3,
        spread=0.01,
    )
    phases = Phases(
        import_s=0.31, load_s=0.0, session_s=0.0214, first_ms=3.5, warm_up_s=0.2, warm_up_calls=90, steady=True
    )
    facts: dict[str, Any] = {"label": label, "path": label, "kind": "onnx", "engine": "onnxruntime", "provider": "cpu"}
    facts |= {"threads": 2, "digest": "00", "size_bytes": 412_000, "peak_mb": 61.4, "stable": True}
    facts |= {"phases": phases, "steady": steady, "ratio": ratio(speedup), "verdict": ratio(speedup).word}
    return CandidateFacts(**(facts | more))


def point(first: CandidateFacts, *others: CandidateFacts, **more: Any) -> BenchPoint:
    candidates = (first.model_copy(update={"verdict": "baseline"}), *others)
    facts: dict[str, Any] = {"dims": {"batch": 8}, "threads": 2, "inputs": "real, x float32[8,4]"}
    return BenchPoint(**(facts | {"candidates": candidates} | more))


def bench_facts(*points: BenchPoint, **more: Any) -> BenchFacts:
    facts: dict[str, Any] = {"baseline": points[0].candidates[0].label, "points": points, "environment": HERE}
    facts |= {"seed": 0, "margin": 0.02, "confidence": 0.99, "precision": 0.01, "budget_s": 10.0, "synthetic": False}
    return BenchFacts(**(facts | {"stable": all(each.stable for p in points for each in p.candidates)} | more))


def rows(facts: BenchFacts, table: int = 0) -> list[dict[str, str]]:
    found = bench_tables(facts)[table]
    return [dict(zip(found.heads, row, strict=True)) for row in found.rows]


def test_a_row_per_candidate_with_the_verdict_against_the_first() -> None:
    found = rows(bench_facts(point(candidate("a.onnx"), candidate("b.onnx", 1.25), candidate("c.onnx", 0.5))))
    assert [row["candidate"] for row in found] == ["a.onnx", "b.onnx", "c.onnx"]
    assert [row["ratio"] for row in found] == ["", "1.250x [1.240, 1.260]", "0.500x [0.490, 0.510]"]
    assert [row["verdict"] for row in found] == ["baseline", "faster", "slower"]
    assert [row["median ms"] for row in found] == ["2", "1.6", "4"]
    assert [row["samples/s"] for row in found] == ["4,000", "5,000", "2,000"]


def test_a_percentile_of_too_few_calls_is_marked_and_the_mark_explained() -> None:
    facts = bench_facts(point(candidate("a.onnx")))
    (row,) = rows(facts)
    assert (row["p90"], row["p95"], row["p99"]) == ("2.18", "2.19", "~2.2")
    assert any(line.startswith("~ marks a percentile with fewer than ten calls") for line in bench_lines(facts))


def test_one_candidate_alone_has_no_ratio() -> None:
    assert {"ratio", "verdict"}.isdisjoint(bench_tables(bench_facts(point(candidate("a.onnx"))))[0].heads)


def test_only_what_differs_is_a_column_and_the_rest_is_said_once() -> None:
    same = bench_facts(point(candidate("a.onnx"), candidate("b.onnx")))
    assert {"engine", "threads", "dims"}.isdisjoint(bench_tables(same)[0].heads)
    assert "onnxruntime, 2 threads, batch=8" in bench_lines(same)[0]
    other = candidate("a.onnx@openvino", engine="openvino", precision="bf16")
    one = [candidate("a.onnx", threads=1), candidate("a.onnx@openvino", engine="openvino", precision="bf16", threads=1)]
    swept = bench_facts(point(candidate("a.onnx"), other), point(*one, dims={"batch": 32}, threads=1))
    found = rows(swept)
    assert [row["engine"] for row in found] == ["onnxruntime", "openvino bf16"] * 2
    assert [(row["dims"], row["threads"]) for row in found] == [("batch=8", "2")] * 2 + [("batch=32", "1")] * 2
    assert bench_tables(swept)[0].rules == (1,)


def test_a_candidate_with_threads_of_its_own_is_shown_with_them() -> None:
    found = rows(bench_facts(point(candidate("a.onnx"), candidate("b.onnx", threads=1))))
    assert [row["threads"] for row in found] == ["2", "1"]


def test_a_provider_is_named_beside_its_engine() -> None:
    facts = bench_facts(point(candidate("a.onnx"), candidate("b.onnx", provider="cuda")))
    assert [row["engine"] for row in rows(facts)] == ["onnxruntime", "onnxruntime on cuda"]


def test_unstable_is_said() -> None:
    facts = bench_facts(point(candidate("a.onnx"), candidate("b.onnx", stable=False)))
    assert [row["stable"] for row in rows(facts)] == ["yes", "NO"]


def test_what_comes_before_the_steady_state_is_kept_apart() -> None:
    (row,) = rows(bench_facts(point(candidate("a.onnx"))), 1)
    assert row == {
        "candidate": "a.onnx",
        "size": "412 kB",
        "peak memory": "61 MB",
        "import s": "0.31",
        "load s": "0",
        "session s": "0.0214",
        "first ms": "3.5",
        "warm-up": "0.2 s, 90 calls",
    }
    never = candidate("a.onnx").phases.model_copy(update={"steady": False})
    assert rows(bench_facts(point(candidate("a.onnx", phases=never))), 1)[0]["warm-up"].endswith("not steady")


def test_the_load_table_shows_both_clocks() -> None:
    load = OpenLoop(
        label="a.onnx",
        rate=200.0,
        seconds=2.0,
        requests=400,
        achieved=199.5,
        percentiles=tuple(Percentile(percent=p, ms=p, enough=p < 99) for p in (50.0, 90.0, 95.0, 99.0)),
        max_ms=612.3,
        service_ms=2.0,
        service_p99_ms=2.5,
        lag_p50_ms=0.01,
        lag_p99_ms=0.2,
        saturated=False,
    )
    assert bench_tables(bench_facts(point(candidate("a.onnx"))))[2].rows == ()
    (row,) = rows(bench_facts(point(candidate("a.onnx"), load=(load,))), 2)
    assert (row["offered/s"], row["done/s"], row["p99"], row["max ms"]) == ("200", "199.5", "~99", "612")
    assert (row["call ms"], row["call p99"], row["lag p99 ms"], row["keeps up"]) == ("2", "2.5", "0.2", "yes")


def test_lines_say_how_and_where_it_was_measured() -> None:
    facts = bench_facts(point(candidate("a.onnx"), noise_floor=ratio(1.004)), source="e.npz", notes=("a note",))
    text = "\n".join(bench_lines(facts))
    for words in (
        "Fed: real, x float32[8,4] from e.npz; onnxruntime, 2 threads, batch=8.",
        "Noise floor: the baseline against itself 1.004x [0.994, 1.014], same.",
        "3 launches; 0 s (asked: 10 s a point after the first start); 99% intervals; "
        "faster and slower only beyond 2%; seed 0.",
        "Some CPU: 2 physical, 4 logical cores, 4 usable, cgroup limit 2 cores, 8.00 GB memory; "
        "load average before: 0.25.",
        "onnxruntime 1.31.1",
        "a note",
    ):
        assert words in text, words


@pytest.mark.parametrize("part", ["# optkit bench: baseline a|b", "| 1.250x [1.240, 1.260] | faster |", "- Fed: "])
def test_markdown_holds_it_all(part: str) -> None:
    text = bench_markdown(bench_facts(point(candidate("a|b"), candidate("c", 1.25)), warnings=("Beware.",)))
    assert part in text
    assert "- **Warning:** Beware." in text and "| a\\|b |" in text
