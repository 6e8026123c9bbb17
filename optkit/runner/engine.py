"""``MODEL@ENGINE``: which engine a candidate is to run on, as people write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from optkit.errors import PackageError, UsageError
from optkit.model.target import Engine
from optkit.runner.openvino import PRECISION
from optkit.runner.providers import INSTALL, SHORT, available


@dataclass(frozen=True)
class Chosen:
    """What ``@ENGINE`` says; the defaults where there is none."""

    engine: Engine = ""
    """As in ``Target.engine``; empty = the usual one of the model's form."""
    provider: str = ""
    """Short name of onnxruntime's provider; empty = none was named."""
    session: Mapping[str, str] = field(default_factory=dict)
    """Session config entries that the name stands for."""


ENGINES: dict[str, tuple[Engine, Mapping[str, str]]] = {
    "eager": ("torch", {}),
    "compile": ("torch-compile", {}),
    "openvino": ("openvino", {}),
    "openvino:f32": ("openvino", {PRECISION: "f32"}),
    "openvino:bf16": ("openvino", {PRECISION: "bf16"}),
}
"""Name -> engine and session config entries. All other names are of onnxruntime's providers."""


def parse_engine(text: str) -> tuple[Path, Chosen]:
    """Split ``MODEL[@ENGINE]`` at its last ``@``, unless the whole of it is an existing path.

    Args:
        text: ``model.onnx``, ``model.onnx@openvino:f32``, ``model.pt@compile``, ``model.onnx@cuda``.

    Raises:
        UsageError: no engine of that name.
    """
    path, _, name = text.rpartition("@")
    if not path or "/" in name or Path(text).exists():
        return Path(text), Chosen()
    if name in ENGINES:
        engine, session = ENGINES[name]
        return Path(path), Chosen(engine, session=session)
    if name in _providers() or name in _present():
        return Path(path), Chosen("onnxruntime", name)
    raise _unknown(text, path, name)


def _providers() -> list[str]:
    return sorted({*INSTALL, *SHORT.values()} - {"openvino"})


def _present() -> tuple[str, ...]:
    """Providers of plugins that have names of their own."""
    try:
        return available()
    except PackageError:
        return ()


def _unknown(text: str, path: str, name: str) -> UsageError:
    names = [*ENGINES, *_providers()]
    guess = get_close_matches(name.lower(), names, n=1)
    return UsageError(
        f"There is no engine '{name}', and no file '{text}'.",
        expected=f"MODEL, or MODEL@ENGINE with one of {', '.join(names)}",
        fix=f"did you mean {path}@{guess[0]}?" if guess else f"leave @{name} out",
    )
