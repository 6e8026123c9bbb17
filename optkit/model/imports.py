"""Which source files a user's module reaches by its imports; read, never run."""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

FILES_AT_MOST = 2000
"""Files taken from a folder where imports cannot be followed."""

_DYNAMIC = frozenset({"import_module", "__import__"})
_Found = tuple[Path, Path]
"""A file, and the folder that its dotted name counts from."""


def reachable_files(start: Path, root: Path) -> dict[str, Path]:
    """Name -> file: ``start`` and what it imports, directly or not, outside the standard library and site-packages.

    Where that cannot be told (a file that does not parse, a module imported by a name that is computed), every ``.py``
    file below the folder of ``start`` counts, ``FILES_AT_MOST`` of them.

    Args:
        start: the first file.
        root: the folder that modules are looked for first; then come those of ``sys.path``.
    """
    roots = _roots(root)
    found: dict[Path, Path] = {}
    waiting: list[_Found] = [(start, root)]
    complete = True
    while waiting:
        file, base = waiting.pop()
        if file in found:
            continue
        found[file] = base
        imports = _imports(file)
        complete &= imports is not None
        waiting += [new for name, level in imports or () for new in _files_of(name, level, file, base, roots)]
    if not complete:
        found = {**dict.fromkeys(_below(start.parent), root), **found}
    return {_name(file, base): file for file, base in found.items()}


def find_source(module: str, root: Path) -> _Found | None:
    """The file of ``pkg.module``, and the folder that ``pkg`` is in; None where there is none."""
    roots = _roots(root)
    head, *rest = module.split(".")
    base = _place_of(head, roots)
    if base is None:
        return None
    file = _file_of(base.joinpath(head, *rest))
    return None if file is None else (file, base)


def note_added(entries: Iterable[str]) -> None:
    """Folders that a user's code put on ``sys.path`` when it ran: what is found there does not count.

    Else a module would reach other files after it ran than before, and in another process.
    """
    _ADDED.update(entries)


_ADDED: set[str] = set()
"""Of this process, as ``sys.path`` is."""


def _roots(first: Path) -> list[Path]:
    return [first, *(Path(entry or ".").resolve() for entry in sys.path if entry not in _ADDED)]


def _name(file: Path, base: Path) -> str:
    return file.relative_to(base).as_posix() if file.is_relative_to(base) else file.name


def _imports(file: Path) -> list[tuple[str, int]] | None:
    """(dotted name, level) of all imports; ``a.*`` for everything directly in a package. None = cannot be told."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, OSError):
        return None
    found: list[tuple[str, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(f"{node.module or ''}.{alias.name}".lstrip("."), node.level) for alias in node.names]
        elif isinstance(node, ast.Call) and _called(node.func) in _DYNAMIC:
            name = node.args[0] if node.args else None
            if not (isinstance(name, ast.Constant) and isinstance(name.value, str)) or name.value.startswith("."):
                return None
            found.append((name.value, 0))
    return found


def _called(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _files_of(name: str, level: int, importer: Path, base: Path, roots: Sequence[Path]) -> Iterator[_Found]:
    """The files that importing ``name`` runs: the packages on the way, and the module."""
    parts = name.split(".")
    if level:
        place: Path | None = importer.parents[min(level, len(importer.parents)) - 1]
    else:
        place = _place_of(parts[0], roots)
        base = place or base
    if place is None or (not level and parts[0] == "optkit") or _installed(place):
        return
    init = place / "__init__.py"
    if level and init.is_file():
        yield init, base
    for part in parts:
        if part == "*":
            yield from ((file, base) for file in sorted(place.glob("*.py")))
            return
        place = place / part
        file = _file_of(place)
        if file is not None:
            yield file, base


def _place_of(name: str, roots: Sequence[Path]) -> Path | None:
    """The folder that holds a top-level module: a file wins over a folder without ``__init__.py``, as in Python."""
    file = next((folder for folder in roots if _file_of(folder / name) is not None), None)
    return file or _hooked(name) or next((folder for folder in roots if (folder / name).is_dir()), None)


def _file_of(place: Path) -> Path | None:
    """Of ``a/b``: ``a/b/__init__.py``, else ``a/b.py``."""
    for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
        if file.is_file():
            return file
    return None


def _hooked(name: str) -> Path | None:
    """The folder of a top-level module that only an import hook knows (editable installs)."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    file = Path(spec.origin)
    folder = file.parents[1] if file.name == "__init__.py" else file.parent
    return None if str(folder) in _ADDED else folder


def _installed(folder: Path) -> bool:
    folder = folder.resolve()
    named = not {"site-packages", "dist-packages"}.isdisjoint(folder.parts)
    return named or any(folder.is_relative_to(library) for library in _libraries())


@cache
def _libraries() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    return tuple({Path(paths[key]).resolve() for key in ("stdlib", "platstdlib", "purelib", "platlib")})


def _below(folder: Path) -> list[Path]:
    """The first Python files below a folder, by name; no hidden folders, and no environments."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        kept = [name for name in folders if not name.startswith(".") and name not in ("site-packages", "__pycache__")]
        folders[:] = sorted(name for name in kept if not Path(place, name, "pyvenv.cfg").exists())
        found += [Path(place, name) for name in sorted(names) if name.endswith(".py")]
        if len(found) >= FILES_AT_MOST:
            break
    return found[:FILES_AT_MOST]
