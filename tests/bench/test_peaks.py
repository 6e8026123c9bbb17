"""Limits of the machine: their order and their use; how large they are is the machine's business."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from optkit.bench import peaks as module
from optkit.bench.peaks import bandwidth, falling, fastest, largest_copy, measure_peaks
from optkit.bench.profile_facts import CopyRate, Peaks


def test_a_small_real_measurement(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "TRY_S", 0.0)
    monkeypatch.setattr(module, "ROUNDS", 1)
    monkeypatch.setattr(module, "SHAPES", ((8, 16, 24),))
    monkeypatch.setattr(module, "COPIES", (2**12, 2**14))
    monkeypatch.setattr(module, "largest_copy", lambda: 2**16)
    found = measure_peaks(2)
    assert found.threads == 2 and found.fp32_gflops > 0 and found.int8_gops > 0
    assert [copy.bytes for copy in found.copies] == [2**12, 2**14, 2**16]
    rates = [copy.gb_s for copy in found.copies]
    assert rates == sorted(rates, reverse=True) and rates[-1] > 0


def test_copies_of_less_are_no_slower():
    assert falling([5.0, 9.0, 2.0, 3.0]) == [9.0, 9.0, 3.0, 3.0]


def test_the_fastest_of_at_least_three_calls(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    durations = iter([5.0, 2.0, 3.0, 1.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    assert fastest(lambda: now.__setitem__(0, now[0] + next(durations)), seconds=0.5) == 2.0


def test_bytes_move_at_the_rate_of_the_smallest_copy_that_holds_them():
    copies = tuple(CopyRate(bytes=size, gb_s=rate) for size, rate in ((100, 8.0), (1000, 4.0), (10_000, 2.0)))
    limits = Peaks(threads=1, fp32_gflops=1.0, int8_gops=1.0, copies=copies)
    assert [bandwidth(limits, size) / 1e9 for size in (0, 100, 101, 9999, 10**9)] == [8.0, 8.0, 4.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("cache", "memory", "expected"), [(2**20, 2**40, 2**29), (2**30, 2**40, 2**31), (2**30, 2**33, 2**30)]
)
def test_the_largest_copy_is_beyond_the_caches_but_not_beyond_the_memory(
    cache: int, memory: int, expected: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "cache_bytes", lambda: cache)
    monkeypatch.setattr("optkit.model.machine.machine", lambda: SimpleNamespace(memory_bytes=memory))
    assert largest_copy() == expected


def test_sizes_of_caches_as_linux_writes_them(tmp_path: Path):
    for index, text in enumerate(("48K\n", "2048K\n", "480M\n")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(text)
    assert module.cache_bytes(tmp_path) == 480 * 2**20
    assert module.cache_bytes(tmp_path / "nothing") == 0
