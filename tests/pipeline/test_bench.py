"""``optkit bench``'s work: real processes on small models, counted and never trusted for their times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from optkit.bench.facts import BenchFacts
from optkit.bench.measure import Rules
from optkit.cli.door import Ended
from optkit.errors import ModelError, OptkitError, ProviderError, UsageError
from optkit.model.manifest import Manifest
from optkit.model.model import Model
from optkit.pipeline import bench as bench_module
from optkit.pipeline.bench import Load, bench
from optkit.pipeline.candidates import About, open_entrants, share_inputs
from optkit.pipeline.optimize import optimize
from tests.helpers import normal, onnx_model

QUICK = Rules(budget_s=0.2, launches=1)
TEXT = "g (float[batch,4] x) => (float[batch,3] logits) { h = MatMul(x, w) logits = Relu(h) }"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))


def save(path: Path, text: str = TEXT) -> Path:
    onnx.save(onnx_model(text, {"w": normal(4, 3, seed=1)}), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "linear.onnx")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "x.npz", x=normal(24, 4))
    return tmp_path / "x.npz"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> BenchFacts:
    """A model against itself at two batch sizes, with everything else that can be asked for."""
    folder = tmp_path_factory.mktemp("swept")
    path = save(folder / "linear.onnx")
    np.savez(folder / "x.npz", x=normal(24, 4))
    return bench(
        [path, path],
        inputs=folder / "x.npz",
        dims={"batch": [1, 8]},
        threads=[1],
        rules=Rules(budget_s=0.2, launches=1, seed=3),
        noise_floor=True,
        load=Load(200.0, 0.1),
    )


def test_every_candidate_is_measured_at_every_point(swept: BenchFacts) -> None:
    first, second = swept.baseline, f"{swept.baseline} (2)"
    assert [(point.dims, point.threads) for point in swept.points] == [({"batch": 1}, 1), ({"batch": 8}, 1)]
    assert [[each.label for each in point.candidates] for point in swept.points] == [[first, second]] * 2
    assert [point.inputs for point in swept.points] == ["real, x float32[1,4]", "real, x float32[8,4]"]
    assert len({point.inputs_digest for point in swept.points}) == 2
    assert (swept.synthetic, Path(swept.source).name, swept.seed) == (False, "x.npz", 3)


def test_facts_of_a_candidate_are_those_of_its_file_and_process(swept: BenchFacts) -> None:
    for point in swept.points:
        for each in point.candidates:
            opened = Model.open(each.path)
            assert (each.digest, each.size_bytes, each.kind) == (opened.digest, opened.size_bytes, "onnx")
            assert (each.engine, each.provider, each.threads, each.spinning) == ("onnxruntime", "cpu", 1, True)
            assert each.placement == {"cpu": {"MatMul": 1, "Relu": 1}}
            assert each.peak_mb > 20 and each.phases.warm_up_calls >= 2
            assert each.steady.throughput * each.steady.mean_ms / 1e3 == pytest.approx(point.dims["batch"])


def test_a_model_gets_the_threads_it_wants_unless_some_were_asked_for(model: Path) -> None:
    opened = replace(Model.open(model), session={"intra_op_num_threads": "3"})
    (free,) = bench([opened], rules=QUICK).points
    assert [(each.threads, each.session) for each in free.candidates] == [(3, opened.session)]
    (asked,) = bench([opened], threads=[1], rules=QUICK).points
    assert [(each.threads, each.session) for each in asked.candidates] == [(1, {})]


def test_raw_samples_are_the_calls_that_were_counted(swept: BenchFacts) -> None:
    for each in (each for point in swept.points for each in point.candidates):
        assert sum(len(block) for block in each.samples_ms) == each.steady.calls
        assert len(each.launch_of) == len(each.samples_ms) == each.steady.blocks
        calls = [ms for block in each.samples_ms for ms in block]
        assert float(np.median(calls)) == pytest.approx(each.steady.median_ms, abs=1e-6)


def test_a_model_against_itself_has_a_ratio_with_an_interval(swept: BenchFacts) -> None:
    for point in swept.points:
        baseline, other = (each.ratio for each in point.candidates)
        assert (baseline.speedup, baseline.word) == (1.0, "same")
        assert other.low < other.speedup < other.high and other.confidence == 0.99
        assert point.noise_floor is not None and point.noise_floor.low < point.noise_floor.high


def test_the_load_is_the_one_that_was_offered(swept: BenchFacts) -> None:
    for point in swept.points:
        assert [load.label for load in point.load] == [each.label for each in point.candidates]
        assert [(load.rate, load.requests, len(load.samples_ms)) for load in point.load] == [(200.0, 20, 20)] * 2


def test_the_machine_is_recorded_as_it_was_before(swept: BenchFacts) -> None:
    here = swept.environment
    assert here.threads == 1 and here.load_average is not None and "onnxruntime" in here.packages
    assert here.physical_cores and here.affinity and here.memory_bytes


def test_one_candidate_alone_without_samples_on_made_up_inputs(model: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    facts = bench([model], rules=QUICK, samples=False, watch=lambda *told: seen.append(told))
    (point,) = facts.points
    (each,) = point.candidates
    assert (facts.synthetic, facts.source, point.dims) == (True, "", {"batch": 8})
    assert point.inputs == "synthetic, x float32[8,4]"
    assert (each.samples_ms, each.launch_of, point.load) == ((), (), ())
    assert seen[0][0].startswith("point 1/1: ") and seen[0][1:] == (0, 1)
    assert any("synthetic" in warning for warning in facts.warnings)


def test_data_yaml_beside_any_candidate_is_found(model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("data: {evaluation: {source: x.npz, batch: 5}}\n")
    (tmp_path / "elsewhere").mkdir()
    other = save(tmp_path / "elsewhere" / "linear.onnx")
    facts = bench([other, model], rules=QUICK, samples=False)
    assert facts.points[0].dims == {"batch": 5} and facts.source == str(data)


def test_a_bundle_runs_as_it_was_made(model: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    manifest = _bundle(model, bundle)
    entry = {"session.intra_op.allow_spinning": "0"}
    (bundle / "manifest.json").write_text(manifest.model_copy(update={"session": entry}).model_dump_json())
    facts = bench([model, bundle], rules=QUICK, samples=False)
    original, result = facts.points[0].candidates
    assert (original.session, original.spinning) == ({}, True)
    assert (result.session, result.spinning, result.path) == (entry, False, str(bundle / "model.onnx"))


def test_a_bundle_runs_on_the_provider_it_was_made_for_and_the_failing_one_is_named(
    model: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    manifest = _bundle(model, bundle)
    elsewhere = {**manifest.recipe, "target": {**manifest.recipe["target"], "provider": "directml"}}
    (bundle / "manifest.json").write_text(manifest.model_copy(update={"recipe": elsewhere}).model_dump_json())
    with pytest.raises(ProviderError) as told:
        bench([model, bundle], rules=QUICK)
    assert told.value.message.startswith(f"{bundle}: ") and "'directml' is not there" in told.value.message


def _bundle(model: Path, bundle: Path) -> Manifest:
    recipe = bundle.with_suffix(".yaml")
    recipe.write_text("version: 1\npasses: [quantize-dynamic]\nlimits: {cosine: 0.5, agreement: 0.1}\n")
    return optimize(model, recipe, bundle, bench=False)


def test_session_entries_go_to_those_on_onnxruntime(model: Path) -> None:
    entry = {"session.intra_op.allow_spinning": "0"}
    facts = bench([model], rules=QUICK, samples=False, about=About(session=entry))
    assert facts.points[0].candidates[0].session == entry


def test_what_was_measured_before_a_candidate_failed_is_kept(tmp_path: Path) -> None:
    text = "g (float[batch,4] x) => (float[2,2] y) { s = Constant<value_ints=[2,2]>() y = Reshape(x, s) }"
    only_one = save(tmp_path / "only_one.onnx", text)
    with pytest.raises(ModelError) as told:
        bench([only_one, f"{only_one}@cpu"], dims={"batch": [1, 3]}, rules=QUICK)
    assert "onnxruntime failed" in told.value.message and told.value.file == str(only_one)
    assert [point.dims for point in told.value.facts.points] == [{"batch": 1}]
    with pytest.raises(ModelError) as told:
        bench([only_one], dims={"batch": [3]}, rules=QUICK)
    assert told.value.facts is None


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Ended])
def test_an_interrupted_bench_shows_what_it_has(
    stop: type[BaseException], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bench_module.measure

    def interrupted(candidates: list[object], inputs: list[dict[str, object]], *rest: object, **more: object) -> object:
        if len(inputs[0]["x"]) > 1:
            raise stop
        return real(candidates, inputs, *rest, **more)

    monkeypatch.setattr(bench_module, "measure", interrupted)
    with pytest.raises(stop) as told:
        bench([model], dims={"batch": [1, 8]}, rules=QUICK)
    assert [point.dims for point in vars(told.value)["facts"].points] == [{"batch": 1}]


def test_a_warning_is_said_once_and_where_it_does_not_hold_everywhere(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        bench_module, "warnings_for", lambda point, *_: ["always", *(["large"] if point.dims["batch"] == 8 else [])]
    )
    facts = bench([model], dims={"batch": [1, 8]}, threads=[1], rules=QUICK)
    assert facts.warnings == ("always", "large (batch=8, 1 threads)")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rules": Rules(budget_s=0)}, "--budget 0 makes no sense."),
        ({"rules": Rules(budget_s=float("nan"))}, "--budget nan makes no sense."),
        ({"rules": Rules(precision=1.5)}, "--precision 1.5 makes no sense."),
        ({"rules": Rules(margin=-0.1)}, "--margin -0.1 makes no sense."),
        ({"rules": Rules(launches=0)}, "--launches 0 makes no sense."),
        ({"rules": Rules(seed=-1)}, "--seed -1 makes no sense."),
        ({"load": Load(-5)}, "--load -5 makes no sense."),
        ({"load": Load(5, 0)}, "--load-seconds 0 makes no sense."),
        ({"dims": {"sequence": [1]}}, "The dimension 'sequence' does not exist."),
        ({"threads": [0]}, "0 is no number for threads."),
        ({"data": ["calibration=x.npz"]}, "Models are measured on evaluation data."),
        ({"data": ["x.npz"], "inputs": Path("x.npz")}, "--input and --data both say what to run on."),
        ({"about": About(factory="a.py:f")}, "--factory is for none of these models."),
    ],
)
def test_arguments_that_make_no_sense_are_refused(model: Path, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as told:
        bench([model], **wrong)
    assert told.value.message == message and told.value.expected and told.value.fix


@pytest.mark.parametrize(
    ("models", "kind", "message"),
    [
        ([], UsageError, "There is no model to measure."),
        (["nothing.onnx"], ModelError, "There is no such model."),
        (["{model}", "{model}@opnvino"], UsageError, "There is no engine 'opnvino'"),
        (["{model}", "{other}"], ModelError, "{other} does not take the inputs of the baseline {model}."),
        (["{model}@compile"], UsageError, "{model}@compile: The engine torch-compile does not run linear.onnx"),
    ],
)
def test_models_that_do_not_fit_are_named(
    model: Path, tmp_path: Path, models: list[str], kind: type[OptkitError], message: str
) -> None:
    names = {"model": model, "other": save(tmp_path / "other.onnx", TEXT.replace("x", "z"))}
    with pytest.raises(kind) as told:
        bench([each.format(**names) for each in models], rules=QUICK)
    assert message.format(**names) in told.value.message


def test_options_go_to_the_models_that_need_them(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"weight": normal(3, 4)}, tmp_path / "linear.safetensors")
    (tmp_path / "build.py").write_text("import torch\ndef linear(): return torch.nn.Linear(4, 3, bias=False)\n")
    paths = [tmp_path / "linear.safetensors", save(tmp_path / "linear.onnx")]
    entrants = share_inputs(open_entrants(paths, About(factory=f"{tmp_path / 'build.py'}:linear", provider="cuda")))
    assert [each.model.kind for each in entrants] == ["weights", "onnx"]
    assert [each.candidate.target.provider for each in entrants] == ["cpu", "cuda"]
    assert [str(each.model.signature.inputs[0]) for each in entrants] == ["x=float32[batch,4]"] * 2


@pytest.mark.parametrize(
    ("suffix", "provider", "engine", "precision"),
    [
        ("", "cuda", "", None),
        ("@cpu", "cpu", "onnxruntime", None),
        ("@openvino:bf16", "cpu", "openvino", "bf16"),
    ],
)
def test_engines_and_providers(model: Path, suffix: str, provider: str, engine: str, precision: str | None) -> None:
    found = open_entrants([f"{model}{suffix}", model], About(provider="cuda"))[0]
    target = found.candidate.target
    assert (target.provider, target.engine, found.label) == (provider, engine, f"{model}{suffix}")
    assert found.candidate.session.get("openvino.INFERENCE_PRECISION_HINT") == precision
