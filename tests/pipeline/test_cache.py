"""The cache: hits and misses, what a key depends on, damage, eviction, several processes, what killed ones leave."""

from __future__ import annotations

import errno
import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from optkit.data.spec import DataSource
from optkit.errors import OutputError, PassError, UsageError
from optkit.evaluate.limits import Limits
from optkit.model.machine import machine
from optkit.model.manifest import Manifest
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.pipeline import optimize as optimize_module
from optkit.pipeline.cache import Cache, key_of
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


def put(cache: Cache, key: str, content: bytes = b"abc", *, age: float = 0.0) -> Path:
    with cache.workdir() as work:
        (work / "made").mkdir()
        (work / "made" / "file").write_bytes(content)
        folder = cache.put(key, work / "made", "thing")
    if age:
        os.utime(folder / "entry.json", (time.time() - age,) * 2)
    return folder


def calls(file: Path) -> int:
    return len(file.read_text()) if file.exists() else 0


def test_what_was_put_is_got_and_nothing_else(cache: Cache) -> None:
    assert cache.get("aa11") is None
    folder = put(cache, "aa11")
    assert cache.get("aa11") == folder
    assert (folder / "file").read_bytes() == b"abc"
    assert cache.get("aa12") is None
    (entry,) = cache.entries()
    assert (entry.key, entry.what, entry.size_bytes) == ("aa11", "thing", 3)
    assert list((cache.root / "work").iterdir()) == []


def test_facts_come_back_as_they_were_with_numbers_that_are_not_finite(cache: Cache) -> None:
    cache.put_facts("f0", {"a": [1, 2.5, None], "b": float("inf"), "c": float("nan")}, "facts")
    got = cache.get_facts("f0")
    assert (got["a"], got["b"], str(got["c"])) == ([1, 2.5, None], float("inf"), "nan")
    cache.put_facts("f0", "new", "facts")
    assert cache.get_facts("f0") == "new"
    assert cache.get_facts("f1") is None


