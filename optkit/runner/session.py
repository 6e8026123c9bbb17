"""The session options of onnxruntime that a model may want, as keys and values, and how they are set.

A key with a dot is a session config entry and goes to onnxruntime as it is. One without is a property of
``SessionOptions`` (``PROPERTIES``). Two kinds have a name behind a colon, which may hold dots: sizes of dimensions, and
options of the execution provider that runs the model::

    session.intra_op.allow_spinning = 0
    execution_mode = parallel
    free_dimension_override_by_name:batch = 8
    provider_option:prefer_nhwc = 1
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from optkit.errors import ModelError, UsageError
from optkit.model.machine import usable_threads
from optkit.model.model import is_config_entry
from optkit.model.target import Target
from optkit.runner.providers import short_name

if TYPE_CHECKING:
    import onnxruntime

THREADS = "intra_op_num_threads"
"""The property that ``Target.threads`` overrides."""

DIMENSION = "free_dimension_override_by_name"
PROVIDER = "provider_option"

SECOND = {"TensorrtExecutionProvider": ("CUDAExecutionProvider",)}
"""Provider -> providers that take what it refuses, before the CPU does."""

Value = int | bool | str


@dataclass(frozen=True)
class Setting:
    """One option as it is set on ``SessionOptions``; its text is the Python statement that does so."""

    name: str
    """An attribute, or a method."""
    value: Value
    about: str | None = None
    """What a method sets: the name of a dimension or a config entry. None = ``name`` is an attribute."""

    def apply(self, options: onnxruntime.SessionOptions) -> None:
        """Set it."""
        if self.about is not None:
            getattr(options, self.name)(self.about, self.value)
            return
        value = self.value
        if self.name == "execution_mode":
            value = getattr(type(options.execution_mode), str(value))
        setattr(options, self.name, value)

    def __str__(self) -> str:
        if self.about is not None:
            return f"options.{self.name}({quoted(self.about)}, {quoted(self.value)})"
        value = self.value if self.name != "execution_mode" else f"onnxruntime.ExecutionMode.{self.value}"
        return f"options.{self.name} = {value}"


def _count(text: str) -> int | None:
    return int(text) if text.isdecimal() and int(text) > 0 else None


COUNT: tuple[Callable[[str], Value | None], str] = (_count, "a whole number from 1")
SWITCH: tuple[Callable[[str], Value | None], str] = ({"0": False, "1": True}.get, "0 or 1")
MODE: tuple[Callable[[str], Value | None], str] = (
    {"sequential": "ORT_SEQUENTIAL", "parallel": "ORT_PARALLEL"}.get,
    "sequential or parallel",
)

PROPERTIES = {
    THREADS: COUNT,
    "inter_op_num_threads": COUNT,
    "execution_mode": MODE,
    "enable_cpu_mem_arena": SWITCH,
    "enable_mem_pattern": SWITCH,
}
"""Property -> what makes a value of its text (None = it does not), and which texts it takes."""

OF_THREADS = frozenset({THREADS, "inter_op_num_threads", "execution_mode"})

KNOWN = (*PROPERTIES, f"{DIMENSION}:DIMENSION", f"{PROVIDER}:OPTION")
"""All keys that are no config entries, for people."""


def settings(entries: Mapping[str, str]) -> list[Setting]:
    """The options one by one, in their order; those of the provider are not among them.

    Raises:
        UsageError: an option that does not exist, or does not take that value.
    """
    return [setting for key, value in entries.items() for setting in _settings(key, str(value))]


def provider_options(entries: Mapping[str, str]) -> dict[str, str]:
    """Options of the execution provider; the CPU's has none, and ignores them."""
    split = ((key.partition(":"), str(value)) for key, value in entries.items())
    return {name: value for (kind, _, name), value in split if kind == PROVIDER}


def threads_of(entries: Mapping[str, str], target: Target) -> int:
    """Intra-op threads: the target's, else those that the model wants, else as many as the process may use.

    Raises:
        UsageError: what the model wants is no number.
    """
    wanted = [each.value for each in settings(entries) if each.name == THREADS]
    return target.threads or (int(wanted[0]) if wanted else usable_threads())


def effective(entries: Mapping[str, str], target: Target) -> dict[str, str]:
    """The entries that count: without the model's own choices about threads where the target states a number."""
    return {key: str(value) for key, value in entries.items() if key not in OF_THREADS or not target.threads}


def complete(entries: Mapping[str, str], target: Target) -> list[Setting]:
    """All that is set for a target: the number of threads, the entries, and what the provider asks for.

    Raises:
        UsageError: see ``settings``.
    """
    found = settings({THREADS: str(threads_of(entries, target)), **effective(entries, target)})
    if short_name(target.provider) == "directml":
        found.append(Setting("enable_mem_pattern", False))  # DirectML refuses sessions that plan memory ahead
    return found


def apply(options: onnxruntime.SessionOptions, entries: Mapping[str, str], target: Target) -> None:
    """Set what ``complete`` says, and raise what it raises."""
    for setting in complete(entries, target):
        setting.apply(options)


def check(entries: Mapping[str, str], file: Path | None = None) -> None:
    """Refuse entries that could not be set.

    Raises:
        ModelError: there is one, in what ``file`` wants.
        UsageError: there is one, in what was asked for.
    """
    try:
        settings(entries)
    except UsageError as error:
        if file is None:
            raise
        raise ModelError(error.message, expected=error.expected, fix=error.fix, file=file) from error


def quoted(value: Value) -> str:
    """The value as a literal of Python, text in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


def _settings(key: str, text: str) -> list[Setting]:
    kind, colon, name = key.partition(":")
    if is_config_entry(key):
        return [Setting("add_session_config_entry", text, key)]
    if kind == PROVIDER and name:
        return []
    if kind == DIMENSION and name:
        return [Setting(f"add_{DIMENSION}", _value(key, text, COUNT), name)]
    if kind in PROPERTIES and not colon:
        return [Setting(kind, _value(key, text, PROPERTIES[kind]))]
    guess = get_close_matches(key, KNOWN, n=1)
    raise UsageError(
        f"There is no session option '{key}'.",
        expected=f"a session config entry of onnxruntime, which has a dot in its key, or one of {', '.join(KNOWN)}",
        fix=f"did you mean {guess[0]}?" if guess else "leave it out",
    )


def _value(key: str, text: str, takes: tuple[Callable[[str], Value | None], str]) -> Value:
    make, expected = takes
    value = make(text)
    if value is None:
        raise UsageError(
            f"The session option {key} does not take '{text}'.",
            expected=expected,
            fix=f"write {key}={expected.split()[-1]}",
        )
    return value
