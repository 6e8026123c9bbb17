"""What is made once: what a step's key depends on, what a second run uses again, two runs at once."""

from __future__ import annotations

import importlib.util
import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from optkit.data.spec import DataSource
from optkit.errors import PassError
from optkit.evaluate.limits import Limits
from optkit.model.machine import machine
from optkit.model.manifest import Manifest
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.passes.quantize_dynamic import QuantizeDynamic
from optkit.pipeline import optimize as optimize_module
from optkit.pipeline.cache import Cache
from optkit.pipeline.job import Job, outputs_key
from optkit.pipeline.make import make, step_key
from optkit.pipeline.optimize import optimize
from optkit.pipeline.steps import Policy, run_steps
from optkit.pipeline.stopwatch import COARSE
from optkit.recipe.recipe import Step
from tests.helpers import MemoryData, onnx_model
from tests.pipeline import toy
from tests.pipeline.toy import arrays, make_job
from tests.timing import Stopwatch


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


APART: Any = {"created": True, "environment": {"load_average"}, "steps": {"__all__": {"cached"}}}
"""What two runs of the same may differ in."""


def calls(file: Path) -> int:
    return len(file.read_text()) if file.exists() else 0


# What a step's key depends on


def key(job: Job, pass_: toy.Toy | None = None, before: Model | None = None) -> str:
    return step_key(job, pass_ or toy.ScaleBy(), before or job.original)


def test_the_key_changes_with_the_model_and_not_with_its_name(tmp_path: Path) -> None:
    one, other = make_job(tmp_path / "a"), make_job(tmp_path / "b")
    assert key(one) == key(other)
    changed = Model.open(toy.write_model(tmp_path / "c" / "m.onnx", factor=1.0001))
    assert key(make_job(tmp_path / "c", changed)) != key(one)
    assert key(one, before=changed) != key(one)


