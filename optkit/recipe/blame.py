"""Turns a mistake in a recipe into one sentence with its place: file, line and column, or the ``--set`` text."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from optkit.data.preprocess import parse_preprocess
from optkit.data.yaml_file import Document, KeyPath
from optkit.errors import OptkitError, PackageError, RecipeError, UsageError
from optkit.evaluate.metrics import load_metric
from optkit.model.signature import parse_signature
from optkit.passes._base import FRAME_KEYS
from optkit.recipe.recipe import Recipe, Step

_INSTANCE = re.compile("a valid dictionary or instance of \\w+")
"""pydantic's words for a mapping."""
_KEY = "[key]"
"""How pydantic marks that a mapping's key is wrong, not its value."""


def blame(document: Document, path: KeyPath, message: str, expected: str, fix: str = "") -> OptkitError:
    """The error for what stands at ``path``: a RecipeError with its place, or a UsageError naming the ``--set``."""
    text = document.set_by(path)
    if text is not None:
        return UsageError(f"--set {text}: {message}", expected=expected, fix=fix)
    line, column = document.place(path)
    return RecipeError(message, expected=expected, fix=fix, file=document.file, line=line, column=column)


@contextmanager
def blaming(document: Document, path: KeyPath) -> Iterator[None]:
    """Give the errors of other rooms the place of what they complain about; a missing package has no place."""
    try:
        yield
    except PackageError:
        raise
    except OptkitError as error:
        raise blame(document, path, error.message, error.expected, error.fix) from error


def explain(details: Sequence[ErrorDetails], prefix: KeyPath, cls: type[BaseModel], document: Document) -> OptkitError:
    """A pydantic complaint as one sentence with its place and a suggestion.

    Args:
        details: of the ValidationError. The first is told; an unknown key before those that are missing, as it may be
            one of them, misspelt.
        prefix: where in the document the complaint's own path begins; empty, or the path of one pass.
        cls: the class that complained.
        document: knows the places.
    """
    detail = min(details, key=lambda each: each["type"] != "extra_forbidden")
    loc = detail["loc"]
    if prefix and loc and loc[0] in FRAME_KEYS:
        cls = Step
    if detail["type"] == "extra_forbidden":
        return _unknown_key(detail, prefix, cls, document)
    if detail["type"] == "invalid_key" or (loc and loc[-1] == _KEY):
        return _wrong_key(detail, prefix, document)
    message = detail["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list, as in [a, b]")
    message = _INSTANCE.sub("a mapping, as in {key: value}", message)
    given = "" if detail["type"] in ("missing", "value_error") else f" (given: {detail['input']!r})"
    name = ".".join(str(part) for part in loc)
    close = _closest(str(detail["input"]), _choices(detail))
    see = f"optkit passes show {prefix[-1]}" if prefix and cls is not Step else "optkit recipe schema"
    fix = f"did you mean '{close}'?" if close else f"see: {see}"
    return blame(
        document, (*prefix, *loc), f"{name or 'The recipe'}: {message}{given}.", _described(cls, loc) or message, fix
    )


def _unknown_key(detail: ErrorDetails, prefix: KeyPath, cls: type[BaseModel], document: Document) -> OptkitError:
    loc, key = detail["loc"], str(detail["loc"][-1])
    known = [*_model_at(cls, loc[:-1]).model_fields]
    of_pass = bool(prefix) and len(loc) == 1
    thing = f"The pass '{prefix[-1]}' has no option" if of_pass else "There is no key"
    known += FRAME_KEYS if of_pass else ()
    close = _closest(key, known)
    return blame(
        document,
        (*prefix, *loc),
        f"{thing} '{key}'.",
        "one of " + ", ".join(known) if known else "no options",
        f"did you mean '{close}'?" if close else "remove it",
    )


def _wrong_key(detail: ErrorDetails, prefix: KeyPath, document: Document) -> OptkitError:
    *above, name = [part for part in detail["loc"] if part != _KEY]
    key, choices = str(name), _choices(detail)
    close = _closest(key, choices)
    return blame(
        document,
        (*prefix, *above, key),
        f"There is no key '{key}' here.",
        "one of " + ", ".join(choices) if choices else "text, in quotes if it looks like a number",
        f"did you mean '{close}'?" if close else "rename or remove it",
    )


def _choices(detail: ErrorDetails) -> list[str]:
    """What pydantic says a literal may be."""
    return re.findall(r"'([^']+)'", str(detail.get("ctx", {}).get("expected", "")))


def _closest(word: str, known: list[str]) -> str:
    return next(iter(difflib.get_close_matches(word, known, n=1)), "")


def _model_at(cls: type[BaseModel], loc: tuple[str | int, ...]) -> type[BaseModel]:
    """The pydantic class that the keys of ``loc`` lead to."""
    for part in loc:
        field = cls.model_fields.get(str(part))
        candidates = [] if field is None else [field.annotation, *typing.get_args(field.annotation)]
        inner = [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]
        cls = inner[0] if inner else cls
    return cls


def _described(cls: type[BaseModel], loc: tuple[str | int, ...]) -> str:
    field = _model_at(cls, loc[:-1]).model_fields.get(str(loc[-1])) if loc else None
    return (field.description or "").replace("\n", " ") if field else ""


def check_ids(steps: list[Step], document: Document) -> None:
    """Two steps of one id, blamed on the second.

    Raises:
        RecipeError: there are.
    """
    seen: set[str] = set()
    for index, step in enumerate(steps):
        if step.id in seen:
            name = step.options.name()
            raise blame(
                document,
                ("passes", index),
                f"Two steps have the id '{step.id}'.",
                "an id of its own for each step",
                f"write '- {name}: {{id: {name}-{index + 1}}}'",
            )
        seen.add(step.id)


def check_words(recipe: Recipe, document: Document) -> None:
    """What other rooms must be able to read: input signatures, preprocessing, the name of a shipped metric.

    Raises:
        RecipeError: they cannot; with the place.
    """
    for name, spec in recipe.inputs.items():
        with blaming(document, ("inputs", name)):
            parse_signature(f"{name}={spec}")
    for name, entry in recipe.preprocess.items():
        with blaming(document, ("preprocess", name)):
            parse_preprocess({name: entry})
    metric = recipe.metric
    code = ":" in str(metric.get("name") if isinstance(metric, Mapping) else metric)
    if metric is not None and not code:
        with blaming(document, ("metric",)):
            load_metric(metric, allow_code=False)
