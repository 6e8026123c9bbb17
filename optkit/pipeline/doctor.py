"""Looks at this installation and this machine: what is there, what is missing, what is wrong, and the cure."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from optkit import __version__
from optkit.errors import PackageError, UsageError
from optkit.model.machine import ORT_PACKAGES, Machine, machine
from optkit.pipeline.cache import Cache
from optkit.report.doctor import CacheFacts, Diagnosis, Extra, Feature, Problem, Processor
from optkit.runner.providers import INSTALL, available, plugins

PACKAGES = (
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxslim",
    *ORT_PACKAGES,
    "openvino",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "scikit-learn",
    "pillow",
    "neural-compressor",
)
"""Distributions that optkit can use, in the order they are shown."""

BRINGS = {
    "cpu": "onnxruntime: run, check and time ONNX models on the processor",
    "gpu": "onnxruntime-gpu in the place of onnxruntime: the providers cuda and tensorrt",
    "torch": "open torch.export and TorchScript archives and state_dicts, and export them to ONNX",
    "hf": "open Hugging Face folders, with their tokenizers",
    "data": "images and text as inputs, and the probe metric",
    "inc": "quantize Hugging Face models to 4 bits by neural-compressor: the pass inc-weight-only",
    "openvino": "bench ONNX models on Intel's own engine beside onnxruntime: MODEL@openvino",
}
"""Extra -> what it makes possible."""

_LITTLE_SPACE = 2 * 10**9
"""Bytes; a cache on a disk with less than this free will soon be in the way."""

_X86 = (
    ("AVX2", ("avx2",), "eight floats at a time", "float32 runs at a fraction of the usual speed"),
    ("AVX512", ("avx512f",), "sixteen floats at a time", "eight floats at a time at best; all passes still work"),
    (
        "VNNI",
        ("avx512_vnni", "avx_vnni"),
        "int8 dot products in one instruction: U8 activations with S8 weights pay",
        "int8 gains little: weights are cut to 7 bits, so that 16-bit sums do not overflow",
    ),
    (
        "AMX int8",
        ("amx_int8",),
        "int8 matrix tiles: large int8 MatMul gains most",
        "int8 MatMul runs on the vector units",
    ),
    (
        "BF16",
        ("avx512_bf16", "amx_bf16"),
        "bfloat16 products in hardware, for engines that use them (torch, OpenVINO)",
        "bfloat16 is computed as float32: it saves memory, no time",
    ),
)
_ARM = (
    (
        "dot product",
        ("asimddp",),
        "int8 dot products in one instruction: int8 pays",
        "int8 gains little on this processor",
    ),
    ("I8MM", ("i8mm",), "int8 matrix products: int8 pays most", "int8 MatMul uses dot products at best"),
    ("BF16", ("bf16",), "bfloat16 products in hardware", "bfloat16 is computed as float32"),
    ("SVE", ("sve", "sve2"), "long vectors", "vectors of 128 bits"),
)


def examine() -> Diagnosis:
    """Everything ``optkit doctor`` tells; nothing is written, and whatever is wrong is a fact, not an error."""
    packages = {name: version for name in PACKAGES if (version := _version(name))}
    providers, failed = _providers()
    cache, cache_problems = _cache()
    return Diagnosis(
        optkit=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        packages=packages,
        providers=providers,
        processor=_processor(machine()),
        features=tuple(features(machine())),
        extras=tuple(_extras()),
        cache=cache,
        problems=(*failed, *package_problems(packages, providers, machine()), *cache_problems),
    )


def features(here: Machine) -> Iterator[Feature]:
    """What this kind of processor can have, whether it has it, and what follows."""
    for name, flags, having, lacking in _X86 if here.is_x86 else _ARM:
        present = any(flag in here.features for flag in flags)
        yield Feature(name=name, present=present, follows=having if present else lacking)


def package_problems(packages: dict[str, str], providers: tuple[str, ...], here: Machine) -> Iterator[Problem]:
    """Packages that exclude each other, or are missing where most would want them."""
    engines = [name for name in ORT_PACKAGES if name in packages]
    if len(engines) > 1:
        both = " and ".join(engines)
        yield Problem(
            what=f"{both} are installed together and overwrite each other's files.",
            fix=f"pip uninstall -y {' '.join(engines)}, then pip install the one you want",
        )
    if "torch" not in packages:
        yield Problem(
            what="torch is not installed: only ONNX and ORT models can be opened.", fix="pip install 'optkit[torch]'"
        )
    if here.gpus and providers and "cuda" not in providers:
        yield Problem(
            what=f"There is a {here.gpus[0]}, but the installed onnxruntime cannot use it.",
            fix=INSTALL["cuda"],
        )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _providers() -> tuple[tuple[str, ...], list[Problem]]:
    try:
        found, failed = available(), plugins()[1]
    except PackageError as error:
        return (), [Problem(what=error.message, fix=error.fix)]
    broken = [
        Problem(what=f"The provider plugin {name} failed: {why}.", fix=f"reinstall or uninstall {name}")
        for name, why in failed.items()
    ]
    return found, broken


def _processor(here: Machine) -> Processor:
    import psutil

    free = int(psutil.virtual_memory().available)
    return Processor(
        name=here.cpu,
        arch=here.arch,
        physical_cores=here.physical_cores,
        logical_cores=here.logical_cores,
        affinity=here.affinity,
        cgroup_limit=here.cpu_limit,
        threads=here.usable_threads,
        memory_bytes=here.memory_bytes,
        memory_available_bytes=min(free, here.memory_bytes),
        gpus=here.gpus,
    )


def _extras() -> Iterator[Extra]:
    needs = _requirements()
    for name, brings in BRINGS.items():
        missing = tuple(need for need in needs.get(name, ()) if not _version(need))
        if name == "cpu" and any(map(_version, ORT_PACKAGES)):
            missing = ()
        command = f"pip install 'optkit[{name}]'" if name != "gpu" else INSTALL["cuda"]
        yield Extra(name=name, brings=brings, missing=missing, command=command)


def _requirements() -> dict[str, list[str]]:
    """Extra -> the distributions it asks for, as the installed metadata of optkit say."""
    found: dict[str, list[str]] = {}
    try:
        lines = metadata.requires("optkit") or []
    except metadata.PackageNotFoundError:  # run from a checkout that nobody installed
        return found
    for line in lines:
        match = re.match(r"([\w.-]+).*;.*\bextra\s*==\s*['\"]([\w-]+)['\"]", line)
        if match:
            found.setdefault(match[2], []).append(match[1])
    return found


def _cache() -> tuple[CacheFacts | None, list[Problem]]:
    try:
        cache = Cache.default()
    except UsageError as error:
        return None, [Problem(what=error.message, fix=error.fix)]
    place = next(folder for folder in (cache.root, *cache.root.absolute().parents) if folder.exists())
    writable = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    entries = cache.entries()
    facts = CacheFacts(
        path=str(cache.root),
        entries=len(entries),
        size_bytes=sum(entry.size_bytes for entry in entries),
        cap_bytes=cache.cap_bytes,
        writable=writable,
    )
    return facts, list(_cache_problems(facts, place))


def _cache_problems(facts: CacheFacts, place: Path) -> Iterator[Problem]:
    import psutil

    if not facts.writable:
        yield Problem(
            what=f"The cache {facts.path} is not writable.", fix="set OPTKIT_CACHE to a folder you may write to"
        )
    elif (free := psutil.disk_usage(str(place)).free) < _LITTLE_SPACE:
        yield Problem(
            what=f"The disk of the cache {facts.path} has only {free / 10**9:.1f} GB left.",
            fix="free some with 'optkit cache rm', or set OPTKIT_CACHE to another disk",
        )
