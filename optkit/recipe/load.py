"""From a name or a file to a Recipe; every mistake gets its file, line, column and a suggestion."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from optkit.errors import OutputError, RecipeError, UsageError
from optkit.passes._registry import find
from optkit.recipe.recipe import FRAME_KEYS, Recipe, Step
from optkit.recipe.yaml_file import Document, KeyPath, parse_value, read_yaml


def shipped_folder() -> Path:
    """Where the shipped recipes are: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def shipped() -> dict[str, Path]:
    """Name -> file of every shipped recipe."""
    return {file.stem: file for file in sorted(shipped_folder().glob("*.yaml"))}


def find_recipe(name_or_file: str) -> Path:
    """The file that ``--recipe`` means: that path if it exists, else the shipped recipe of that name.

    Raises:
        RecipeError: neither is there.
    """
    path = Path(name_or_file)
    if path.is_file():
        return path
    known = shipped()
    name = name_or_file.removesuffix(".yaml")
    if name in known:
        return known[name]
    close = difflib.get_close_matches(path.stem, known, n=1)
    raise RecipeError(
        f"There is no recipe '{name_or_file}': no such file, and no shipped recipe of that name.",
        expected="a YAML file, or one of " + ", ".join(known),
        fix=f"did you mean '{close[0]}'?" if close else "see: optkit recipe list",
    )


def write_copy(name: str, target: Path) -> Path:
    """Copy a shipped recipe as the beginning of one's own.

    Raises:
        OutputError: something is at ``target`` already, or it cannot be written.
    """
    source = find_recipe(name)
    if target.exists():
        raise OutputError(
            f"The file {target} exists already.", expected="a path where nothing is yet", fix="choose another name"
        )
    text = source.read_text().replace(f"name: {source.stem}", f"name: {target.stem}", 1)
    try:
        target.write_text(f"# Started from the shipped recipe {source.stem}; all options: optkit passes list\n{text}")
    except OSError as error:
        raise OutputError(
            f"{target} cannot be written: {error.strerror}.", expected="a writable folder", fix="choose another path"
        ) from error
    return target


def load_recipe(name_or_file: str, sets: Iterable[str] = ()) -> Recipe:
    """Load and check a recipe; ``sets`` are ``passes.ID.field=value`` overrides.

    Raises:
        RecipeError: see ``find_recipe``; or a mistake inside, with its place.
        UsageError: an override that cannot be read.
    """
    path = find_recipe(name_or_file)
    document = read_yaml(path)
    if not isinstance(document.data, dict):
        raise RecipeError(
            "The recipe is empty or no mapping.",
            expected="version: 1, and passes: [...]",
            fix="start from: optkit recipe init my.yaml",
            file=path,
            line=1,
        )
    if not document.data.get("passes") or not isinstance(document.data["passes"], list):
        raise _error(document, ("passes",), "The recipe has no passes.", "passes: a list with at least one pass")
    for text in sets:
        _apply(document.data, text, document)
    return build_recipe(document, base=path.resolve().parent, name=path.stem)


def build_recipe(document: Document, *, base: Path, name: str) -> Recipe:
    """Check a parsed document into a Recipe.

    Raises:
        RecipeError: with file, line, column and a suggestion.
    """
    data = {"name": name, **document.data}
    steps = [_step(entry, index, document) for index, entry in enumerate(data.get("passes") or [])]
    try:
        return Recipe.model_validate({**data, "passes": steps}).rooted(base)
    except ValidationError as error:
        raise _explain(error.errors()[0], (), Recipe, document) from error


def _step(entry: Any, index: int, document: Document) -> Step:
    path: KeyPath = ("passes", index)
    if isinstance(entry, dict) and len(entry) == 1:
        name, config = next(iter(entry.items()))
    else:
        name, config = entry, {}
    if not isinstance(name, str) or not isinstance(config, dict | None):
        raise _error(
            document,
            path,
            "This step is no pass.",
            "a name ('- simplify') or a name with options ('- quantize-dynamic: {per_channel: true}')",
            "write one pass an entry, its options in braces or indented below it",
        )
    try:
        cls = find(name)
    except RecipeError as error:
        line, column = document.place((*path, name))
        raise RecipeError(
            error.message, expected=error.expected, fix=error.fix, file=document.file, line=line, column=column
        ) from error
    try:
        return Step.of({name: config})
    except ValidationError as error:
        raise _explain(error.errors()[0], (*path, name), cls, document) from error


