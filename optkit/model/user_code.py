"""Finds what a user named in their own code: ``pkg.module:name`` or ``FILE.py:name``. Importing it runs it."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from optkit.errors import GivenError
from optkit.model.imports import note_added

_REFERENCE = re.compile(r"(?P<place>[\w.]+|.+\.py):(?P<name>[A-Za-z_]\w*)")


def is_reference(text: str) -> bool:
    """Whether a text reads as ``pkg.module:name`` or ``FILE.py:name``."""
    return _REFERENCE.fullmatch(text) is not None


def named(reference: str, *, base: Path, what: str, blame: type[GivenError]) -> Any:
    """The object of that name.

    Args:
        reference: ``pkg.module:name`` or ``FILE.py:name``.
        base: the folder that ``FILE.py`` counts from, and where modules are looked for too.
        what: what it should be, for the messages: ``factory``, ``metric``.
        blame: the class of the errors.

    Raises:
        GivenError: (of class ``blame``) no reference, no such file or module, its code fails, or no such name in it.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise blame(
            f"'{reference}' names no {what}.",
            expected="pkg.module:name or FILE.py:name",
            fix=f"write it like my_code.py:my_{what}",
        )
    place, name = match["place"], match["name"]
    with importable((base / place).parent if place.endswith(".py") else base):
        module = _module(place, base, reference, blame)
    if not hasattr(module, name):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        close = difflib.get_close_matches(name, names, n=1)
        raise blame(
            f"{place} has no function '{name}'" + (f"; did you mean '{close[0]}'?" if close else "."),
            expected="one of " + ", ".join(sorted(names)) if names else f"a {what} of that name",
            fix="check the name after the colon",
        )
    return getattr(module, name)


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """The folder's modules can be imported meanwhile."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    before = set(sys.path)
    try:
        yield
    finally:
        note_added(set(sys.path) - before)
        if entry in sys.path:
            sys.path.remove(entry)


def _module(place: str, base: Path, reference: str, blame: type[GivenError]) -> ModuleType:
    path = base / place
    if place.endswith(".py") and not path.is_file():
        raise blame(f"There is no file {path} for {reference}.", expected="a Python file", fix="check the path")
    try:
        return _from_file(path) if place.endswith(".py") else importlib.import_module(place)
    except (Exception, SystemExit) as error:  # importing runs the user's code, which may raise anything
        raise blame(
            f"The code of {reference} cannot be imported: {type(error).__name__}: {error}.",
            expected="an importable module, or a path to a .py file",
            fix="import it on its own in Python and mend it",
        ) from error


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"optkit_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look their module up by name
    spec.loader.exec_module(module)
    return module
