"""Decisions that were measured on another machine are said to be, wherever the bundle is used; here nothing is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optkit.model.manifest import Decision, Environment, Manifest
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.pipeline.bench import _elsewhere
from optkit.pipeline.candidates import About, open_entrants
from optkit.pipeline.compare import compare
from optkit.pipeline.infer import infer
from optkit.pipeline.optimize import optimize
from optkit.pipeline.origin import Origin, decided_elsewhere, read_origin
from optkit.report.markdown import verdict_markdown
from tests.pipeline import toy

MEASURED = Decision(what="execution_mode=parallel", kept=True, speedup=1.2, low=1.1, high=1.3, reason="faster")
GUESSED = Decision(what="attention", kept=True, reason="not timed")
OTHER = {"cpu": "Other CPU", "physical_cores": 64}


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))
    optimize(toy.write_model(tmp_path / "m.onnx"), toy.ScaleBy(), tmp_path / "out", bench=False)
    return tmp_path / "out"


def decided(bundle: Path, *decisions: Decision, status: str = "changed", **environment: Any) -> Environment:
    """Write decisions into the bundle, made in that environment."""
    file = bundle / "manifest.json"
    manifest = Manifest.model_validate_json(file.read_bytes())
    (step,) = manifest.steps
    steps = (step.model_copy(update={"decisions": decisions, "status": status}),)
    there = manifest.environment.model_copy(update=environment)
    file.write_text(manifest.model_copy(update={"steps": steps, "environment": there}).model_dump_json())
    return manifest.environment


def origin(bundle: Path) -> Origin:
    found = read_origin(Model.open(bundle), bundle=True)
    assert found is not None
    return found


def test_it_is_one_sentence_with_what_differs(bundle: Path) -> None:
    here = decided(bundle, MEASURED, **OTHER)
    assert decided_elsewhere(origin(bundle), Target()) == (
        "The decision of this bundle was measured on Other CPU (64 physical cores), and this is "
        f"{here.cpu} ({here.physical_cores} physical cores): "
        "'optkit optimize --remeasure' here would choose for this machine."
    )
    decided(bundle, MEASURED, MEASURED, cpu=here.cpu, physical_cores=here.physical_cores, packages={"onnxruntime": "1"})
    told = decided_elsewhere(origin(bundle), Target())
    assert told.startswith(f"The 2 decisions of this bundle were measured on {here.cpu} (onnxruntime 1), and this is ")


def test_another_provider_is_another_place(bundle: Path) -> None:
    decided(bundle, MEASURED)
    assert "(provider cpu), and this is" in decided_elsewhere(origin(bundle), Target("cuda"))


@pytest.mark.parametrize(("decisions", "environment"), [((MEASURED,), {}), ((GUESSED,), OTHER), ((), OTHER)])
def test_nothing_is_said_here_or_where_nothing_was_measured(
    bundle: Path, decisions: tuple[Decision, ...], environment: dict[str, Any]
) -> None:
    decided(bundle, *decisions, **environment)
    assert decided_elsewhere(origin(bundle), Target()) == ""
    assert decided_elsewhere(None, Target()) == ""


def test_to_leave_all_as_it_was_is_a_decision_too(bundle: Path) -> None:
    decided(bundle, MEASURED.model_copy(update={"kept": False}), status="no effect", **OTHER)
    assert "measured on Other CPU" in decided_elsewhere(origin(bundle), Target())


def test_a_run_says_so_in_its_facts(bundle: Path) -> None:
    decided(bundle, MEASURED)
    assert infer(bundle).facts.notes == ()
    decided(bundle, MEASURED, **OTHER)
    (note,) = infer(bundle).facts.notes
    assert "measured on Other CPU" in note


def test_a_verdict_says_so_and_its_run_does_not_repeat_it(bundle: Path) -> None:
    model = bundle.parent / "m.onnx"
    decided(bundle, MEASURED, **OTHER)
    verdict = compare(model, bundle)
    (note,) = verdict.notes
    assert "measured on Other CPU" in note
    assert f"Note: {note}" in verdict_markdown(verdict, "m.onnx", "out")
    ran = infer(bundle, against=model)
    assert ran.verdict is not None and ran.verdict.notes == (note,) and ran.facts.notes == ()


def test_a_bench_says_so_of_the_candidates_on_onnxruntime(bundle: Path) -> None:
    decided(bundle, MEASURED, **OTHER)
    plain, own, other = open_entrants([bundle.parent / "m.onnx", bundle, f"{bundle}@openvino"], About())
    assert _elsewhere(plain) == _elsewhere(other) == ""
    assert _elsewhere(own).startswith(f"{bundle}: The decision of this bundle was measured on Other CPU")
