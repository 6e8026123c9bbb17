"""YAML with places: lines and columns, keys that stand twice, numbers, and text that is no YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optkit.data.yaml_file import parse_value, parse_yaml, read_yaml
from optkit.errors import RecipeError

TEXT = """\
version: 1
passes:
  - simplify
  - quantize-dynamic:
      per_channel: true
limits: {cosine: 0.99, labelled: {metric_drop: 0.01}}
"""


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ((), (1, 1)),
        (("version",), (1, 1)),
        (("passes",), (2, 1)),
        (("passes", 0), (3, 5)),
        (("passes", 1, "quantize-dynamic"), (4, 5)),
        (("passes", 1, "quantize-dynamic", "per_channel"), (5, 7)),
        (("passes", 1, "quantize-dynamic", "nothing", "here"), (4, 5)),
        (("limits", "cosine"), (6, 10)),
        (("limits", "labelled", "metric_drop"), (6, 35)),
    ],
)
def test_every_value_knows_its_place(path: tuple[str | int, ...], place: tuple[int, int]) -> None:
    assert parse_yaml(TEXT, "r.yaml").place(path) == place


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E+3", 1000.0),
        ("-2.5e-1", -0.25),
        ("+.5e1", 5.0),
        ("1_000e-3", 1.0),
        ("12", 12),
        ("0.5", 0.5),
        ("true", True),
        ("null", None),
        ("", None),
        ("abc", "abc"),
        ("'1e-3'", "1e-3"),
        ("e5", "e5"),
        ("1e", "1e"),
        ("1.2.3", "1.2.3"),
        ("[1, 2e-2]", [1, 0.02]),
        ("{max: 5e-3, by: bound}", {"max": 0.005, "by": "bound"}),
    ],
)
def test_values(text: str, value: Any) -> None:
    found = parse_value(text)
    assert found == value and type(found) is type(value)


def test_the_loader_of_others_is_left_alone() -> None:
    import yaml

    assert yaml.safe_load("1e-3") == "1e-3"


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, 1, "'a' stands here a second time"),
        ("x:\n  - {b: 1, c: 2, b: 3}\n", 2, 18, "'b' stands here a second time"),
        ("a: {b: 1\nc: 2\n", 2, 2, "expected ',' or '}'"),
        ("a:\n\t- b\n", 2, 1, "cannot start any token"),
        ("a: b: c\n", 1, 5, "mapping values are not allowed"),
        ("a: 'open\n", 2, 1, "unexpected end"),
        ("a: *gone\n", 1, 4, "undefined alias"),
        ("a: 1\n---\nb: 2\n", 2, 1, "another document"),
        ("a: !!python/name:os.system x\n", 1, 4, "could not determine a constructor"),
        ("ok: 1\nday: 2020-13-45\n", 2, 6, "month must be in 1..12"),
        ("n: !!int three\n", 1, 4, "invalid literal for int()"),
        ("a: &a\n  - *a\n", 1, 4, "contains itself"),
        ("a: &a {b: {c: *a}}\n", 1, 4, "contains itself"),
        ("? [a, b]\n: 1\n", 1, 3, "unhashable key"),
    ],
)
def test_mistakes_have_a_place(text: str, line: int, column: int, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text, "r.yaml")
    error = caught.value
    assert (error.file, error.line, error.column) == ("r.yaml", line, column)
    assert words in error.message and error.expected and error.fix
    assert str(error).startswith(f"r.yaml:{line}:{column}: ")


def test_an_alias_that_is_used_twice_is_fine_and_walked_once() -> None:
    text = "a: &a {x: 1}\n" + "".join(
        f"{name}: &{name} [*{before}, *{before}]\n"
        for before, name in zip("abcdefghijklmnopqrstuvw", "bcdefghijklmnopqrstuvwx", strict=True)
    )
    document = parse_yaml(text, "r.yaml")
    assert document.data["b"] == [{"x": 1}, {"x": 1}] and len(document.marks) < 100


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"a: \xff\xfe", "no UTF-8 text"), (b"a: \x00", "#x0000"), (b"\x89PNG\r\n", "no UTF-8 text")],
)
def test_files_that_are_no_text(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=words) as caught:
        read_yaml(tmp_path / "r.yaml")
    assert caught.value.file == str(tmp_path / "r.yaml")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)


def test_an_empty_file_is_no_mistake_of_yaml() -> None:
    assert parse_yaml("", "r.yaml").data is None
    assert parse_yaml("", "r.yaml").place(("a",)) == (None, None)