def _explain(detail: ErrorDetails, prefix: KeyPath, cls: type[BaseModel], document: Document) -> RecipeError:
    """A pydantic complaint as one sentence with its place and a suggestion."""
    where = (*prefix, *detail["loc"])
    key = str(detail["loc"][-1]) if detail["loc"] else ""
    if detail["type"] == "extra_forbidden":
        owner = _model_at(cls, detail["loc"][:-1])
        known = [*owner.model_fields, *(FRAME_KEYS if prefix and len(detail["loc"]) == 1 else ())]
        close = difflib.get_close_matches(key, known, n=1)
        thing = f"The pass '{prefix[-1]}' has no option" if prefix else "There is no key"
        return _error(
            document,
            where,
            f"{thing} '{key}'.",
            "one of " + ", ".join(known) if known else "no options",
            f"did you mean '{close[0]}'?" if close else "remove it",
        )
    message = detail["msg"].removeprefix("Value error, ")
    given = "" if detail["type"] in ("missing", "value_error") else f" (given: {detail['input']!r})"
    name = ".".join(str(part) for part in detail["loc"])
    return _error(document, where, f"{name or 'The recipe'}: {message}{given}.", _expected(cls, detail["loc"]), "")


def _model_at(cls: type[BaseModel], loc: tuple[str | int, ...]) -> type[BaseModel]:
    """The pydantic class that the keys of ``loc`` lead to."""
    for part in loc:
        field = cls.model_fields.get(str(part))
        candidates = [] if field is None else [field.annotation, *typing.get_args(field.annotation)]
        inner = [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]
        cls = inner[0] if inner else cls
    return cls


def _expected(cls: type[BaseModel], loc: tuple[str | int, ...]) -> str:
    if not loc:
        return ""
    field = _model_at(cls, loc[:-1]).model_fields.get(str(loc[-1]))
    return (field.description or "").replace("\n", " ") if field else ""


def _error(document: Document, path: KeyPath, message: str, expected: str, fix: str = "") -> RecipeError:
    line, column = document.place(path)
    return RecipeError(message, expected=expected, fix=fix, file=document.file, line=line, column=column)


def _apply(data: dict[str, Any], text: str, document: Document) -> None:
    """Write one ``a.b.c=value`` override into the parsed data."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(
            f"--set {text} cannot be read.",
            expected="KEY=VALUE, like passes.quantize-dynamic.per_channel=false or limits.cosine=0.995",
            fix="write the key, an equals sign and a YAML value",
        )
    if parts[0] == "passes":
        if len(parts) < 3:
            raise UsageError(
                f"--set {text} names no option.", expected="passes.ID.option=value", fix="name step and option"
            )
        target = _step_options(data, parts[1], text)
        parts = parts[2:]
    else:
        target = data
    for part in parts[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise UsageError(f"--set {text}: '{part}' is no mapping.", fix="set the whole value instead")
    target[parts[-1]] = parse_value(value)
    document.marks.pop(tuple(parts), None)


def _step_options(data: dict[str, Any], step_id: str, text: str) -> dict[str, Any]:
    known = []
    for index, entry in enumerate(data["passes"]):
        name = entry if isinstance(entry, str) else next(iter(entry))
        options = {} if isinstance(entry, str) else dict(entry[name] or {})
        known.append(str(options.get("id", name)))
        if known[-1] == step_id:
            data["passes"][index] = {name: options}
            return options
    close = difflib.get_close_matches(step_id, known, n=1)
    raise UsageError(
        f"--set {text}: the recipe has no step '{step_id}'.",
        expected="one of " + ", ".join(known),
        fix=f"did you mean '{close[0]}'?" if close else "see: optkit recipe show",
    )
