from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import peers, render, results, scores
from benchmarks.artefacts import made, size_mb
from benchmarks.results import AtPoint, Candidate, Results, SubjectResult
from benchmarks.subjects import Product, batches
from optkit.errors import ModelError
from optkit.model.manifest import Environment, Ratio

HERE = Environment(
    optkit="0.1.0", python="3.11", platform="Linux", cpu="a CPU", cpu_features=(), cores=2, threads=2, provider="cpu",
    packages={},
)  # fmt: skip


def at_point(ms: float, *, base: float = 10.0, stable: bool = True) -> AtPoint:
    speedup = base / ms
    ratio = Ratio(
        baseline_ms=base, candidate_ms=ms, speedup=speedup, low=0.95 * speedup, high=1.05 * speedup, confidence=0.99,
        blocks=8, inputs="real",
    )  # fmt: skip
    return AtPoint(median_ms=ms, ratio=ratio, peak_mb=100.0, start_s=0.5, first_ms=700.0, stable=stable)


def candidate(label: str, peer: str, ms: float, cosine: float, **more: object) -> Candidate:
    points = (at_point(ms),)
    return Candidate(label=label, peer=peer, engine="", size_mb=1.5, scores={"cosine": cosine}, points=points, **more)


def tiny() -> Results:
    candidates = (
        candidate("onnxruntime", "onnxruntime", 10.0, 1.0),
        candidate("onnxruntime dynamic int8", "onnxruntime", 2.0, 0.9),
        candidate("OpenVINO + NNCF int8", "OpenVINO", 4.0, 0.999, seconds=12.0, note="preset performance"),
        candidate("optkit int8", "optkit", 5.0, 0.995),
        Candidate(label="Olive static int8", peer="Olive", engine="", failed="exit 1: it broke"),
    )
    subject = SubjectResult(
        name="minilm", title="MiniLM", date="2026-01-01", headline="cosine", points=({"batch": 1, "seq": 32},),
        samples=1000, candidates=candidates, load_average=0.1,
    )  # fmt: skip
    rules = {"budget_s": 1.5, "launches": 2, "threads": 2, "confidence": 0.99, "margin": 0.02}
    return Results(
        date="2026-01-01T00:00:00", command="python benchmarks/peers.py", environment=HERE, rules=rules,
        versions={"optkit": "0.1.0"}, subjects=(subject,), tool=({"tool": "optkit --help", "seconds": 0.134},),
    )  # fmt: skip


def test_the_page_has_a_row_for_all_and_the_reason_of_the_one_that_failed() -> None:
    text = render.page(tiny())
    assert "| OpenVINO + NNCF int8 | 4 | 2.50 [2.38, 2.62] faster | 0.9990 | 1.5 | 100 | 1.2 s |" in text
    assert "| **optkit int8** | 5 | 2.00 [1.90, 2.10] faster | 0.9950 | 1.5 | 100 | 1.2 s |" in text
    assert "- Olive static int8: exit 1: it broke" in text
    assert "| optkit --help | 0.134 |" in text
    labels = ("onnxruntime dynamic int8", "OpenVINO + NNCF int8", "**optkit int8**", "onnxruntime")
    order = [text.index(f"\n| {label} |") for label in labels]
    assert order == sorted(order)  # fastest first


def test_where_optkit_loses_is_said_first_and_broken_accuracy_does_not_win() -> None:
    text = render.in_short(tiny())
    row = "| minilm, batch 1, seq 32 | optkit int8 | 5 | OpenVINO + NNCF int8 | 4 | **1.25 x slower** |"
    assert row in text
    assert "dynamic" not in text


def test_a_noisy_measurement_is_marked() -> None:
    found = tiny()
    (subject,) = found.subjects
    noisy = candidate("optkit int8", "optkit", 5.0, 0.995).model_copy(update={"points": (at_point(5.0, stable=False),)})
    changed = subject.model_copy(update={"candidates": (subject.candidates[0], noisy)})
    assert "2.00 [1.90, 2.10] faster ?" in render.page(found.model_copy(update={"subjects": (changed,)}))


@pytest.mark.parametrize(
    ("name", "base", "found", "kept"),
    [
        ("cosine", 1.0, 0.991, True),
        ("cosine", 1.0, 0.98, False),
        ("perplexity", 30.0, 30.2, True),
        ("perplexity", 30.0, 31.0, False),
        ("perplexity", 30.0, 20.0, True),
    ],
)
def test_keeping_the_score_knows_its_direction(name: str, base: float, found: float, kept: bool) -> None:
    (subject,) = tiny().subjects
    first = subject.candidates[0].model_copy(update={"scores": {name: base}})
    other = first.model_copy(update={"label": "other", "scores": {name: found}})
    subject = subject.model_copy(update={"headline": name, "candidates": (first, other)})
    assert render.keeps(other, subject) is kept


def test_the_readme_gets_its_table_between_the_markers_and_keeps_the_rest() -> None:
    text = render.with_table(f"before\n{render.BEGIN}\nold\n{render.END}\nafter\n", tiny())
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "old" not in text
    assert "| **optkit int8** | 5 | 2.00 | cosine 0.9950 | 1.5 |" in text
    assert "onnxruntime dynamic int8" not in text
    assert render.with_table(text, tiny()) == text
    with pytest.raises(ValueError, match="lacks <!-- results -->"):
        render.with_table("no markers", tiny())


