"""What is there, what is missing, what is wrong, and the cure."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from pathlib import Path

import pytest

from optkit.errors import PackageError
from optkit.model.machine import Machine
from optkit.pipeline import doctor
from optkit.pipeline.cache import Cache
from optkit.pipeline.doctor import examine, features, package_problems
from optkit.report.doctor import diagnosis_tables


def machine_with(*flags: str, arch: str = "x86_64", gpus: tuple[str, ...] = ()) -> Machine:
    return Machine("a processor", arch, flags, 4, 8, 8, None, 16 * 10**9, gpus)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))


def test_versions_machine_and_providers() -> None:
    found = examine()
    assert (found.python, found.platform) == (platform.python_version(), platform.platform())
    assert found.packages["onnx"] == metadata.version("onnx")
    assert "cpu" in found.providers
    assert 1 <= found.processor.threads <= found.processor.logical_cores
    assert found.processor.memory_available_bytes <= found.processor.memory_bytes


def test_features_say_what_follows() -> None:
    told = {each.name: each for each in features(machine_with("avx2", "avx512f", "avx512_vnni"))}
    assert told["VNNI"].present and "U8 activations" in told["VNNI"].follows
    assert not told["BF16"].present and "saves memory" in told["BF16"].follows
    lacking = {each.name: each for each in features(machine_with("avx2"))}
    assert not lacking["VNNI"].present and "7 bits" in lacking["VNNI"].follows
    arm = {each.name for each in features(machine_with("asimd", arch="aarch64"))}
    assert "dot product" in arm and "VNNI" not in arm


def test_engines_that_overwrite_each_other_are_a_problem() -> None:
    both = {"onnxruntime": "1.31", "onnxruntime-gpu": "1.31", "torch": "2.13"}
    (problem,) = package_problems(both, ("cpu",), machine_with())
    assert "onnxruntime and onnxruntime-gpu are installed together" in problem.what
    assert problem.fix.startswith("pip uninstall -y onnxruntime onnxruntime-gpu")
    assert list(package_problems({"onnxruntime": "1.31", "torch": "2.13"}, ("cpu",), machine_with())) == []


def test_a_missing_torch_and_an_idle_gpu_are_problems() -> None:
    found = list(package_problems({"onnxruntime": "1.31"}, ("cpu",), machine_with(gpus=("NVIDIA H200",))))
    assert [problem.fix.split(" on ")[0] for problem in found] == [
        "pip install 'optkit[torch]'",
        "pip install 'optkit[gpu]'",
    ]
    assert "NVIDIA H200" in found[1].what
    assert list(package_problems({"torch": "2"}, ("cuda", "cpu"), machine_with(gpus=("NVIDIA H200",)))) == []


def test_a_missing_onnxruntime_is_told_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> tuple[str, ...]:
        raise PackageError("onnxruntime cannot be imported: no module.", fix="pip install 'optkit[cpu]'")

    monkeypatch.setattr(doctor, "available", missing)
    found = examine()
    assert found.providers == ()
    assert ("pip install 'optkit[cpu]'") in [problem.fix for problem in found.problems]


def test_extras_with_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    original = metadata.version

    def version(name: str) -> str:
        if name in ("transformers", "onnxruntime-gpu"):
            raise metadata.PackageNotFoundError(name)
        return original(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    extras = {extra.name: extra for extra in examine().extras}
    assert list(extras) == ["cpu", "gpu", "torch", "hf", "data", "inc", "openvino"]
    assert (extras["cpu"].missing, extras["gpu"].missing) == ((), ("onnxruntime-gpu",))
    assert extras["hf"].missing == ("transformers",)
    assert extras["hf"].command == "pip install 'optkit[hf]'"


def test_the_cache_is_measured_and_not_made(tmp_path: Path) -> None:
    cache = examine().cache
    assert cache is not None and (cache.entries, cache.size_bytes, cache.writable) == (0, 0, True)
    assert not (tmp_path / "cache").exists()
    Cache.default().put_facts("ab" * 32, {"a": 1}, "test")
    again = examine().cache
    assert again is not None and again.entries == 1 and again.size_bytes > 0


def test_a_cache_that_cannot_be_written_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "file"))
    found = examine()
    assert found.cache is not None and not found.cache.writable
    assert any("is not writable" in problem.what for problem in found.problems)
    monkeypatch.setenv("OPTKIT_CACHE_SIZE", "much")
    broken = examine()
    assert broken.cache is None
    assert any("OPTKIT_CACHE_SIZE=much" in problem.what for problem in broken.problems)


def test_the_tables_tell_it_all() -> None:
    tables = {table.title: table for table in diagnosis_tables(examine())}
    assert ("python", ".".join(map(str, sys.version_info[:3]))) in tables["Versions"].rows
    assert [row[0] for row in tables["Extras"].rows] == ["cpu", "gpu", "torch", "hf", "data", "inc", "openvino"]
    assert "execution providers" in [row[0] for row in tables["Machine"].rows]
