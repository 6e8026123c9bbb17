"""Facts as JSON: one envelope for every verb; non-finite numbers become null and are named in ``nonfinite``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from optkit.errors import OptkitError


class ErrorFacts(BaseModel):
    """What went wrong, in the envelope."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    kind: str
    """Class of the error in kebab-case, e.g. ``recipe-error``."""
    message: str
    """What happened."""
    expected: str
    """What was expected; may be empty."""
    fix: str
    """What to do; may be empty."""
    file: str | None
    """The file at fault."""
    line: int | None
    """From 1."""
    column: int | None
    """From 1."""


class Envelope(BaseModel):
    """What every ``--json`` prints, also on failure."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, use_attribute_docstrings=True)

    schema_version: int = Field(default=1, alias="schema")
    """Of this format."""
    verb: str
    """The verb that printed it."""
    ok: bool
    """Whether the exit code is 0."""
    exit_code: int
    """0 fine, 1 bug, 2 usage, 3 something given is wrong, 4 accuracy, 5 budget, 130 interrupted, 143 terminated."""
    error: ErrorFacts | None = None
    """None when all went well."""
    result: Any = None
    """The verb's own facts; of optimize the manifest, of check its verdict."""
    nonfinite: dict[str, str] = Field(default_factory=dict)
    """Path in ``result`` -> inf, -inf or nan, for the floats that stand as null."""


def output_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of every ``--json``: the envelope, and what stands in it as ``result``."""
    from optkit.bench.facts import BenchFacts
    from optkit.bench.profile_facts import ProfileFacts
    from optkit.model.manifest import Manifest, Verdict
    from optkit.report.doctor import Diagnosis
    from optkit.report.inspect import Inspection
    from optkit.report.run import RunFacts
    from optkit.report.sensitivity import SensitivityFacts

    kinds: list[type[BaseModel]] = [Manifest, Verdict, RunFacts, BenchFacts, ProfileFacts, SensitivityFacts]
    kinds += [Inspection, Diagnosis]
    schema = Envelope.model_json_schema(by_alias=True, mode="serialization")
    definitions = schema.setdefault("$defs", {})
    for kind in kinds:
        own = _nullable(kind.model_json_schema(mode="serialization"))
        definitions.update(own.pop("$defs", {}))
        definitions[kind.__name__] = own
    schema["properties"]["result"] = {
        "description": "optimize: Manifest; check and run --against: Verdict; run: RunFacts; bench: BenchFacts; "
        "profile: ProfileFacts; sensitivity: SensitivityFacts; inspect: Inspection; doctor: Diagnosis; "
        "other verbs: their own facts",
        "anyOf": [*({"$ref": f"#/$defs/{kind.__name__}"} for kind in kinds), {}],
    }
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "optkit --json, schema 1"
    return schema


def _nullable(node: Any) -> Any:
    """The schema with null wherever a number may stand: that is what ``dump`` makes of infinite ones."""
    if isinstance(node, list):
        return [_nullable(each) for each in node]
    if not isinstance(node, dict):
        return node
    made = {key: _nullable(each) for key, each in node.items()}
    return made | {"type": ["number", "null"]} if node.get("type") == "number" else made


def envelope(verb: str, result: Any = None, error: BaseException | None = None) -> dict[str, Any]:
    """The envelope as plain data."""
    code = 0 if error is None else getattr(error, "exit_code", 1)
    facts = None if error is None else _error(error)
    body = Envelope(verb=verb, ok=code == 0, exit_code=code, error=facts, result=plain(result))
    return body.model_dump(mode="python", by_alias=True)


def dump(value: Any) -> str:
    """Any facts as indented JSON; non-finite floats become null, and the outermost ``nonfinite`` says which."""
    flags: dict[str, str] = {}
    cleaned = _finite(plain(value), "", flags)
    if flags and isinstance(cleaned, dict) and "nonfinite" in cleaned:
        cleaned["nonfinite"] = flags
    text = json.dumps(cleaned, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # file names that are no text: as \\udcff


def plain(value: Any) -> Any:
    """Models, dataclasses, paths, tuples, numpy scalars and arrays as dicts, strings, lists and numbers."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="python", by_alias=True))
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value.tolist() if hasattr(value, "tolist") else value


def _finite(value: Any, path: str, flags: dict[str, str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        flags[path.lstrip(".")] = str(value)
        return None
    if isinstance(value, dict):
        return {key: _finite(item, f"{path}.{key}", flags) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item, f"{path}.{index}", flags) for index, item in enumerate(value)]
    return value


def _error(error: BaseException) -> ErrorFacts:
    if isinstance(error, OptkitError):
        return ErrorFacts(
            kind=error.kind,
            message=error.message,
            expected=error.expected,
            fix=error.fix,
            file=error.file,
            line=error.line,
            column=error.column,
        )
    return ErrorFacts(
        kind="bug",
        message=f"{type(error).__name__}: {error}",
        expected="",
        fix="please report it, with the log file",
        file=None,
        line=None,
        column=None,
    )