def test_a_key_does_not_depend_on_the_order_of_facts() -> None:
    assert key_of({"a": 1, "b": (2, Path("x"))}) == key_of({"b": (2, Path("x")), "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "entry-gone", "entry-list", "entry-half", "digests"])
def test_a_damaged_entry_is_found_out_and_put_anew(cache: Cache, damage: str) -> None:
    folder = put(cache, "aa11", b"abcdef")
    entry = folder / "entry.json"
    if damage in ("flip", "truncate"):
        (folder / "file").write_bytes(b"abcdeX" if damage == "flip" else b"abc")
    elif damage == "delete":
        (folder / "file").unlink()
    elif damage == "entry-gone":
        entry.unlink()
    else:
        texts = {"entry-list": "[]", "entry-half": entry.read_text()[:20], "digests": '{"digests": [1]}'}
        entry.write_text(texts[damage])
    assert cache.get("aa11") is None
    assert put(cache, "aa11") == folder
    assert cache.get("aa11") == folder


def test_the_least_recently_used_go_first_beyond_the_cap(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", cap_bytes=100)
    for key, age in (("a0", 4000), ("b0", 3000), ("c0", 2000)):
        put(cache, key, b"x" * 40, age=age)
    assert [entry.key for entry in cache.entries()] == ["c0", "b0"]
    cache.get("b0")
    os.utime(cache.get("c0") / "entry.json", (time.time() - 2000,) * 2)  # type: ignore[operator]
    put(cache, "d0", b"x" * 40)
    assert [entry.key for entry in cache.entries()] == ["d0", "b0"]


def test_what_is_in_use_stays_even_beyond_the_cap(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", cap_bytes=10)
    put(cache, "a0", b"x" * 40)
    put(cache, "b0", b"x" * 40)
    assert {entry.key for entry in cache.entries()} == {"a0", "b0"}


def test_what_a_run_of_hours_used_stays_until_it_ends(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", cap_bytes=10)
    hour = 3600.0
    with cache.running():
        (marker,) = (cache.root / "work").glob(f"{os.getpid()}-run-*")
        os.utime(marker, (time.time() - 3 * hour,) * 2)
        put(cache, "a0", b"x" * 40, age=2 * hour)
        put(cache, "b0", b"x" * 40, age=4 * hour)
        put(cache, "c0", b"x" * 40)
        assert {entry.key for entry in cache.entries()} == {"a0", "c0"}
    put(cache, "d0", b"x" * 40)
    assert {entry.key for entry in cache.entries()} == {"c0", "d0"}


def test_entries_are_removed_by_the_beginning_of_their_key(cache: Cache) -> None:
    for key in ("aa11", "aa22", "bb33"):
        put(cache, key)
    assert [entry.key for entry in cache.remove(["aa1"])] == ["aa11"]
    assert {entry.key for entry in cache.remove()} == {"aa22", "bb33"}
    assert cache.entries() == []


def test_what_killed_processes_left_is_swept_and_what_living_ones_have_is_not(cache: Cache) -> None:
    dead = subprocess.check_output([sys.executable, "-c", "import os; print(os.getpid())"], text=True).strip()
    work = cache.root / "work"
    for name in (f"{dead}-abc", f"{os.getppid()}-abc"):
        (work / name / "made").mkdir(parents=True)
    with cache.workdir() as mine:
        assert {folder.name for folder in work.iterdir()} == {f"{os.getppid()}-abc", mine.name}


@pytest.mark.parametrize("place", ["file", "below-file"])
def test_a_cache_that_cannot_be_is_one_sentence(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / ("" if place == "file" else "inside")
    monkeypatch.setenv("OPTKIT_CACHE", str(root))
    model = toy.write_model(tmp_path / "m.onnx")
    with pytest.raises(OutputError, match="cannot be written") as error:
        optimize(model, toy.ScaleBy(), bench=False)
    assert "OPTKIT_CACHE" in error.value.fix
    assert error.value.exit_code == 3


def test_a_cache_without_rights_is_one_sentence(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", denied)
    for work in (cache.workdir(), cache.lock("a0"), cache.running()):
        with pytest.raises(OutputError, match="cannot be written: Permission denied") as error, work:
            pass
        assert "OPTKIT_CACHE" in error.value.fix


def test_the_size_from_the_environment_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTKIT_CACHE_SIZE", "0.5")
    assert Cache.default().cap_bytes == 500_000_000
    monkeypatch.setenv("OPTKIT_CACHE_SIZE", "much")
    with pytest.raises(UsageError, match="OPTKIT_CACHE_SIZE=much is no number"):
        Cache.default()


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
    plain = [m.model_dump(exclude={"created": True, "steps": {"__all__": {"cached"}}}) for m in (first, again)]
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


def _put_many(root: str, start: Any) -> None:
    cache = Cache(Path(root))
    start.wait()
    for _ in range(40):
        cache.put_facts("c0ffee", {"a": list(range(1000))}, "facts")
        known = cache.get_facts("c0ffee")
        assert known is None or known["a"][-1] == 999


def test_two_processes_may_put_one_key_without_a_lock(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Barrier(2)
    workers = [spawn.Process(target=_put_many, args=(str(tmp_path / "cache"), start)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    cache = Cache(tmp_path / "cache")
    assert json.dumps(cache.get_facts("c0ffee")["a"]) == json.dumps(list(range(1000)))
    assert list((cache.root / "work").iterdir()) == []


def test_who_finds_a_damaged_entry_does_not_remove_the_sound_one_that_comes_meanwhile(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put(cache, "aa11", b"abc")
    (folder / "file").write_bytes(b"abX")

    def late(found: Path) -> bool:
        """Another process puts the key while this one has just found out."""
        put(cache, "aa11", b"sound")
        return False

    with monkeypatch.context() as patch:
        patch.setattr("optkit.pipeline.cache._whole", late)
        assert cache.get("aa11") is None
    assert cache.get("aa11") == folder
    assert (folder / "file").read_bytes() == b"sound"


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


def test_a_cached_verdict_names_the_data_of_this_run(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    first = optimize_module.final_verdict(job, job.original, frozenset())
    moved = replace(job.splits["evaluation"], source="moved.npz")  # type: ignore[type-var]
    monkeyed = replace(job, splits={**job.splits, "evaluation": moved})
    second = optimize_module.final_verdict(monkeyed, job.original, frozenset())
    assert first.measured_on.source == "memory"
    assert second.measured_on == first.measured_on.model_copy(update={"source": "moved.npz"})


@pytest.mark.parametrize("key", ["", "  "])
def test_an_empty_key_removes_nothing(cache: Cache, key: str) -> None:
    put(cache, "aa11")
    with pytest.raises(UsageError, match="An empty key would remove everything"):
        cache.remove(["aa", key])
    assert [entry.key for entry in cache.entries()] == ["aa11"]


def test_an_entry_that_cannot_be_read_just_now_stays(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(cache, "aa11")

    def too_many(files: list[Path]) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("optkit.pipeline.cache.sha256_files", too_many)
        assert cache.get("aa11") is None
    assert cache.get("aa11") == folder


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_an_entry_is_got_where_its_use_cannot_be_noted(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder = put(cache, "aa11")

    def refuse(path: Path) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr("optkit.pipeline.cache.os.utime", refuse)
    assert cache.get("aa11") == folder


def test_who_waits_for_another_process_says_so(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("optkit.pipeline.cache.WAIT_S", 0.05)
    with cache.lock("free"):
        assert capsys.readouterr().err == ""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with cache.lock("taken"):
            held.set()
            done.wait(0.4)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with cache.lock("taken"):
        assert capsys.readouterr().err == "another optkit works on this; waiting\n"
    done.set()
    thread.join()