def test_the_written_page_and_table_are_those_of_the_results() -> None:
    if not results.FILE.is_file():
        pytest.skip("no benchmarks/results.json: make bench-peers")
    found = results.read()
    assert render.PAGE.read_text() == render.page(found), "run: python benchmarks/render.py"
    readme = render.README.read_text()
    assert readme == render.with_table(readme, found), "run: python benchmarks/render.py"


def test_results_of_another_run_are_kept_unless_the_machine_changed(tmp_path: Path) -> None:
    path, before = tmp_path / "results.json", tiny()
    results.write(before, path)
    assert results.read(path) == before
    other = before.subjects[0].model_copy(update={"name": "silero"})
    fresh = before.model_copy(update={"subjects": (), "tool": ()})
    both = peers.merged(path, [other], fresh)
    assert [each.name for each in both.subjects] == ["minilm", "silero"]
    assert both.tool == before.tool
    moved = fresh.model_copy(update={"environment": HERE.model_copy(update={"cpu": "another"})})
    assert [each.name for each in peers.merged(path, [other], moved).subjects] == ["silero"]


@pytest.mark.parametrize(("words", "said"), [(["bert"], "no model bert"), (["--only", "tvm"], "no peer tvm")])
def test_unknown_names_list_the_known_ones(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        peers.arguments(words)
    assert said in capsys.readouterr().err


def test_a_candidate_that_breaks_at_a_point_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(candidates: list[str], inputs: list[object], rules: object, **_: object) -> list[str]:
        if "bad" in candidates:
            raise ModelError("It broke.", fix="mend it")
        return candidates

    monkeypatch.setattr(peers, "measure", measure)
    monkeypatch.setattr(peers, "_candidate", lambda subject, product, threads: product.label)
    monkeypatch.setattr(peers, "_facts", lambda label: AtPoint(median_ms=1.0))
    subject = SimpleNamespace(name="minilm", feeds=lambda point: [])
    products = [Product(label, "peer", None, "") for label in ("onnxruntime", "bad", "good")]
    found = peers.at_point(subject, products, {"batch": 1}, peers.Settings((), 0.1, 1, 2))
    assert found["bad"] == AtPoint(failed="It broke.")
    assert found["onnxruntime"] == found["good"] == AtPoint(median_ms=1.0)


def test_candidates_share_memory_in_groups_with_the_baseline_in_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_memory_mb", lambda product: 1000.0)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=5e9))
    products = [Product(str(number), "peer", None, "") for number in range(5)]
    labels = [[product.label for product in group] for group in peers.groups(products)]
    assert labels == [["0", "1", "2"], ["0", "3", "4"]]


def test_artefacts_are_made_once_per_key_and_failures_are_not_kept(tmp_path: Path) -> None:
    calls = []

    def make(folder: Path) -> None:
        calls.append(folder)
        if len(calls) == 1:
            raise ValueError("the first time\nit breaks")
        (folder / "model.xml").write_bytes(b"x" * 1000)
        (folder / "model.bin").write_bytes(b"x" * 2000)

    with pytest.raises(RuntimeError, match=r"^the first time$"):
        made(tmp_path, "thing", "key", make)
    folder, seconds = made(tmp_path, "thing", "key", make)
    assert made(tmp_path, "thing", "key", make) == (folder, seconds)
    assert len(calls) == 2
    assert size_mb(folder / "model.xml") == pytest.approx(0.003)
    made(tmp_path, "thing", "another key", make)
    assert not folder.exists()


def test_batches_cut_along_each_inputs_own_axis() -> None:
    arrays = {"x": np.arange(10).reshape(5, 2), "state": np.arange(5)[None], "rate": np.array(16)}
    first, second = batches(arrays, 2, {"state": 1})
    assert first["x"].tolist() == [[0, 1], [2, 3]]
    assert (second["state"].tolist(), second["rate"].tolist()) == ([[2, 3]], 16)


def test_scores_against_known_answers() -> None:
    logits = np.eye(4, dtype=np.float32)[None, [0, 1, 1, 0, 1, 3]]
    assert scores.decode(logits, "abc") == ["aac"]
    assert scores.edit_distance("kitten", "sitting") == 3
    read = scores.reading("y", "abc", ["abc"])([{"y": logits}], [{"z": logits}])
    assert read == {"same_text": 1.0, "read": pytest.approx(2 / 3)}
    uniform = {"y": np.zeros((1, 3, 8), np.float32)}
    assert scores.language("y", [np.array([[1, 2, 3]])])([uniform], [uniform])["perplexity"] == pytest.approx(8)


def test_the_last_batch_is_a_page_that_is_read_from_end_to_end() -> None:
    def count(original: Sequence[Any], result: Sequence[Any]) -> dict[str, float]:
        return {"batches": float(len(original) + len(result))}

    texts = {0.0: ["kitten", "cat"], 1.0: ["sitting", "cat"]}
    score = scores.and_page(count, "y", lambda array: texts[float(array)])
    batches = [{"y": np.array(0.0)}, {"y": np.array(0.0)}]
    assert score(batches, batches) == {"batches": 2.0, "page": 1.0}
    found = score(batches, [batches[0], {"y": np.array(1.0)}])
    assert found["page"] == pytest.approx(1 - 3 / len("kitten\ncat"))
