"""The accuracy budget from end to end: ``optimize`` with a quantizing pass that repairs, on a sample model."""

from __future__ import annotations

import re

import pytest

import optkit
from optkit.errors import AccuracyMissed
from optkit.model.manifest import Manifest
from optkit.passes.quantize_dynamic import QuantizeDynamic
from optkit.pipeline.cache import Cache
from tests.command import SAMPLES
from tests.helpers import fresh_dir

MLP = SAMPLES / "digits_mlp.onnx"


def optimized(limit: str, cache: Cache | None = None, **options: bool) -> Manifest:
    return optkit.optimize(
        MLP, QuantizeDynamic(**options), bench=False, limits=[limit], cache=cache or Cache(fresh_dir())
    )


def test_a_limit_that_full_quantization_misses_is_held_by_giving_layers_back() -> None:
    limit = "max_error=0.01"
    with pytest.raises(AccuracyMissed, match=r"max_error of logits is 0\.01"):
        optimized(limit)
    manifest = optimized(limit, repair=True)
    (step,) = manifest.steps
    assert manifest.verdict.held and step.status == "changed" and len(step.changes) in (1, 2)
    given_back = [each for each in step.skipped if each.what.startswith("given back to float32")]
    assert len(given_back) + len(step.changes) == 3
    (decision,) = step.decisions
    assert decision.kept and decision.what == f"{len(given_back)} of 3 layers given back to float32"
    assert "max_error 0.012" in decision.reason and "(limit <= 0.01)" in decision.reason
    assert any(note.startswith("repair: ") for note in step.notes)


def test_repairs_depend_on_the_limits_and_are_cached() -> None:
    cache = Cache(fresh_dir())
    assert len(optimized("max_error=0.1", cache, repair=True).steps[0].changes) == 3
    assert len(optimized("max_error=0.01", cache, repair=True).steps[0].changes) < 3
    again = optimized("max_error=0.1", cache, repair=True).steps[0]
    assert again.cached and len(again.changes) == 3


def test_what_cannot_be_held_names_the_best_that_was_found() -> None:
    with pytest.raises(AccuracyMissed) as error:
        optimized("max_error=0.0001", repair=True)
    assert error.value.exit_code == 4
    assert re.search(r"2 of 3 layers given back to float32 \(\S+, \S+\): the best that was found", error.value.message)
    assert error.value.facts.output is None
