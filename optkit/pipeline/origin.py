"""What a bundle's manifest says about how its model came to be, once it is known to be that model's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, TypeAdapter

from optkit.data.spec import DataSource
from optkit.errors import GivenError, ModelError, PackageError
from optkit.model.bundle_facts import reading_manifest
from optkit.model.machine import differences
from optkit.model.manifest import Environment, Manifest
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.passes import _registry
from optkit.passes._base import Pass
from optkit.pipeline.environment import environment
from optkit.recipe.recipe import Recipe


@dataclass(frozen=True)
class Origin:
    """The manifest beside a model, and what of its recipe counts again."""

    file: Path
    manifest: Manifest
    recipe: Recipe
    """Without its passes, which may be of packages that are not installed here."""
    seed: int

    @property
    def exact(self) -> bool:
        """Whether the whole chain was exact; a pass that is not installed here is not assumed to be."""
        return all(pass_ is not None and pass_.kind == "exact" for pass_ in self._kept())

    @property
    def declared(self) -> tuple[tuple[str, ...], frozenset[str]]:
        """The outputs that the passes removed, and what they may have changed."""
        dropped = self.manifest.verdict.dropped_outputs
        allowed = {aspect for pass_ in self._kept() if pass_ is not None for aspect in pass_.may_change}
        return dropped, frozenset(allowed | ({"outputs"} if dropped else set()))

    @property
    def metric(self) -> str | dict[str, Any] | None:
        """The recipe's metric; code only a flag may name."""
        metric = self.recipe.metric
        name = metric.get("name") if isinstance(metric, Mapping) else metric
        return None if ":" in str(name) else metric

    @property
    def data(self) -> dict[str, DataSource]:
        """The recipe's data for a verdict, where they still are on this machine; never code."""
        return {
            split: source
            for split, source in self.recipe.data.items()
            if split in ("evaluation", "search", "fit") and source.format != "function" and Path(source.source).exists()
        }

    @property
    def carved(self) -> bool:
        """Whether the search split was a part of these evaluation data, on which no verdict was given."""
        return "evaluation" in self.data and "search" not in self.recipe.data

    @property
    def exporter(self) -> Pass | None:
        """The pass that exported the original, where the bundle's chain had one.

        Raises:
            GivenError: it is not installed here, or the manifest's options are not its own.
        """
        for step in self.manifest.steps:
            if step.status == "changed":
                found = _registry.find(step.name)
                if found.forms.get("torch") == "onnx":
                    with reading_manifest(self.file):
                        return found.model_validate(step.config)
        return None

    def _kept(self) -> Iterator[type[Pass] | None]:
        """The passes behind the bundle; None for one that is not installed here."""
        for step in self.manifest.steps:
            if step.status == "changed":
                try:
                    yield _registry.find(step.name)
                except GivenError:
                    yield None


def read_origin(model: Model, *, bundle: bool) -> Origin | None:
    """The manifest beside a model, if it is of that model, by its digest.

    Args:
        model: opened.
        bundle: whether the folder was given, so that a manifest that is not the model's is an error.

    Raises:
        ModelError: it is the model's and cannot be read, or the bundle's is of another model.
    """
    file = model.path.parent / "manifest.json"
    if model.form == "torch" or not file.is_file():
        return None
    stated = _plain(file)
    if _digest(stated) != model.digest:
        if bundle:
            raise ModelError(
                f"The manifest is of another model than the {model.path.name} beside it.",
                expected="a bundle as optkit wrote it",
                fix=f"make the bundle again, or give its model alone: {model.path}",
                file=file,
            )
        return None

    with reading_manifest(file):
        manifest = Manifest.model_validate(stated)
        recipe = Recipe.model_validate({key: value for key, value in manifest.recipe.items() if key != "passes"})
        seed = TypeAdapter(NonNegativeInt).validate_python(manifest.options.get("seed", 0))
        return Origin(file, manifest, recipe, seed)


def decided_elsewhere(origin: Origin | None, target: Target) -> str:
    """Empty, or a sentence that the bundle's decisions were measured on another machine than this one.

    Args:
        origin: of the model that runs here; None = not a bundle.
        target: what it runs on here.
    """
    steps = origin.manifest.steps if origin else ()
    measured = [each for step in steps for each in step.decisions if each.speedup is not None]
    if origin is None or not measured:
        return ""
    there, here = origin.manifest.environment, environment(target)
    found = differences(there, here)
    if not found:
        return ""
    those, these = zip(*found, strict=True)
    subject = "decision of this bundle was" if len(measured) == 1 else f"{len(measured)} decisions of this bundle were"
    return (
        f"The {subject} measured on {_named(there, those)}, and this is {_named(here, these)}: "
        "'optkit optimize --remeasure' here would choose for this machine."
    )


def _named(machine: Environment, facts: Iterable[str]) -> str:
    """``Some CPU (2 physical cores)``."""
    more = ", ".join(fact for fact in facts if fact != machine.cpu)
    return f"{machine.cpu} ({more})" if more else machine.cpu


def default_exporter() -> Pass:
    """The first of optkit's own passes that exports torch to ONNX.

    Raises:
        PackageError: there is none.
    """
    for name in _registry.own_names():
        found = _registry.find(name)
        if found.forms.get("torch") == "onnx":
            return found()
    raise PackageError("No pass exports torch to ONNX.", expected="one", fix="install optkit again")


def _plain(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return None


def _digest(stated: Any) -> Any:
    """As it stands in what may be anything."""
    result = stated.get("result") if isinstance(stated, dict) else None
    return result.get("digest") if isinstance(result, dict) else None