def test_the_key_changes_with_external_data(tmp_path: Path) -> None:
    proto = onnx_model(toy.TEXT, toy.WEIGHTS)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    first = key(make_job(tmp_path, Model.open(tmp_path / "m.onnx")))
    data = bytearray((tmp_path / "m.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "m.data").write_bytes(data)
    assert key(make_job(tmp_path, Model.open(tmp_path / "m.onnx"))) != first


def test_the_key_changes_with_config_seed_session_and_original(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    keys = [
        key(job),
        key(job, toy.ScaleBy(factor=2)),
        key(job, toy.Aside()),
        key(replace(job, seed=1)),
        key(job, before=replace(job.original, session={"a": "1"})),
        key(replace(job, original=Model.open(toy.write_model(tmp_path / "o.onnx", factor=3))), before=job.original),
    ]
    assert len(set(keys)) == len(keys)


def test_the_key_changes_with_the_data_that_are_read_and_with_no_others(tmp_path: Path) -> None:
    job = make_job(tmp_path)

    def with_split(name: str, seed: int) -> Job:
        return replace(job, splits={**job.splits, name: MemoryData(name, arrays(8, seed))})

    assert key(with_split("evaluation", 1)) == key(with_split("evaluation", 2)) == key(job)
    one, two = (key(with_split("calibration", seed), toy.Calibrated()) for seed in (1, 2))
    assert one != two


METRIC = """
import numpy as np


class Zeros:
    unit, better = "", "higher"

    def per_sample(self, inputs, outputs, labels):
        return np.zeros(len(labels))
"""


def test_where_a_pass_judges_the_key_changes_with_limits_metric_its_code_and_what_it_is_fitted_on(
    tmp_path: Path,
) -> None:
    source = tmp_path / "own.py"
    source.write_text(METRIC)
    fits = [MemoryData("fit", arrays(8, seed)) for seed in (1, 2)]
    job = replace(make_job(tmp_path), metric=f"{source}:Zeros", metric_code=True)
    repairs = QuantizeDynamic(repair=True)
    jobs = [
        job,
        replace(job, metric="top1"),
        replace(job, limits=Limits(cosine=0.9)),
        *(replace(job, splits={**job.splits, "fit": fit}) for fit in fits),
    ]
    keys = [step_key(each, repairs, job.original) for each in jobs]
    source.write_text(METRIC.replace("zeros", "ones"))
    keys.append(step_key(job, repairs, job.original))
    assert len(set(keys)) == len(keys)
    assert len({step_key(each, QuantizeDynamic(), job.original) for each in jobs}) == 1


def test_the_key_changes_with_the_provider_only_where_the_pass_says_so(tmp_path: Path) -> None:
    cpu = make_job(tmp_path)
    cuda = replace(cpu, target=Target("cuda", 1))
    assert key(cpu, toy.ForTarget()) != key(cuda, toy.ForTarget())
    assert key(cpu) == key(cuda)


def test_a_pass_must_declare_the_splits_it_reads(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    with pytest.raises(PassError, match="The pass 'p' reads the split 'evaluation' without having declared it"):
        make(job, toy.Peeks(), job.original, label="p")
    with pytest.raises(PassError, match="The pass 'p' reads the split 'search' without having declared it"):
        make(job, toy.PeeksByJudging(), job.original, label="p")


PLUGIN = """
from tests.pipeline.toy import ScaleBy
{helper}
class Plugin(ScaleBy):
    '''A pass of somebody else.'''
"""


def load_plugin(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module.Plugin


def test_an_edited_plugin_is_another_pass(tmp_path: Path) -> None:
    job, file = make_job(tmp_path), tmp_path / "plugin_x" / "my_plugin.py"
    file.parent.mkdir()
    file.write_text(PLUGIN.format(helper=""))
    plugin = load_plugin(file)
    keys = [key(job, plugin())]
    assert key(job, plugin()) == keys[0]
    file.write_text(PLUGIN.format(helper="FACTOR = 2"))
    keys.append(key(job, plugin()))
    (file.parent / "_helper.py").write_text("FACTOR = 3")
    keys.append(key(job, plugin()))
    assert len(set(keys)) == 3


def test_a_pass_without_a_file_is_never_served_to_another_process(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    space: dict[str, Any] = {"ScaleBy": toy.ScaleBy, "__name__": "typed_in"}
    exec("class Typed(ScaleBy):\n    '''Typed into a notebook.'''", space)
    first = space["Typed"]
    exec("class Typed(ScaleBy):\n    '''Typed into a notebook.'''", space)
    assert key(job, first()) == key(job, first())
    assert key(job, first()) != key(job, space["Typed"]())
    assert make(job, first(), job.original, label="typed").model is not None


def test_outputs_depend_on_optkit_the_processor_and_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path)
    data = job.splits["evaluation"]
    keys = {outputs_key(job, job.original, data)}
    keys.add(outputs_key(job, replace(job.original, session={"session.x": "1"}), data))
    monkeypatch.setattr("optkit.pipeline.job.__version__", "0.0.0")
    keys.add(outputs_key(job, job.original, data))
    other = replace(machine(), features=("none",))
    monkeypatch.setattr("optkit.model.machine.machine", lambda: other)
    keys.add(outputs_key(job, job.original, data))
    assert len(keys) == 4


# Nothing is computed twice


def manifest_of(model: Path, counter: Path, folder: Path, **more: Any) -> Manifest:
    np.savez(folder / "e.npz", **arrays(40))
    data = {"evaluation": DataSource(source=str(folder / "e.npz"))}
    passes = [toy.ScaleBy(calls=str(counter)), toy.Nothing()]
    return optimize(model, passes, data=data, **{"bench": False, **more})


def test_a_second_run_calls_no_pass_and_gives_the_same_verdict(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, counter = toy.write_model(tmp_path / "m.onnx"), tmp_path / "calls"
    first = manifest_of(model, counter, tmp_path, cache=cache)
    assert calls(counter) == 1

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("computed twice")

    monkeypatch.setattr("optkit.pipeline.reference.open_runner", never)
    monkeypatch.setattr("optkit.pipeline.context.open_runner", never)
    monkeypatch.setattr("optkit.pipeline.contract.open_runner", never)
    again = manifest_of(model, counter, tmp_path, cache=cache)
    assert calls(counter) == 1
    assert again.verdict == first.verdict
    assert [step.cached for step in again.steps] == [True, True]
    plain = [m.model_dump(exclude=APART) for m in (first, again)]
    assert plain[0] == plain[1]


def test_the_verdict_on_equal_outputs_survives_the_cache(tmp_path: Path, cache: Cache) -> None:
    model, pass_ = toy.write_model(tmp_path / "m.onnx"), toy.Session(entries={"session.intra_op.allow_spinning": "0"})
    runs = [optimize(model, pass_, cache=cache, bench=False) for _ in range(2)]
    assert runs[0].verdict == runs[1].verdict
    assert runs[1].verdict.outputs[0].sqnr_db == float("inf")


def test_a_damaged_result_is_made_again(tmp_path: Path, cache: Cache) -> None:
    model, counter = toy.write_model(tmp_path / "m.onnx"), tmp_path / "calls"
    first = manifest_of(model, counter, tmp_path, cache=cache)
    made = Path(first.result.path)
    made.write_bytes(made.read_bytes()[:-7])
    again = manifest_of(model, counter, tmp_path, cache=cache)
    assert calls(counter) == 2
    assert again.result.digest == first.result.digest
    assert again.verdict == first.verdict


def test_a_change_of_limits_computes_no_pass_again_but_judges_again(tmp_path: Path, cache: Cache) -> None:
    model, counter = toy.write_model(tmp_path / "m.onnx"), tmp_path / "calls"
    manifest_of(model, counter, tmp_path, cache=cache)
    other = manifest_of(model, counter, tmp_path, cache=cache, limits=Limits(cosine=0.5))
    assert calls(counter) == 1
    assert next(limit.limit for limit in other.verdict.limits if limit.name == "cosine") == ">= 0.5"


def test_reported_timings_are_never_reused(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    model, counter = toy.write_model(tmp_path / "m.onnx"), tmp_path / "calls"
    watch = Stopwatch(1.5, 2.0, 3.0, 4.0).installed(monkeypatch)
    found = [manifest_of(model, counter, tmp_path, cache=cache, bench=True) for _ in range(2)]
    assert [each.timing and each.timing.result.speedup for each in found] == [2.0, 3.0]
    assert [each.steps[0].speedup and each.steps[0].speedup.speedup for each in found] == [1.5, 1.5]
    assert [each.steps[0].timing_note for each in found] == ["", "timed in an earlier run on this machine"]
    assert [rules == COARSE for rules in watch.rules] == [True, False, False]


def test_a_cached_verdict_names_the_data_of_this_run(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    first = optimize_module.final_verdict(job, job.original, frozenset())
    moved = replace(job.splits["evaluation"], source="moved.npz")  # type: ignore[type-var]
    monkeyed = replace(job, splits={**job.splits, "evaluation": moved})
    second = optimize_module.final_verdict(monkeyed, job.original, frozenset())
    assert first.measured_on.source == "memory"
    assert second.measured_on == first.measured_on.model_copy(update={"source": "moved.npz"})


# Several processes


def _work(folder: str, start: Any, answers: Any) -> None:
    job = make_job(Path(folder), Model.open(Path(folder) / "m.onnx"))
    start.wait()
    (done,) = run_steps(job, [Step(id="s", options=toy.ScaleBy(calls=f"{folder}/calls"))], Policy(bench=False))
    answers.put((done.record.cached, done.after.digest))


def test_two_processes_at_once_make_one_sound_entry(tmp_path: Path) -> None:
    toy.write_model(tmp_path / "m.onnx")
    spawn = multiprocessing.get_context("spawn")
    start, answers = spawn.Barrier(2), spawn.Queue()
    workers = [spawn.Process(target=_work, args=(str(tmp_path), start, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    got = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert sorted(cached for cached, _ in got) == [False, True]
    assert len({digest for _, digest in got}) == 1
    assert calls(tmp_path / "calls") == 1
    cache = Cache(tmp_path / "cache")
    assert [entry.what for entry in cache.entries()].count("s") == 1
    assert all(cache.get(entry.key) is not None for entry in cache.entries())
    assert list((cache.root / "work").iterdir()) == []


def test_what_would_come_out_otherwise_in_a_better_moment_is_made_again(tmp_path: Path) -> None:
    job, file = make_job(tmp_path), tmp_path / "calls"
    made = [make(job, toy.ForNow(calls=str(file)), job.original, label="s") for _ in range(2)]
    assert [each.cached for each in made] == [False, False]
    assert calls(file) == 2
    assert made[0].model is not None and made[0].model.path.is_file(), "a run goes on with it all the same"
