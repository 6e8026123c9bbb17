"""From a name or a file to a Recipe; every mistake gets its file, line, column and a suggestion."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from optkit.data.yaml_file import Document, KeyPath, parse_value, read_yaml
from optkit.errors import OutputError, RecipeError, UsageError
from optkit.passes._registry import find
from optkit.recipe.blame import blame, blaming, check_ids, check_words, explain
from optkit.recipe.recipe import Recipe, Step


def shipped_folder() -> Path:
    """Where the shipped recipes are: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def shipped() -> dict[str, Path]:
    """Name -> file of every shipped recipe."""
    return {file.stem: file for file in sorted(shipped_folder().glob("*.yaml"), key=lambda file: file.stem)}


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
    name = yaml.safe_dump({"name": _plain(target)}, allow_unicode=True).strip()
    text = source.read_text(encoding="utf-8").replace(f"name: {source.stem}", name, 1)
    try:
        head = f"# Started from the shipped recipe {source.stem}; a pass and its options: optkit passes show NAME\n"
        target.write_text(head + text, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"{target} cannot be written: {error.strerror}.", expected="a writable folder", fix="choose another path"
        ) from error
    return target


def load_recipe(name_or_file: str, sets: Iterable[str] = ()) -> Recipe:
    """Load and check a recipe; ``sets`` are ``passes.ID.field=value`` overrides.

    Raises:
        RecipeError: see ``find_recipe``; or a mistake inside, with its place.
        UsageError: an override that cannot be read, or whose value does not fit.
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
    passes = document.data.get("passes")
    if not passes or not isinstance(passes, list):
        message = "The recipe has no passes." if not passes else "What stands under 'passes' is no list."
        fix = "write each pass on a line of its own: '  - simplify'"
        raise blame(document, ("passes",), message, "passes: a list with at least one pass", fix)
    for text in sets:
        _apply(document, text)
    return build_recipe(document, base=path.resolve().parent, name=_plain(path))


def _plain(file: Path) -> str:
    """The recipe's name where it states none: the file's, as a plain word."""
    return re.sub(r"[^\w.-]+", "-", file.stem)


def build_recipe(document: Document, *, base: Path, name: str) -> Recipe:
    """Check a parsed document into a Recipe.

    Raises:
        RecipeError: with file, line, column and a suggestion.
        UsageError: the same, where a ``--set`` wrote the value.
    """
    data = {"name": name, **document.data}
    steps = [_step(entry, index, document) for index, entry in enumerate(data.get("passes") or [])]
    check_ids(steps, document)
    try:
        recipe = Recipe.model_validate({**data, "passes": steps}).rooted(base)
    except ValidationError as error:
        raise explain(error.errors(), (), Recipe, document) from error
    check_words(recipe, document)
    return recipe


def _step(entry: Any, index: int, document: Document) -> Step:
    path: KeyPath = ("passes", index)
    name, config = _entry(entry)
    if not isinstance(name, str) or not isinstance(config, dict | None):
        raise blame(
            document,
            path,
            "This step is no pass.",
            "a name ('- simplify') or a name with options ('- quantize-dynamic: {per_channel: true}')",
            "write one pass an entry, its options in braces or indented below it",
        )
    with blaming(document, (*path, name)):
        cls = find(name)
    try:
        return Step.of({name: config})
    except ValidationError as error:
        raise explain(error.errors(), (*path, name), cls, document) from error


def _entry(entry: Any) -> tuple[Any, Any]:
    """What a list entry says: a pass's name and its options."""
    if isinstance(entry, dict) and len(entry) == 1:
        return next(iter(entry.items()))
    return entry, None


def _apply(document: Document, text: str) -> None:
    """Write one ``a.b.c=value`` override into the parsed data."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(
            f"--set {text} cannot be read.",
            expected="KEY=VALUE, like passes.quantize-dynamic.per_channel=false or limits.cosine=0.995",
            fix="write the key, an equals sign and a YAML value",
        )
    path: KeyPath = ()
    target = document.data
    if parts[0] == "passes":
        if len(parts) < 3:
            raise UsageError(
                f"--set {text} names no option.", expected="passes.ID.option=value", fix="name step and option"
            )
        path, target = _step_options(document.data, parts[1], text)
        parts = parts[2:]
    for part in parts[:-1]:
        target[part] = target = _mapping(target.get(part), part, text)
    target[parts[-1]] = _set_value(value, text)
    document.sets[(*path, *parts)] = text


def _mapping(value: Any, part: str, text: str) -> dict[str, Any]:
    if value is None or isinstance(value, dict):
        return dict(value or {})
    raise UsageError(
        f"--set {text}: '{part}' is no mapping.", expected=f"options below '{part}'", fix="set the whole value instead"
    )


def _set_value(value: str, text: str) -> Any:
    try:
        return parse_value(value)
    except RecipeError as error:
        raise UsageError(
            f"--set {text} cannot be read. {error.message}", expected="KEY=VALUE with a YAML value", fix=error.fix
        ) from error


def _step_options(data: dict[str, Any], step_id: str, text: str) -> tuple[KeyPath, dict[str, Any]]:
    """Place and options of the step of that id; a bare name becomes a mapping that can be written to."""
    known = []
    for index, entry in enumerate(data["passes"]):
        name, config = _entry(entry)
        options = dict(config) if isinstance(config, dict) else {}
        known.append(str(options.get("id", name)))
        if known[-1] == step_id:
            data["passes"][index] = {name: options}
            return ("passes", index, name), options
    close = difflib.get_close_matches(step_id, known, n=1)
    raise UsageError(
        f"--set {text}: the recipe has no step '{step_id}'.",
        expected="one of " + ", ".join(known),
        fix=f"did you mean '{close[0]}'?" if close else "see: optkit recipe show",
    )
