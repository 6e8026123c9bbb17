from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optkit.model import machine as room
from optkit.model.machine import Machine, differences, fingerprint, machine, ort_version, usable_threads
from optkit.model.manifest import Environment
from optkit.model.target import Target

BOX = Machine("a", "x86_64", ("avx2", "avx512_vnni"), 8, 16, 16, None, 2**34)


def test_this_machine_is_described() -> None:
    here = machine()
    assert here.cpu
    assert 1 <= here.usable_threads <= here.affinity <= here.logical_cores
    assert here.memory_bytes > 2**28
    assert usable_threads() == here.usable_threads
    assert set(here.features) <= set(room.FEATURES)


@pytest.mark.parametrize(
    ("affinity", "limit", "threads"),
    [(16, None, 8), (3, None, 3), (16, 2.5, 2), (16, 0.5, 1), (1, 4.0, 1)],
)
def test_usable_threads_is_the_tightest_bound_and_at_least_one(
    affinity: int, limit: float | None, threads: int
) -> None:
    assert replace(BOX, affinity=affinity, cpu_limit=limit).usable_threads == threads


def test_int8_and_bf16_instructions_are_known_by_their_flags() -> None:
    assert BOX.has_vnni and not BOX.has_bf16 and BOX.is_x86
    arm = replace(BOX, arch="aarch64", features=("asimd", "asimddp", "bf16"))
    assert arm.has_vnni and arm.has_bf16 and not arm.is_x86
    assert not replace(BOX, features=("avx2",)).has_vnni


CPUINFO = """processor\t: 0
model name\t: Some CPU @ 2 GHz
flags\t\t: fpu avx2 avx512_vnni amx_int8

processor\t: 1
model name\t: Another
"""


def test_processor_from_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    monkeypatch.setattr(room, "_CPUINFO", tmp_path / "cpuinfo")
    assert room._processor() == ("Some CPU @ 2 GHz", frozenset({"fpu", "avx2", "avx512_vnni", "amx_int8"}))


def test_processor_without_cpuinfo_is_asked_of_archspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_CPUINFO", tmp_path / "none")
    name, flags = room._processor()
    assert name and flags


def cgroups(folder: Path, monkeypatch: pytest.MonkeyPatch, own: str, files: dict[str, str]) -> None:
    (folder / "own").write_text(own)
    for name, text in files.items():
        file = folder / "fs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(room, "_OWN_CGROUPS", folder / "own")
    monkeypatch.setattr(room, "_CGROUPS", folder / "fs")


def test_cgroup_v2_limits_come_from_the_tightest_ancestor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "a/b/cpu.max": "max 100000\n",
        "a/cpu.max": "150000 100000\n",
        "a/b/memory.max": "max\n",
        "a/memory.max": "1048576\n",
        "memory.max": "4194304\n",
    }
    cgroups(tmp_path, monkeypatch, "0::/a/b\n", files)
    assert room._cpu_limit() == 1.5
    assert room._memory_limit() == 1048576


def test_cgroup_v1_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "cpu/x/cpu.cfs_quota_us": "200000\n",
        "cpu/x/cpu.cfs_period_us": "100000\n",
        "cpu/cpu.cfs_quota_us": "-1\n",
        "cpu/cpu.cfs_period_us": "100000\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/x/memory.limit_in_bytes": "2097152\n",
    }
    cgroups(tmp_path, monkeypatch, "4:memory:/x\n2:cpu,cpuacct:/x\n0::/\n", files)
    assert room._cpu_limit() == 2.0
    assert room._memory_limit() == 2097152


def test_a_container_that_sees_only_its_root_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroups(tmp_path, monkeypatch, "0::/../outside\n", {"cpu.max": "300000 100000\n"})
    assert room._cpu_limit() == 3.0


def test_no_cgroups_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroups(tmp_path, monkeypatch, "0::/\n", {})
    assert room._cpu_limit() is None
    assert room._memory_limit() is None


def test_gpus_are_read_from_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "0000:01").mkdir()
    (tmp_path / "0000:01" / "information").write_text("Model: \t NVIDIA H200\nIRQ: 1\n")
    monkeypatch.setattr(room, "_NVIDIA", tmp_path)
    assert list(room._nvidia_models()) == ["NVIDIA H200"]


def test_fingerprint_follows_what_timings_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    base = fingerprint(Target(threads=1, shapes={"batch": 8}))
    assert base == fingerprint(Target(threads=1, shapes={"batch": 8}))
    others = [
        fingerprint(Target(threads=2, shapes={"batch": 8})),
        fingerprint(Target(threads=1, shapes={"batch": 1})),
        fingerprint(Target("cuda", threads=1, shapes={"batch": 8})),
        fingerprint(Target(shapes={"batch": 8})),
    ]
    monkeypatch.setattr(room, "machine", lambda: BOX)
    others.append(fingerprint(Target(threads=1, shapes={"batch": 8})))
    assert len({base, *others}) == 6
    assert len(base) == 64


THERE = Environment(
    optkit="0", python="3", platform="l", cpu="A", cpu_features=("avx2", "avx512_vnni"), cores=8, threads=4,
    provider="cpu", packages={"onnxruntime": "1.31.1", "numpy": "2"}, physical_cores=4, affinity=8,
)  # fmt: skip


def test_a_machine_does_not_differ_from_itself_whatever_does_not_matter() -> None:
    assert differences(THERE, THERE) == []
    other = {"optkit": "1", "python": "4", "platform": "m", "load_average": 3.0, "threads": 1, "memory_bytes": 5}
    assert differences(THERE, THERE.model_copy(update=other)) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"cpu": "B"}, ("A", "B")),
        ({"cpu_features": ("avx2", "avx512_bf16")}, ("avx512_vnni, no avx512_bf16", "avx512_bf16, no avx512_vnni")),
        ({"physical_cores": 2}, ("4 physical cores", "2 physical cores")),
        ({"affinity": 1}, ("8 usable cores", "1 usable core")),
        ({"cpu_limit": 1.5}, ("no cgroup limit", "a cgroup limit of 1.5")),
        ({"packages": {"onnxruntime": "1.30.0"}}, ("onnxruntime 1.31.1", "onnxruntime 1.30.0")),
        ({"provider": "cuda"}, ("provider cpu", "provider cuda")),
        ({"gpus": ("H200",)}, ("no GPU", "H200")),
    ],
)
def test_what_differs_is_told_of_both(change: dict[str, Any], told: tuple[str, str]) -> None:
    other = THERE.model_copy(update=change)
    assert differences(THERE, other) == [told]
    assert differences(other, THERE) == [told[::-1]]


def test_what_an_older_manifest_does_not_know_is_no_difference() -> None:
    old = THERE.model_copy(update={"physical_cores": None, "affinity": None, "packages": {}})
    assert differences(old, THERE.model_copy(update={"cpu_limit": 2.0})) == []


def test_ort_version_names_the_distribution_without_importing_it() -> None:
    code = (
        "import sys; from optkit.model.machine import ort_version as v; print(v()); print('onnxruntime' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    assert found[:2] == [ort_version(), "False"]
    assert found[0].startswith("onnxruntime")
