"""YAML with places: every value knows its line and column, duplicate keys are errors, ``1e-3`` is a number."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from optkit.errors import RecipeError

KeyPath = tuple[str | int, ...]

_FLOAT = re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)$")


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``1e-3`` as the number that YAML 1.2 says it is."""


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

    def place(self, path: KeyPath) -> tuple[int | None, int | None]:
        """Line and column of the nearest ancestor of ``path`` that has a mark."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.marks:
                return self.marks[path[:end]]
        return (None, None)


def parse_yaml(text: str, file: str) -> Document:
    """Parse one YAML document.

    Raises:
        RecipeError: a syntax error or a duplicate key, with file, line and column.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        marks: dict[KeyPath, tuple[int, int]] = {}
        if node is not None:
            _walk(node, (), marks, file)
        data = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise RecipeError(
            f"This is not valid YAML: {error.problem or error.context}.",
            expected="YAML mappings and lists, indented with spaces",
            fix="look at this line and the one before it",
            file=file,
            line=mark.line + 1 if mark else None,
            column=mark.column + 1 if mark else None,
        ) from error
    except yaml.YAMLError as error:
        raise RecipeError(
            f"This is not valid YAML: {error}.", expected="a text file", fix="check the file", file=file
        ) from error
    finally:
        loader.dispose()
    return Document(data, file, marks)


def read_yaml(path: Path) -> Document:
    """Parse the YAML file at ``path``.

    Raises:
        RecipeError: it cannot be read, or see ``parse_yaml``.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(
            "The file is no UTF-8 text.", expected="a YAML file", fix="check the path", file=path
        ) from error
    except OSError as error:
        raise RecipeError(
            f"The file cannot be read: {error.strerror}.", expected="a YAML file", fix="check the path", file=path
        ) from error
    return parse_yaml(text, str(path))


def parse_value(text: str) -> Any:
    """One value as YAML reads it: ``0.5`` -> float, ``[1, 2]`` -> list, ``abc`` -> str."""
    return parse_yaml(text, "--set").data


def _walk(node: yaml.Node, path: KeyPath, marks: dict[KeyPath, tuple[int, int]], file: str) -> None:
    marks.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, (*path, index), marks, file)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                raise RecipeError(
                    f"The key '{name}' stands here a second time.",
                    expected=f"each key once (the first one is on line {seen[name]})",
                    fix="remove one of the two",
                    file=file,
                    line=line,
                    column=key.start_mark.column + 1,
                )
            seen[name] = line
            marks[(*path, name)] = (line, key.start_mark.column + 1)
            _walk(value, (*path, name), marks, file)
