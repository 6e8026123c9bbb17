"""``optkit cache``."""

from __future__ import annotations

from pathlib import Path

import pytest

from optkit.pipeline.cache import Cache
from tests.command import assert_refused, call


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))
    cache = Cache.default()
    cache.put_facts("a1" * 32, {"x": 1}, "verdict")
    cache.put_facts("b2" * 32, {"x": 2}, "timing of quantize-dynamic")
    return cache


def test_ls(cache: Cache) -> None:
    told = call("cache", "ls")
    assert told.code == 0
    for words in ("a1a1a1a1a1a1", "timing of quantize-dynamic", "2 entries", str(cache.root)[:40]):
        assert words in told.out
    facts = call("cache", "ls", "--json").body["result"]
    assert facts["root"] == str(cache.root) and facts["cap_bytes"] == 20 * 10**9
    assert {entry["what"] for entry in facts["entries"]} == {"verdict", "timing of quantize-dynamic"}


def test_ls_of_a_cache_that_is_not_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "none"))
    told = call("cache", "ls")
    assert told.code == 0 and "0 entries" in told.out
    assert not (tmp_path / "none").exists()


def test_rm_by_the_beginning_of_a_key_and_all(cache: Cache) -> None:
    told = call("cache", "rm", "a1a1")
    assert told.code == 0 and "Removed 1 entries" in told.out
    assert [entry.key[:2] for entry in cache.entries()] == ["b2"]
    assert call("cache", "rm", "--all", "--json").body["result"]["removed"][0]["key"] == "b2" * 32
    assert cache.entries() == []


@pytest.mark.parametrize("argv", [(), ("a1", "--all")])
def test_rm_needs_either_keys_or_all(cache: Cache, argv: tuple[str, ...]) -> None:
    assert_refused(call("cache", "rm", *argv), 2, "keys, or --all", fix="optkit cache rm --all")
    assert len(cache.entries()) == 2


def test_the_cap_comes_from_the_environment(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTKIT_CACHE_SIZE", "1.5")
    assert call("cache", "ls", "--json").body["result"]["cap_bytes"] == 1_500_000_000


def test_rm_of_an_empty_key_removes_nothing(cache: Cache) -> None:
    assert_refused(call("cache", "rm", ""), 2, "beginnings of keys", fix="optkit cache rm --all")
    assert len(cache.entries()) == 2
