"""``profile``: what is asked of the child, what is made of its answer, and what is refused before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from optkit.bench.peaks import measure_peaks
from optkit.bench.profile import Profiled, profile_model
from optkit.bench.profile_facts import ProfileFacts
from optkit.errors import ModelError, OutputError, PackageError, UsageError
from optkit.model.machine import usable_threads
from optkit.model.model import Model
from optkit.pipeline import profile as module
from optkit.pipeline.candidates import About
from optkit.pipeline.isolate import isolated
from optkit.pipeline.profile import Conditions, profile
from optkit.report.profile import profile_lines, profile_tables
from tests.bench.toy_profile import PEAKS, node, profiled
from tests.helpers import normal, onnx_model

TEXT = "g (float[batch,4] x) => (float[batch,3] y) { [scores] h = MatMul(x, w) [clip] y = Relu(h) }"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seed in (("m.onnx", 0), ("other.onnx", 1)):
        onnx.save(onnx_model(TEXT, {"w": normal(4, 3, seed=seed)}), tmp_path / name)
    np.savez(tmp_path / "x.npz", x=normal(20, 4))


Asked = list[tuple[Any, ...]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """No children: the toy profile and limits instead; what the children would have been asked."""
    calls: Asked = []

    def stand_in(use_child: bool, function: Callable[..., object], *arguments: Any) -> object:
        assert use_child
        calls.append((function, *arguments))
        return profiled() if function is profile_model else PEAKS

    monkeypatch.setattr(module, "isolated", stand_in)
    return calls


def test_one_real_profile_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_limits(use_child: bool, function: Callable[..., Any], *arguments: Any) -> Any:
        return PEAKS if function is measure_peaks else isolated(use_child, function, *arguments)

    monkeypatch.setattr(module, "isolated", without_limits)
    before = {path.name for path in tmp_path.iterdir()}
    facts = profile("m.onnx", conditions=Conditions(dims={"batch": 5}, threads=1, seconds=0.1))
    assert {path.name for path in tmp_path.iterdir()} == before
    assert {(each.name, each.operator) for each in facts.model.nodes} == {("scores", "MatMul"), ("clip", "Relu")}
    (product,) = (each for each in facts.model.nodes if each.name == "scores")
    assert product.inputs == ("float32[5,4]", "float32[4,3]") and product.rate is not None
    assert product.rate.operations == 2 * 5 * 4 * 3
    assert facts.model.latency_ms > 0 and facts.synthetic and facts.threads == 1 and facts.dims == {"batch": 5}
    assert ProfileFacts.model_validate_json(facts.model_dump_json()) == facts


def test_the_child_gets_batches_of_one_shape(asked: Asked) -> None:
    facts = profile("m.onnx", conditions=Conditions(Path("x.npz"), dims={"batch": 8}, threads=2))
    (function, model, target, batches, _scratch, seconds), (peaks, threads) = asked
    assert (function, peaks, threads) == (profile_model, measure_peaks, 2)
    assert (model.path.name, target.provider, target.threads, seconds) == ("m.onnx", "cpu", 2, module.SECONDS)
    assert [batch["x"].shape for batch in batches] == [(8, 4)] * 4
    assert not facts.synthetic and facts.source.endswith("x.npz") and facts.inputs == "real, x float32[8,4]"


def test_session_entries_reach_the_child(asked: Asked) -> None:
    profile("m.onnx", about=About(session={"session.intra_op.allow_spinning": "0"}))
    assert asked[0][1].session == {"session.intra_op.allow_spinning": "0"}


def test_a_model_gets_the_threads_it_wants_unless_some_were_asked_for(asked: Asked) -> None:
    about = About(session={"intra_op_num_threads": "3"})
    assert profile("m.onnx", about=about).threads == 3
    assert profile("m.onnx", about=about, conditions=Conditions(threads=1)).threads == 1
    assert [call[2].threads for call in asked if call[0] is profile_model] == [3, 1]
    more = usable_threads() + 1
    own = replace(Model.open("other.onnx"), session={"intra_op_num_threads": str(more)})
    facts = profile("m.onnx", against=own, conditions=Conditions(dims={"batch": 8}))
    assert facts.notes[-1:] == (f"other.onnx wants, and got, {more} threads",)


def test_two_models_are_lined_up(asked: Asked) -> None:
    facts = profile("m.onnx", against="other.onnx")
    assert facts.against is not None
    assert (facts.model.label, facts.against.label) == ("m.onnx", "other.onnx")
    assert [pair.difference_ms for pair in facts.pairs] == [0.0, 0.0, 0.0]
    assert [call[0] for call in asked] == [profile_model, profile_model, measure_peaks]
    assert profile_tables(facts)[-1].rows and profile_lines(facts)


def test_the_trace_is_written_in_one_piece(asked: Asked, tmp_path: Path) -> None:
    facts = profile("m.onnx", trace=Path("t.json"))
    assert facts.trace == "t.json"
    names = [event["name"] for event in json.loads(Path("t.json").read_text())["traceEvents"]]
    assert names == ["process_name", "call 0", "wide"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    with pytest.raises(OutputError, match="exists already"):
        profile("m.onnx", trace=Path("t.json"))
    Path("t.json").write_text("old")
    profile("m.onnx", trace=Path("t.json"), force=True)
    assert Path("t.json").read_text() != "old"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"model": "no.onnx"}, ModelError, "There is no such model"),
        ({"model": "m.onnx@openvino"}, UsageError, "only onnxruntime and torch can be profiled"),
        ({"conditions": Conditions(dims={"seq": 3})}, UsageError, "'seq' does not exist"),
        ({"conditions": Conditions(Path("x.npz"), ["x.npz"])}, UsageError, "both say what to run on"),
        ({"trace": Path("no/t.json")}, OutputError, "its folder does not exist"),
        ({"trace": Path()}, OutputError, "that is a folder"),
    ],
)
def test_what_is_wrong_is_told_before_any_work(
    arguments: dict[str, Any], error: type[Exception], words: str, asked: Asked
) -> None:
    with pytest.raises(error, match=words):
        profile(**{"model": "m.onnx", **arguments})
    assert asked == []


def test_notes_on_times_that_are_rough(monkeypatch: pytest.MonkeyPatch) -> None:
    found = profiled(node("only", "Relu", 2.0), plain_ms=1.0)
    noisy = Profiled(**{**vars(found), "plain_times": (1e-3, 1e-3, 2e-3, 2e-3), "profiled_s": 3e-3})
    monkeypatch.setattr(module, "isolated", lambda _, what, *__: noisy if what is profile_model else PEAKS)
    notes = profile("m.onnx").notes
    assert any("the machine is busy" in note for note in notes)
    assert any("3.0 times as long as without" in note for note in notes)


def test_without_onnxruntime_a_torch_model_has_no_limits(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(_: bool, what: object, *__: object) -> Profiled:
        if what is measure_peaks:
            raise PackageError("onnxruntime cannot be imported.")
        return profiled()

    monkeypatch.setattr(module, "isolated", lacking)
    facts = profile("m.onnx")
    assert facts.peaks is None and facts.model.gain_ms is None
    assert "the machine's limits were not measured: onnxruntime cannot be imported." in facts.notes
