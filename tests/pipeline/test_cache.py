"""The cache: hits and misses, damage, eviction, several processes, what killed ones leave."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from optkit.errors import OutputError, UsageError
from optkit.pipeline.cache import Cache, key_of
from optkit.pipeline.optimize import optimize
from tests.pipeline import toy


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
