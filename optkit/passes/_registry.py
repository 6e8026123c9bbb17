"""Finds passes by name: the public files of this package, and entry points of the group ``optkit.passes``."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from optkit.errors import PackageError, RecipeError
from optkit.passes._base import FRAME_KEYS, Pass

GROUP = "optkit.passes"
"""Entry-point group of third-party passes: ``my-pass = "my_package.my_pass:MyPass"``."""

EXTRA_OF = {
    "torch": "torch",
    "onnxruntime": "cpu",
    "transformers": "hf",
    "tokenizers": "hf",
    "safetensors": "torch",
    "sklearn": "data",
    "PIL": "data",
    "neural_compressor": "inc",
}
"""Import name -> the extra of optkit that brings it."""


@cache
def _own() -> dict[str, str]:
    files = Path(__file__).parent.glob("[a-z]*.py")
    return {file.stem.replace("_", "-"): file.stem for file in sorted(files)}


@cache
def _third_party() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=GROUP) if point.name not in _own()}


def own_names() -> list[str]:
    """Names of the passes optkit ships."""
    return sorted(_own())


def names() -> list[str]:
    """Names of all passes, as recipes write them, without importing any."""
    return sorted([*_own(), *_third_party()])


def find(name: str) -> type[Pass]:
    """The pass class of that name.

    Raises:
        RecipeError: no such pass; lists the alternatives.
    """
    if name in _own():
        module = import_module(f"optkit.passes.{_own()[name]}")
        return next(
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, Pass) and value.__module__ == module.__name__
        )
    if name in _third_party():
        return _load_third_party(name)
    close = difflib.get_close_matches(name, names(), n=1)
    raise RecipeError(
        f"There is no pass '{name}'.",
        expected="one of " + ", ".join(names()),
        fix=f"did you mean '{close[0]}'?" if close else "see: optkit passes list",
    )


def _load_third_party(name: str) -> type[Pass]:
    point = _third_party()[name]
    try:
        found = point.load()
    except (Exception, SystemExit) as error:  # importing it runs code that is not ours
        raise PackageError(
            f"The pass '{name}' of {point.value} cannot be imported: {type(error).__name__}: {error}",
            expected="a class that can be imported",
            fix=f"mend or uninstall the package that provides {point.value}",
        ) from error
    lack = _lack(found, name)
    if lack:
        raise PackageError(
            f"The pass '{name}' of {point.value} {lack}.",
            expected=f"a subclass of optkit.Pass with a docstring, forms and a kind, whose name() is '{name}'",
            fix="tell its author",
        )
    return cast("type[Pass]", found)


def _lack(found: object, name: str) -> str:
    """Empty, or why a third party's object does not do as the pass of that name."""
    if not (isinstance(found, type) and issubclass(found, Pass)):
        return "is no pass"
    if not (found.__doc__ or "").strip():
        return "has no docstring"
    missing = [fact for fact in ("forms", "kind") if not hasattr(found, fact)]
    if missing:
        return f"does not state its {missing[0]}"
    if taken := [key for key in FRAME_KEYS if key in found.model_fields]:
        return f"has an option named '{taken[0]}', which every entry of a recipe has already"
    return "" if found.name() == name else f"calls itself '{found.name()}'"


def missing_packages(cls: type[Pass]) -> list[str]:
    """Import names that the pass needs and that are not installed."""
    return [need for need in cls.needs if find_spec(need) is None]


def pip_hint(package: str) -> str:
    """The command that installs an import name."""
    extra = EXTRA_OF.get(package)
    return f"pip install 'optkit[{extra}]'" if extra else f"pip install {package}"
