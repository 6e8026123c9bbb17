"""YAML with places: every value knows its line and column, duplicate keys are errors, ``1e-3`` is a number."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from optkit.errors import GivenError, RecipeError

KeyPath = tuple[str | int, ...]

_FLOAT = re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)$")


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``1e-3`` as the number that YAML 1.2 says it is, and blames the line of an odd value."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """What looks like a date or a number and is none (``2020-13-45``) comes out of PyYAML as a bare ValueError."""
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error


# PyYAML keeps its resolvers in a dict of lists shared with the parent class: copy before adding.
_Loader.yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


@dataclass(frozen=True)
class Document:
    """A parsed file, and where each of its values stands."""

    data: Any
    file: str
    marks: dict[KeyPath, tuple[int, int]] = field(default_factory=dict)
    """Key path -> line and column, both from 1. For mappings' values the place of their key."""
    sets: dict[KeyPath, str] = field(default_factory=dict)
    """Key path -> the ``--set`` text that wrote it."""

    def set_by(self, path: KeyPath) -> str | None:
        """The ``--set`` that wrote ``path``, an ancestor of it, or what alone stands below it; None = the file did."""
        found = [text for key, text in self.sets.items() if path[: len(key)] == key]
        if not found and path not in self.marks:
            found = [text for key, text in self.sets.items() if key[: len(path)] == path]
        return found[-1] if found else None

    def place(self, path: KeyPath) -> tuple[int | None, int | None]:
        """Line and column of the nearest ancestor of ``path`` that has a mark."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.marks:
                return self.marks[path[:end]]
        return (None, None)


def parse_yaml(text: str, file: str, blame: type[GivenError] = RecipeError) -> Document:
    """Parse one YAML document; errors are of class ``blame``.

    Raises:
        GivenError: a syntax error or a duplicate key, with file, line and column.
    """
    marks: dict[KeyPath, tuple[int, int]] = {}
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                _Places(marks, file, blame).walk(node, ())
            data = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise blame(
            f"This is not valid YAML: {error.problem or error.context}.",
            expected="YAML mappings and lists, indented with spaces",
            fix="look at this line and the one before it",
            file=file,
            line=mark.line + 1 if mark else None,
            column=mark.column + 1 if mark else None,
        ) from error
    except yaml.YAMLError as error:
        raise blame(
            f"This is not valid YAML: {str(error).splitlines()[0]}.",
            expected="a text file",
            fix="check the path",
            file=file,
        ) from error
    return Document(data, file, marks)


def read_yaml(path: Path, blame: type[GivenError] = RecipeError) -> Document:
    """Parse the YAML file at ``path``; errors are of class ``blame``.

    Raises:
        GivenError: it cannot be read, or see ``parse_yaml``.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise blame("The file is no UTF-8 text.", expected="a YAML file", fix="check the path", file=path) from error
    except OSError as error:
        raise blame(
            f"The file cannot be read: {error.strerror}.", expected="a YAML file", fix="check the path", file=path
        ) from error
    return parse_yaml(text, str(path), blame)


def parse_value(text: str) -> Any:
    """One value as YAML reads it: ``0.5`` -> float, ``[1, 2]`` -> list, ``abc`` -> str."""
    return parse_yaml(text, "--set").data


class _Places:
    """Notes where every value stands, and refuses keys that stand twice and values that contain themselves."""

    def __init__(self, marks: dict[KeyPath, tuple[int, int]], file: str, blame: type[GivenError]) -> None:
        self._marks = marks
        self._file = file
        self._blame = blame
        self._open: set[int] = set()
        self._done: set[int] = set()

    def walk(self, node: yaml.Node, path: KeyPath) -> None:
        """Note ``node`` and all below it; what several aliases name is walked once."""
        self._marks.setdefault(path, _place(node))
        if id(node) in self._open:
            raise self._error("This value contains itself.", "values that end somewhere", "remove the alias", node)
        if id(node) in self._done:
            return
        self._open.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.walk(item, (*path, index))
        elif isinstance(node, yaml.MappingNode):
            self._mapping(node, path)
        self._open.remove(id(node))
        self._done.add(id(node))

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> None:
        seen: dict[str, int] = {}
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                raise self._error(
                    f"The key '{name}' stands here a second time.",
                    f"each key once (the first one is on line {seen[name]})",
                    "remove one of the two",
                    key,
                )
            seen[name] = _place(key)[0]
            self._marks[(*path, name)] = _place(key)
            self.walk(value, (*path, name))

    def _error(self, message: str, expected: str, fix: str, node: yaml.Node) -> GivenError:
        line, column = _place(node)
        return self._blame(message, expected=expected, fix=fix, file=self._file, line=line, column=column)


def _place(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1
