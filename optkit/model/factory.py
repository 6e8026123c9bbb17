"""Calls the function a user named to build a module: ``pkg.module:fn`` or ``FILE.py:fn``."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from optkit.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

_EXAMPLE = "--factory my_model.py:build, where build() returns the module"


def call_factory(reference: str) -> nn.Module:
    """Build the module; relative files and modules are also looked for in the current folder.

    Raises:
        ModelError: no such file, module or function; it raises, or returns something else than an ``nn.Module``.
    """
    from torch import nn

    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise ModelError(
            f"'{reference}' names no factory.", expected="pkg.module:fn or FILE.py:fn", fix=f"write it like {_EXAMPLE}"
        )
    folder = Path(place).resolve().parent if place.endswith(".py") else Path.cwd()
    with importable(folder):
        function = _function(_load(place, reference), place, name)
        module = _guarded(function, f"The factory {reference} failed")
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"The factory {reference} returns a {type(module).__name__}.",
            expected="a torch.nn.Module",
            fix="return the module itself, not its weights, its class or a tuple",
        )
    return module


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """The folder's modules can be imported meanwhile."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def _guarded(function: Callable[[], Any], what: str) -> Any:
    try:
        return function()
    except (Exception, SystemExit) as error:  # a user's own code may raise anything
        raise ModelError(
            f"{what}: {type(error).__name__}: {error}.",
            expected="a function that needs no arguments and returns a torch.nn.Module",
            fix="call it on its own in Python and mend it",
        ) from error


def _load(place: str, reference: str) -> ModuleType:
    if not place.endswith(".py"):
        module: ModuleType = _guarded(
            lambda: importlib.import_module(place), f"The code of {reference} does not import"
        )
        return module
    path = Path(place)
    spec = importlib.util.spec_from_file_location(f"optkit_factory_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ModelError(f"There is no file {place} for the factory.", fix=f"check the path; {_EXAMPLE}", file=path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look their module up by name
    _guarded(partial(spec.loader.exec_module, module), f"The code of {reference} does not import")
    return module


def _function(module: ModuleType, place: str, name: str) -> Callable[[], Any]:
    function = getattr(module, name, None)
    if callable(function):
        return function  # type: ignore[no-any-return]  # what it returns is checked after the call
    names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    close = difflib.get_close_matches(name, names, n=1)
    raise ModelError(
        f"{place} has no function '{name}'" + (f"; did you mean '{close[0]}'?" if close else "."),
        expected="one of " + ", ".join(sorted(names)) if names else "a function that returns the module",
        fix=_EXAMPLE,
    )
