"""The machine at hand: processor, cores, memory, and what of them this process may use."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optkit.model.target import Target

if TYPE_CHECKING:
    from optkit.model.manifest import Environment

FEATURES = [
    "avx2",
    "f16c",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
]
"""Processor features (names of /proc/cpuinfo) that decide how fast numbers of a kind are computed."""

ORT_PACKAGES = [
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "onnxruntime-migraphx",
    "onnxruntime-rocm",
]
"""Distributions that bring the module ``onnxruntime``."""

_CPUINFO = Path("/proc/cpuinfo")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_NVIDIA = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Machine:
    """What this process computes on."""

    cpu: str
    """Model name of the processor."""
    arch: str
    """``x86_64``, ``aarch64``, ..."""
    features: tuple[str, ...]
    """Those of ``FEATURES`` that are there."""
    physical_cores: int
    logical_cores: int
    affinity: int
    """Logical cores that the scheduler lets this process use."""
    cpu_limit: float | None
    """Cores' worth of time that the cgroup grants; None = no limit."""
    memory_bytes: int
    """Memory of the machine, or the cgroup's limit where that is lower."""
    gpus: tuple[str, ...] = ()
    """Model names of NVIDIA devices whose driver is loaded."""

    @property
    def is_x86(self) -> bool:
        """Whether it is an x86 processor."""
        return self.arch.lower() in {"x86_64", "amd64", "i386", "i686"}

    @property
    def has_vnni(self) -> bool:
        """Whether four int8 products are summed in one instruction (VNNI; on ARM the dot product)."""
        return any(name in self.features for name in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp"))

    @property
    def has_bf16(self) -> bool:
        """Whether bfloat16 is multiplied in hardware."""
        return any(name in self.features for name in ("avx512_bf16", "amx_bf16", "bf16"))

    @property
    def usable_threads(self) -> int:
        """Threads that can compute at once: physical cores within affinity and cgroup limit, at least 1."""
        limit = math.inf if self.cpu_limit is None else math.floor(self.cpu_limit)
        return max(1, int(min(self.physical_cores, self.affinity, limit)))


@functools.cache
def machine() -> Machine:
    """The machine this process runs on, looked at once."""
    import psutil

    logical = os.cpu_count() or 1
    name, flags = _processor()
    limit = _memory_limit()
    total = int(psutil.virtual_memory().total)
    return Machine(
        cpu=name,
        arch=platform.machine(),
        features=tuple(feature for feature in FEATURES if feature in flags),
        physical_cores=psutil.cpu_count(logical=False) or logical,
        logical_cores=logical,
        affinity=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical,
        cpu_limit=_cpu_limit(),
        memory_bytes=total if limit is None else min(limit, total),
        gpus=tuple(sorted(_nvidia_models())),
    )


def usable_threads() -> int:
    """Threads that can compute at once on this machine, see ``Machine.usable_threads``."""
    return machine().usable_threads


def fingerprint(target: Target) -> str:
    """What a timing on this machine depends on, as sha256 (hex).

    Processor, features, cores, limits, GPUs, onnxruntime's version, and the target's provider, threads and shapes.
    """
    facts = asdict(machine()) | {
        "memory_bytes": None,  # the kernel's reserve shifts it by a few pages from boot to boot
        "onnxruntime": ort_version(),
        "provider": target.provider,
        "threads": target.threads,  # 0 leaves the choice to the model
        "shapes": dict(target.shapes),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def differences(there: Environment, here: Environment) -> list[tuple[str, str]]:
    """What a timing depends on and the two do not share, as (there, here) in words; nothing that one does not know.

    Processor, its features, GPUs, cores, the cgroup's limit, onnxruntime's version and the provider.
    """
    lost = [name for name in there.cpu_features if name not in here.cpu_features]
    new = [name for name in here.cpu_features if name not in there.cpu_features]
    pairs = [
        (there.cpu, here.cpu),
        (_features(lost, new), _features(new, lost)),
        (", ".join(there.gpus) or "no GPU", ", ".join(here.gpus) or "no GPU"),
        (_cores("physical", there.physical_cores), _cores("physical", here.physical_cores)),
        (_cores("usable", there.affinity), _cores("usable", here.affinity)),
        (_limit(there), _limit(here)),
        (_onnxruntime(there), _onnxruntime(here)),
        (f"provider {there.provider}", f"provider {here.provider}"),
    ]
    return [(first, second) for first, second in pairs if first and second and first != second]


def _features(has: list[str], lacks: list[str]) -> str:
    return ", ".join([*has, *(f"no {name}" for name in lacks)])


def _cores(kind: str, count: int | None) -> str:
    return "" if count is None else f"{count} {kind} core{'' if count == 1 else 's'}"


def _limit(machine: Environment) -> str:
    """None is no limit, unless nothing else is known of the cores either."""
    if machine.cpu_limit is not None:
        return f"a cgroup limit of {machine.cpu_limit:g}"
    return "" if machine.physical_cores is None else "no cgroup limit"


def _onnxruntime(machine: Environment) -> str:
    found = machine.packages.get("onnxruntime", "")
    return found and f"onnxruntime {found}"


def ort_version() -> str:
    """Name and version of the installed onnxruntime without importing it, or an empty string."""
    from importlib.metadata import PackageNotFoundError, version

    for name in ORT_PACKAGES:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return ""


def _processor() -> tuple[str, frozenset[str]]:
    """Model name and raw feature flags.

    archspec's ``host()`` gives the nearest known microarchitecture and forgets flags beyond it (AMX in a virtual
    machine), so its raw detection is asked.
    """
    cpuinfo = _cpuinfo()
    flags = cpuinfo.get("flags") or cpuinfo.get("Features") or ""
    name = cpuinfo.get("model name", "")
    if flags and name:
        return name, frozenset(flags.split())
    from archspec.cpu import brand_string, detect

    found = frozenset(flags.split()) or frozenset(detect.detected_info().features)
    return name or brand_string() or platform.processor() or platform.machine(), found


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo, empty where there is none."""
    if not _CPUINFO.is_file():
        return {}
    first = _CPUINFO.read_text(errors="replace").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _nvidia_models() -> Iterable[str]:
    for file in _NVIDIA.glob("*/information"):
        for line in file.read_text(errors="replace").splitlines():
            if line.startswith("Model:"):
                yield line.partition(":")[2].strip()


def _cpu_limit() -> float | None:
    """Cores' worth of time granted by the tightest cgroup (version 2 or 1) around this process."""
    limits = [_quota(*text.split()[:2]) for text in _entries("", "cpu.max")]
    for controller in ("cpu", "cpu,cpuacct"):
        quotas, periods = (list(_entries(controller, f"cpu.cfs_{what}_us")) for what in ("quota", "period"))
        limits += [_quota(*pair) for pair in zip(quotas, periods, strict=False)]
    return min((limit for limit in limits if limit is not None), default=None)


def _quota(quota: str, period: str = "100000") -> float | None:
    return int(quota) / int(period) if quota.isdigit() and int(period) > 0 else None


def _memory_limit() -> int | None:
    """Bytes granted by the tightest cgroup around this process; version 1 writes a huge number for no limit."""
    texts = [*_entries("", "memory.max"), *_entries("memory", "memory.limit_in_bytes")]
    return min((int(text) for text in texts if text.isdigit()), default=None)


def _entries(controller: str, file: str) -> Iterable[str]:
    """Contents of ``file`` in this process's cgroup and all above it; ``""`` is version 2's one hierarchy."""
    root = _CGROUPS / controller
    folder = root / _own_path(controller).strip("/")
    for place in (folder, *folder.parents):
        if place.is_relative_to(root) and (place / file).is_file():
            yield (place / file).read_text().strip()


def _own_path(controller: str) -> str:
    """This process's place in a hierarchy, from lines ``ID:CONTROLLERS:PATH``."""
    if _OWN_CGROUPS.is_file():
        for line in _OWN_CGROUPS.read_text().splitlines():
            _, names, path = line.split(":", 2)
            if names == controller or (controller and controller in names.split(",")):
                return path
    return "/"
