"""Channels, features and heads out of the sample models: counted, timed on a clock of our own, trained, exported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from pydantic import ValidationError

import optkit
from optkit.data.open import open_dataset
from optkit.data.spec import DataSource
from optkit.errors import PassError
from optkit.evaluate.limits import Limits
from optkit.model.load_torch import load_module
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.passes._base import Outcome
from optkit.passes._prune.score import Criterion
from optkit.passes._torch_cost import cost
from optkit.passes._train.tune import Trained
from optkit.passes.export_onnx import ExportOnnx
from optkit.passes.prune_channels import PruneChannels
from optkit.pipeline.cache import Cache
from optkit.pipeline.context import StepContext
from optkit.pipeline.job import Job
from tests.timing import Speeds

SAMPLES = Path(__file__).parents[2] / "sample_models"
SIGNATURES = {
    "digits_cnn": "image=float32[batch,1,8,8]",
    "reviews_transformer": "input_ids=int64[batch,seq]; attention_mask=int64[batch,seq]",
}
CNN = {"features.0": 16, "features.3": 32, "classifier.1": 96}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small layers are faster so beside other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sample(name: str) -> Model:
    factory = f"{SAMPLES / 'models.py'}:{name}"
    return Model.open(SAMPLES / f"{name}.safetensors", factory=factory, signature=SIGNATURES[name])


@cache
def splits(name: str) -> dict[str, Any]:
    model = sample(name)
    if name == "digits_cnn":
        files = {"train": "calibration", "calibration": "calibration", "search": "search", "evaluation": "search"}
        sources = {split: DataSource(source=f"data/digits_{file}.npz", batch=32) for split, file in files.items()}
        preprocess: dict[str, dict[str, object]] = {}
    else:
        columns: dict[str, Any] = {"labels": "label", "columns": {"input_ids": "text"}, "samples": 24, "batch": 8}
        names = ("calibration", "search", "evaluation")
        sources = {split: DataSource(source=f"data/reviews_{split}.csv", **columns) for split in names}
        preprocess = {"input_ids": {"kind": "text", "tokenizer": "reviews_tokenizer", "max_length": 64}}
    given = {"signature": model.signature, "base": SAMPLES, "preprocess": preprocess, "assets_dir": SAMPLES}
    return {split: open_dataset(split, source, allow_code=False, **given) for split, source in sources.items()}


def context(folder: Path, options: PruneChannels, name: str = "digits_cnn", **fields: Any) -> StepContext:
    job = Job(
        original=sample(name),
        target=Target(threads=1),
        splits=splits(name),
        limits=Limits(),
        exact=False,
        cache=Cache(folder / "cache"),
        exporter=ExportOnnx(exporter="torchscript"),
        **fields,
    )
    (folder / "work").mkdir(exist_ok=True)
    reads = frozenset({"sample", *options.reads()})
    return StepContext(job, folder / "work", options.name(), reads=reads, times=options.decides_by_time(), key="key")


def prune(folder: Path, name: str = "digits_cnn", job: dict[str, Any] | None = None, **options: Any) -> Outcome:
    options = {"target": {"macs": 0.5}, "fine_tune": False} | options
    pruner = PruneChannels(**options)
    return pruner(sample(name), context(folder, pruner, name, **(job or {})))


def share(outcome: Outcome, what: str = "macs", name: str = "digits_cnn") -> float:
    """Counted anew on the result as it is loaded from its folder."""
    from optkit.passes._torch_cost import sample_inputs

    inputs, samples = sample_inputs(sample(name), splits(name)["search"])
    before, after = (cost(load_module(each), inputs, samples) for each in (sample(name), outcome.model))
    return float(getattr(after, what) / getattr(before, what))


def left(outcome: Outcome) -> dict[str, int]:
    return {where: int(what.split(" -> ")[1].split()[0]) for where, what in outcome.changes}


def initializers(model: Model) -> int:
    graph = onnx.load(model.path).graph
    return sum(numpy_helper.to_array(each).size for each in graph.initializer)


@pytest.mark.parametrize("criterion", ["taylor", "magnitude", "activation", "bn-scale"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_macs_end_just_below_the_target(criterion: Criterion, scope, tmp_path):
    outcome = prune(tmp_path, criterion=criterion, scope=scope, multiple=1)
    assert 0.47 < share(outcome) <= 0.5
    assert outcome.changed == len(outcome.changes) > 0
    assert (
        outcome.model.lineage[-1]
        == PruneChannels(target={"macs": 0.5}, criterion=criterion, scope=scope, multiple=1, fine_tune=False).sentence()
    )
    assert "MACs per sample 354 k -> " in outcome.notes[0]
    skipped = {"classifier.4"} | ({"classifier.1"} if criterion == "bn-scale" else set())
    assert {where for where, _ in outcome.skipped} == skipped


def test_parameters_end_just_below_the_target(tmp_path):
    assert 0.47 < share(prune(tmp_path, target={"parameters": 0.5}, multiple=1), "parameters") <= 0.5


@pytest.mark.parametrize("multiple", [8, 16])
def test_what_is_left_are_multiples(multiple, tmp_path):
    found = left(prune(tmp_path, target={"macs": 0.5}, multiple=multiple))
    assert found and all(units % multiple == 0 for units in found.values())


def test_every_layer_keeps_its_floor(tmp_path):
    found = left(prune(tmp_path, target={"macs": 0.4}, multiple=1, min_share=0.55))
    assert all(units >= 0.55 * CNN[name] for name, units in found.items())


def test_little_is_lost_where_little_goes(tmp_path):
    outcome = prune(tmp_path, target={"macs": 0.7}, multiple=1)
    batch = splits("digits_cnn")["search"]
    image = torch.from_numpy(np.concatenate([each.inputs["image"] for each in batch.batches()]))
    with torch.no_grad():
        one, other = (load_module(each)(image=image)["logits"] for each in (sample("digits_cnn"), outcome.model))
    assert (one.argmax(1) == other.argmax(1)).float().mean() >= 0.97


def test_the_folder_gives_what_the_live_module_gave_and_exports_smaller(tmp_path, monkeypatch):
    live: list[Any] = []
    from optkit.passes._prune import rounds

    saved = rounds.save_module

    def save(before, module, *rest):
        live.append(module)
        return saved(before, module, *rest)

    monkeypatch.setattr(rounds, "save_module", save)
    pruner = PruneChannels(target={"macs": 0.3}, fine_tune=False)
    ctx = context(tmp_path, pruner)
    outcome = pruner(ctx.original, ctx)
    image = next(iter(splits("digits_cnn")["search"].batches())).inputs["image"]
    with torch.no_grad():
        want = live[-1](image=torch.from_numpy(image))["logits"].numpy()
    exported = replace(ctx, reads=None).to_onnx(outcome.model)
    (found,) = ctx.run(outcome.model, _one(image))
    np.testing.assert_array_equal(found["logits"], want)
    (found,) = ctx.run(exported, _one(image))
    np.testing.assert_allclose(found["logits"], want, atol=1e-4)
    assert initializers(exported) < 0.5 * initializers(ctx.to_onnx(ctx.original))
    assert {tuple(each.dims) for each in onnx.load(exported.path).graph.initializer} >= {(16, 8, 3, 3)}


def _one(image: np.ndarray) -> Any:
    from tests.helpers import MemoryData

    return MemoryData("search", {"image": image}, batch=len(image))


def test_excluded_layers_stay_and_a_typo_is_told(tmp_path):
    outcome = prune(tmp_path, exclude=(r"classifier\..*", "clasifier.1"))
    assert not {"classifier.1"} & set(left(outcome))
    assert ("classifier.1", "excluded") in outcome.skipped
    told = "exclude 'clasifier.1' matches no layer that could be pruned; did you mean 'classifier.1'?"
    assert told in outcome.notes


def test_only_the_kinds_that_are_asked_for(tmp_path):
    outcome = prune(tmp_path, kinds=("features",), target={"parameters": 0.7})
    assert set(left(outcome)) == {"classifier.1"}
    assert ("features.0", "kinds leaves channels out") in outcome.skipped


def test_an_unreachable_target_names_the_best_reached(tmp_path):
    with pytest.raises(
        PassError, match=r"The target of 0\.05 of the MACs cannot be reached: the least is 0\.258\."
    ) as error:
        prune(tmp_path, target={"macs": 0.05}, min_share=0.5)
    assert "min_share" in error.value.fix


def test_nothing_to_prune_says_why(tmp_path):
    with pytest.raises(PassError, match=r"nothing to prune in digits_cnn\.safetensors.*features\.0: excluded"):
        prune(tmp_path, exclude=(".*",))
    with pytest.raises(PassError, match="as few as min_share and multiple allow"):
        prune(tmp_path, multiple=64, kinds=("channels",), min_share=1)


def milliseconds(model: Model) -> float:
    """Half of it fixed, the rest by what is in the file."""
    return 0.2 + 0.8 * initializers(model) / 55_000


def test_latency_is_measured_against_the_export(tmp_path, monkeypatch):
    speeds = Speeds(milliseconds).installed(monkeypatch)
    outcome = prune(tmp_path, target={"latency": 0.6}, multiple=1)
    base, result = speeds.asked[-1]
    assert all(models[0] == base and len(models) == 2 for models in speeds.asked)
    assert base.form == "onnx" and initializers(base) > initializers(result)
    (kept,) = [each for each in outcome.decisions if each.kept]
    assert 1 / 0.6 <= kept.speedup < 1 / 0.54
    made = milliseconds(context(tmp_path, PruneChannels(target={"latency": 0.6})).to_onnx(outcome.model))
    assert milliseconds(base) / made == pytest.approx(kept.speedup, rel=1e-6)
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["model"]


def test_latency_that_is_out_of_reach_names_the_best(tmp_path, monkeypatch):
    Speeds(lambda model: 0.9 + milliseconds(model) / 10).installed(monkeypatch)
    with pytest.raises(PassError, match=r"0\.5 of the latency cannot be reached: the least is 0\.9"):
        prune(tmp_path, target={"latency": 0.5})


def test_without_a_stopwatch_a_latency_is_refused(tmp_path):
    with pytest.raises(PassError, match="--no-bench forbids it"):
        prune(tmp_path, job={"bench": False}, target={"latency": 0.5})


@pytest.fixture
def tuned(monkeypatch) -> Iterator[list[dict[str, Any]]]:
    """What ``fine_tune`` was called with; it changes one weight."""
    calls: list[dict[str, Any]] = []

    def fine_tune(module, ctx, **options):
        calls.append({**options, "macs": cost(module, {"image": torch.zeros(1, 1, 8, 8)}).macs})
        with torch.no_grad():
            module.classifier[4].bias += 1
        return Trained(7, 0.5, 0.75, "top1", ("stopped early",))

    monkeypatch.setattr("optkit.passes._train.tune.fine_tune", fine_tune)
    return calls


def test_every_round_prunes_a_part_and_trains(tmp_path, tuned):
    outcome = prune(tmp_path, target={"macs": 0.25}, rounds=2, fine_tune=True, multiple=1)
    assert [(each["stage"], each["share"]) for each in tuned] == [("round-0", 0.5), ("round-1", 0.5)]
    full = cost(load_module(sample("digits_cnn")), {"image": torch.zeros(1, 1, 8, 8)}).macs
    assert 0.47 < tuned[0]["macs"] / full <= 0.5 and 0.23 < tuned[1]["macs"] / full <= 0.25
    assert all(
        isinstance(each["teacher"], torch.nn.Module) and len(each["teacher"].features[0].weight) == 16 for each in tuned
    )
    bias = [load_module(each).classifier[4].bias for each in (sample("digits_cnn"), outcome.model)]
    torch.testing.assert_close(bias[1], bias[0] + 2, rtol=0, atol=0.1)  # it took over a mean, too
    assert "round 1 of 2: trained 7 steps: top1 .5 -> .75 (search)" in outcome.notes
    assert "round 2 of 2: stopped early" in outcome.notes
    assert {name: int(what.split(" -> ")[0]) for name, what in outcome.changes}.items() <= CNN.items()


@pytest.mark.parametrize(("criterion", "fitted"), [("taylor", 1), ("activation", 1), ("magnitude", 0)])
def test_with_data_the_readers_take_over_what_was_pruned(tmp_path, criterion, fitted):
    notes = prune(tmp_path, target={"macs": 0.3}, multiple=1, criterion=criterion).notes
    assert sum("took over what the pruned units gave" in note for note in notes) == fitted


def test_a_target_out_of_reach_is_refused_before_any_training(tmp_path, tuned):
    with pytest.raises(PassError, match=r"0\.2 of the MACs cannot be reached: the least is 0\.258"):
        prune(tmp_path, target={"macs": 0.2}, rounds=3, min_share=0.5, fine_tune=True)
    assert tuned == []


def test_floors_hold_over_all_rounds(tmp_path):
    found = left(prune(tmp_path, target={"macs": 0.35}, rounds=3, multiple=1, min_share=0.5, criterion="magnitude"))
    assert all(units >= 0.5 * CNN[name] for name, units in found.items())


def test_an_interrupted_run_cuts_the_same_again_and_times_nothing_twice(tmp_path, monkeypatch, tuned):
    speeds = Speeds(milliseconds).installed(monkeypatch)
    options: dict[str, Any] = {"target": {"latency": 0.6}, "fine_tune": True}
    first = prune(tmp_path, **options)
    asked = len(speeds.asked)
    import shutil

    shutil.rmtree(tmp_path / "work")
    again = prune(tmp_path, **options)
    assert len(speeds.asked) == asked > 0
    assert (again.changes, again.decisions) == (first.changes, first.decisions)
    surgery = [json.loads((each.model.path / "surgery.json").read_text()) for each in (first, again)]
    assert surgery[0] == surgery[1]


def test_reads_what_criterion_and_training_look_at():
    target = {"macs": 0.5}
    assert PruneChannels(target=target).reads() == ("calibration", "train", "search")
    assert PruneChannels(target=target, criterion="magnitude").reads() == ("train", "search")
    assert PruneChannels(target=target, criterion="bn-scale", fine_tune=False).reads() == ()
    assert PruneChannels(target={"latency": 0.5}).decides_by_time()
    assert not PruneChannels(target=target).decides_by_time()
    with pytest.raises(ValidationError, match="target"):
        PruneChannels()  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", ["pt2", "torchscript", "pickle"])
def test_exports_and_pickles_are_refused_in_the_plan(kind):
    why = PruneChannels(target={"macs": 0.5}).applies(replace(sample("digits_cnn"), kind=kind), Target())
    assert "--factory" in why
    assert PruneChannels(target={"macs": 0.5}).applies(sample("digits_cnn"), Target()) == ""


def test_a_transformer_loses_heads_and_features_and_keeps_its_width(tmp_path):
    outcome = prune(tmp_path, "reviews_transformer", target={"macs": 0.4})
    assert 0.3 < share(outcome, name="reviews_transformer") <= 0.4
    assert {what.split()[-1] for _, what in outcome.changes} >= {"heads", "features"}
    module = load_module(outcome.model)
    assert module.classifier.weight.shape == (2, 64)
    assert any(layer.attention.heads < 4 or layer.inner.out_features < 128 for layer in module.layers)
    assert any("residual: true" in reason for _, reason in outcome.skipped)


def test_a_whole_run_prunes_trains_exports_and_is_cached(tmp_path):
    data = {
        split: str(SAMPLES / "data" / f"digits_{file}.npz")
        for split, file in {"train": "calibration", "calibration": "calibration", "search": "search"}.items()
    }
    data["evaluation"] = data["search"]
    recipe = {
        "version": 1,
        "name": "prune",
        "train": {"steps": 8, "looks": 2, "device": "cpu"},
        "passes": [
            {"prune-channels": {"target": {"macs": 0.5}, "rounds": 2}},
            {"export-onnx": {"exporter": "torchscript"}},
        ],
        "limits": {"cosine": 0.5, "agreement": 0.5},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    given: dict[str, Any] = {"data": data, "factory": sample("digits_cnn").factory, "bench": False}
    given["signature"] = SIGNATURES["digits_cnn"]
    runs = [optkit.optimize(SAMPLES / "digits_cnn.safetensors", tmp_path / "recipe.yaml", **given) for _ in range(2)]
    step = runs[0].steps[0]
    assert (step.status, [run.steps[0].cached for run in runs]) == ("changed", [False, True])
    assert any(note.startswith("round 2 of 2: trained ") for note in step.notes)
    assert runs[0].result.size_bytes < 0.6 * runs[0].baseline.size_bytes
    assert runs[0].result.digest == runs[1].result.digest
