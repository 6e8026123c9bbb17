"""Ranking the layers of a recipe's quantizing step: the right step, the right recipe, names that fit ``exclude``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx
import pytest

from optkit.bench.profile import NodeProfile, Profiled
from optkit.errors import RecipeError
from optkit.evaluate.limits import Limits
from optkit.passes._quant.select import excluded
from optkit.passes.quantize_dynamic import QuantizeDynamic
from optkit.passes.set_opset import SetOpset
from optkit.pipeline import sensitivity as module
from optkit.pipeline.cache import Cache
from optkit.pipeline.sensitivity import as_pattern, sensitivity
from optkit.recipe.recipe import Recipe, Step
from optkit.report.sensitivity import SensitivityFacts
from tests.command import SAMPLES, write_data, write_mlp
from tests.helpers import normal
from tests.passes._quant.toy_quantizer import BAD, NAMES, SLIGHT, WIDTH, ToyQuantizer, chain


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def ranked(tmp_path: Path, cache: Cache, recipe: Any, **options: Any) -> SensitivityFacts:
    data = write_data(tmp_path / "x.npz", x=normal(48, WIDTH, seed=4))
    given = {"bench": False, "data": {"evaluation": str(data)}, "cache": cache, **options}
    return sensitivity(chain(), recipe, **given)


def test_layers_come_with_what_is_known_of_them(tmp_path: Path, cache: Cache) -> None:
    facts = ranked(tmp_path, cache, ToyQuantizer())
    assert [each.name for each in facts.layers[:2]] == ["fc2", "fc5"] and len(facts.layers) == len(NAMES)
    for each in facts.layers:
        assert each.error == pytest.approx(BAD.get(each.name, SLIGHT), rel=1e-3)
        assert (each.operator, each.parameters, each.among) == ("MatMul", WIDTH**2, 1)
        assert each.share is None and each.drop is None
    assert facts.exclude == ("fc2", "fc5", facts.layers[2].name)
    assert (facts.step, facts.recipe, facts.why) == ("toy-quantizer", "recipe", "")
    assert facts.quantized is not None and facts.quantized.measured_on.split == "search"
    assert facts.measured_on.samples == 14


def test_limits_that_are_missed_are_no_failure(tmp_path: Path, cache: Cache) -> None:
    facts = ranked(tmp_path, cache, ToyQuantizer(), limits=Limits(cosine=0.99))
    assert facts.quantized is not None and not facts.quantized.held


def test_a_second_call_ranks_nothing_again(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ranked(tmp_path, cache, ToyQuantizer())
    monkeypatch.setattr("optkit.passes._quant.ranking._Trials", None)
    assert ranked(tmp_path, cache, ToyQuantizer()).layers == first.layers


def test_the_first_step_that_quantizes_is_taken_or_the_one_named(tmp_path: Path, cache: Cache) -> None:
    early, late = ToyQuantizer(exclude=("fc2",)), ToyQuantizer(exclude=("fc5",))
    recipe = Recipe(passes=[SetOpset(version=20), Step(id="early", options=early), Step(id="late", options=late)])
    first = ranked(tmp_path, cache, recipe)
    assert (first.step, first.layers[0].name) == ("early", "fc5")
    assert [(each.where, each.what) for each in first.skipped] == [("fc2", "excluded")]
    second = ranked(tmp_path, cache, recipe, step="late")
    assert (second.step, second.layers[0].name) == ("late", "fc2")


@pytest.mark.parametrize(
    ("step", "words", "fix"),
    [
        ("nowhere", "has no step 'nowhere'", "--step dynamic"),
        ("set-opset", "The step 'set-opset' does not quantize layer by layer", "--step dynamic"),
    ],
)
def test_a_step_that_is_none_is_refused(tmp_path: Path, cache: Cache, step: str, words: str, fix: str) -> None:
    recipe = Recipe(passes=[SetOpset(version=20), Step(id="dynamic", options=QuantizeDynamic())])
    with pytest.raises(RecipeError, match=words) as error:
        ranked(tmp_path, cache, recipe, step=step)
    assert error.value.fix == fix and error.value.expected == "one of the steps dynamic"


def test_a_recipe_without_a_quantizing_step_is_refused(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(RecipeError, match="'fp32' has no step that quantizes layer by layer") as error:
        ranked(tmp_path, cache, "fp32")
    assert error.value.fix == "take another recipe: --recipe int8"


def test_nothing_to_quantize_is_an_answer(tmp_path: Path, cache: Cache) -> None:
    facts = ranked(tmp_path, cache, QuantizeDynamic(exclude=("fc.",)))
    assert facts.layers == () and facts.quantized is None and facts.exclude == ()
    assert any("nothing to quantize: 6 nodes are excluded" in note for note in facts.notes)


def test_the_metric_s_drop_is_measured_where_there_are_labels(cache: Cache) -> None:
    facts = sensitivity(SAMPLES / "digits_mlp.onnx", QuantizeDynamic(), bench=False, cache=cache)
    assert {each.drop for each in facts.layers} == {0.0} and len(facts.layers) == 3
    assert facts.quantized is not None and facts.quantized.metrics[0].name == "top1"


def test_times_are_those_of_the_nodes_in_float(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def node(origin: str, seconds: float) -> NodeProfile:
        return NodeProfile(f"n{seconds}", origin, "MatMul", "CPU", (), (), 1.0, seconds)

    def profiled(child: bool, function: Any, *args: Any) -> Any:
        if function is not module.profile_model:
            return function(*args)
        assert child and args[1].threads >= 1 and len(args[2]) == 1
        nodes = (node("fc0", 3.0), node("fc0", 3.0), node("fc1", 2.0), node("", 2.0))
        return Profiled("onnxruntime", "1", 1.0, (1.0,), 1.0, 1, nodes, 0.0, ())

    monkeypatch.setattr(module, "isolated", profiled)
    facts = ranked(tmp_path, cache, ToyQuantizer(), bench=True)
    assert {each.name: each.share for each in facts.layers if each.share} == pytest.approx({"fc0": 0.6, "fc1": 0.2})


# Which recipe


def test_a_model_without_convolutions_gets_dynamic_int8(tmp_path: Path, cache: Cache) -> None:
    model, data = write_mlp(tmp_path / "m.onnx"), write_data(tmp_path / "x.npz")
    facts = sensitivity(model, bench=False, data={"evaluation": str(data)}, cache=cache)
    assert (facts.recipe, facts.why) == ("int8", "the model has no convolutions")


def test_convolutions_with_calibration_data_get_static_int8(cache: Cache) -> None:
    facts = sensitivity(SAMPLES / "digits_cnn.onnx", bench=False, cache=cache)
    assert (facts.recipe, facts.step) == ("int8-static", "quantize-static")
    assert facts.why == "the model has convolutions, and there are calibration data"
    assert {each.operator for each in facts.layers} == {"Conv", "Gemm"}
    assert all(each.parameters > 0 for each in facts.layers)


def test_convolutions_without_calibration_data_get_what_needs_none(tmp_path: Path, cache: Cache) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(onnx.load(SAMPLES / "digits_cnn.onnx"), path)
    facts = sensitivity(path, bench=False, cache=cache)
    assert facts.recipe == "int8" and facts.why.startswith("there are no calibration data for int8-static")
    assert facts.measured_on.synthetic


# Names for ``exclude``


@pytest.mark.parametrize(
    ("name", "others", "pattern"),
    [
        ("/encoder/layer.0/MatMul", ["/encoder/layer.1/MatMul"], "/encoder/layer.0/MatMul"),
        ("layer.0", ["layerx0"], r"layer\.0"),
        ("MatMul -> y[0", [], r"MatMul\ \->\ y\[0"),
        ("a+", ["a", "aa"], r"a\+"),
        ("a+", ["b"], "a+"),
    ],
)
def test_a_pattern_excludes_this_layer_and_no_other(name: str, others: list[str], pattern: str) -> None:
    found = as_pattern(name, [name, *others])
    assert found == pattern
    assert [each for each in [name, *others] if excluded(each, [found])] == [name]
    assert QuantizeDynamic(exclude=(found,)).exclude == (found,) and re.compile(found)
