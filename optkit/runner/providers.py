"""Execution providers by short name: which are there, which one was asked for, which nodes really ran where."""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
import re
from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from types import ModuleType
from typing import TYPE_CHECKING

from optkit.errors import PackageError, ProviderError

if TYPE_CHECKING:
    import onnxruntime

SHORT = {
    "DmlExecutionProvider": "directml",
    "NvTensorRTRTXExecutionProvider": "tensorrt-rtx",
    "DnnlExecutionProvider": "onednn",
}
"""Short names that are not simply the provider's name without ``ExecutionProvider``, in lower case."""

INSTALL = {
    "cpu": "pip install 'optkit[cpu]'",
    "cuda": "pip install 'optkit[gpu]' on a machine with an NVIDIA driver (it replaces 'optkit[cpu]')",
    "tensorrt": "pip install 'optkit[gpu]' tensorrt on a machine with an NVIDIA driver (it replaces 'optkit[cpu]')",
    "tensorrt-rtx": "pip install onnxruntime-ep-nv-tensorrt-rtx",
    "openvino": "pip install onnxruntime-ep-openvino (or onnxruntime-openvino in the place of onnxruntime)",
    "directml": "pip install onnxruntime-directml on Windows (it replaces onnxruntime)",
    "coreml": "pip install 'optkit[cpu]' on macOS, whose onnxruntime has it",
    "rocm": "pip install onnxruntime-rocm (it replaces onnxruntime)",
    "migraphx": "pip install onnxruntime-migraphx (it replaces onnxruntime)",
    "qnn": "pip install onnxruntime-qnn",
    "webgpu": "pip install onnxruntime-ep-webgpu",
    "cann": "pip install onnxruntime-cann (it replaces onnxruntime)",
}
"""Short name -> what brings that provider."""

_NOT_LOCAL = {"AzureExecutionProvider"}
"""Sends data to a service, computes nothing here: never offered."""

_PLUGINS = "onnxruntime_ep_"
"""Modules of plugin providers begin so, and have ``get_library_path()``."""


def import_ort() -> ModuleType:
    """onnxruntime, with its telemetry off and its log quiet.

    Raises:
        PackageError: it is not installed, or its libraries do not load.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # it is read once, when the module is imported
    try:
        import onnxruntime
    except ImportError as error:
        raise PackageError(
            f"onnxruntime cannot be imported: {error}.",
            expected="one of the packages onnxruntime, onnxruntime-gpu, ...",
            fix="pip install 'optkit[cpu]'",
        ) from error
    onnxruntime.set_default_logger_severity(3)
    module: ModuleType = onnxruntime
    return module


def ort_failures() -> tuple[type[Exception], ...]:
    """The classes onnxruntime raises; they share no base but ``Exception``."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = (kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    return (*own, RuntimeError, ValueError)


def reason(error: BaseException) -> str:
    """onnxruntime's message in one line, without its code."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip())
    return " ".join(text.splitlines()[0].split()) if text else type(error).__name__


def short_name(provider: str) -> str:
    """``CUDAExecutionProvider`` -> ``cuda``."""
    return SHORT.get(provider, provider.replace("ExecutionProvider", "").lower())


def available() -> tuple[str, ...]:
    """Short names of the providers that can compute here, plugins included.

    Raises:
        PackageError: onnxruntime is not installed.
    """
    return tuple(built_in() | plugins()[0])


def require(name: str) -> str:
    """The full name of the provider called ``name`` (short or full).

    Raises:
        PackageError: onnxruntime is not installed.
        ProviderError: the installed onnxruntime has no such provider; says which it has, and how to get this one.
    """
    short = short_name(name) if "ExecutionProvider" in name else name.lower()
    present = built_in()
    if short in present:
        return present[short]
    found, failed = plugins()
    if short in found:
        return found[short]
    raise _missing(name, short, [*present, *found], failed)


@functools.cache
def built_in() -> dict[str, str]:
    """Short name -> full name of the providers compiled into onnxruntime, in its order of preference.

    Kept from the first call on: once a plugin is registered, onnxruntime lists it here as well, but does not start it
    by its name.
    """
    names = import_ort().get_available_providers()
    return {short_name(name): name for name in names if name not in _NOT_LOCAL}


@functools.cache
def plugins() -> tuple[dict[str, str], dict[str, str]]:
    """Providers from plugin packages (short name -> full name), and packages that failed (module -> reason)."""
    ort, compiled = import_ort(), built_in()
    if not hasattr(ort, "register_execution_provider_library"):
        return {}, {}
    failed: dict[str, str] = {}
    expected: tuple[type[Exception], ...] = (ImportError, AttributeError, OSError, *ort_failures())
    for module in pkgutil.iter_modules():
        if module.name.startswith(_PLUGINS):
            try:
                library = importlib.import_module(module.name).get_library_path()
                ort.register_execution_provider_library(module.name, library)
            except expected as error:
                failed[module.name] = reason(error)
    names = (device.ep_name for device in ort.get_ep_devices())
    return {short_name(name): name for name in names if name not in compiled.values()}, failed


def _missing(name: str, short: str, present: list[str], failed: Mapping[str, str]) -> ProviderError:
    broken = "".join(f"; {module} is installed but failed: {why}" for module, why in failed.items())
    guess = get_close_matches(short, [*present, *INSTALL], n=1)
    return ProviderError(
        f"The execution provider '{name}' is not there.",
        expected=f"one of those that can run here: {', '.join(present)}{broken}",
        fix=INSTALL.get(short) or (f"did you mean '{guess[0]}'?" if guess else "install an onnxruntime that has it"),
    )


def placement(session: onnxruntime.InferenceSession) -> dict[str, dict[str, int]]:
    """Short provider name -> {operator: nodes} after basic optimizations; what a provider refused is under ``cpu``.

    The session must have been opened with ``session.record_ep_graph_assignment_info`` = ``1``; an onnxruntime
    before 1.24 cannot tell, and gives an empty mapping.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return {}
    counts: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        counter = counts.setdefault(short_name(part.ep_name), Counter())
        counter.update(node.op_type for node in part.get_nodes())
    return {name: dict(sorted(counter.items())) for name, counter in counts.items()}
