"""A recipe: passes, data and limits, loaded from YAML or built in Python."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from optkit.data.spec import DataSource, Split
from optkit.evaluate.judge import OutputOptions
from optkit.evaluate.limits import Limits
from optkit.model.model import Form
from optkit.model.target import Target
from optkit.passes._base import FRAME_KEYS, Pass
from optkit.passes._registry import find
from optkit.passes._train.training import Training


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, arbitrary_types_allowed=True)


class When(_Frozen):
    """The step runs only where all of this holds."""

    form: Form | None = None
    """The form the model has at this point of the chain."""
    provider: str | None = None
    """Short name of the target's execution provider."""


class Step(_Frozen):
    """One entry of ``passes:``."""

    id: str
    """Unique name of the step; default: the pass's name."""
    options: Pass
    """The pass itself."""
    required: bool = False
    """Having no effect is an error, and so is being rolled back, also as measured slower (unless ``keep: always``)."""
    keep: Literal["measured", "always"] = "measured"
    """measured: rolled back when it was meant for speed and is measured slower; always: kept all the same."""
    when: When = When()
    """Condition on form or provider."""

    @classmethod
    def of(cls, entry: Step | Pass | str | Mapping[str, Any]) -> Step:
        """A step from what a recipe may write: a name, ``{name: options}``, a Pass, or a Step."""
        if isinstance(entry, Step):
            return entry
        if isinstance(entry, Pass):
            return cls(id=entry.name(), options=entry)
        name, config = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
        config = dict(config or {})
        frame = {key: config.pop(key) for key in FRAME_KEYS if key in config}
        return cls(**{"id": name, **frame}, options=find(name).model_validate(config))

    def resolved(self) -> dict[str, Any]:
        """As a recipe entry with every default spelled out."""
        frame = self.model_dump(mode="json", exclude={"options"}, exclude_none=True)
        if not frame["when"]:
            del frame["when"]
        return {self.options.name(): {**frame, **self.options.model_dump(mode="json")}}


class TargetSpec(_Frozen):
    """The machine the result is for."""

    provider: str = "cpu"
    """Short name of the execution provider: cpu, cuda, tensorrt, openvino, directml, coreml, ..."""
    threads: int = Field(default=0, ge=0)
    """Intra-op threads; 0 = as many as the process may use."""
    shapes: dict[str, int] = Field(default_factory=dict)
    """Sizes of dynamic dimensions to measure at: ``{batch: 8, seq: 128}``."""

    def target(self) -> Target:
        """The same as the other rooms take it."""
        return Target(self.provider, self.threads, dict(self.shapes))


class Recipe(_Frozen):
    """What to do with a model, on which data, within which limits."""

    version: Literal[1] = 1
    """Of the recipe format."""
    name: str = "recipe"
    """Names the default output folder: MODEL.NAME/."""
    description: str = ""
    """One line for ``optkit recipe list``."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Input name -> dtype[dims], for models that do not say it: ``{x: 'float32[batch,3,224,224]'}``."""
    data: dict[Split, DataSource] = Field(default_factory=dict)
    """Split -> source."""
    preprocess: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Input name -> how raw images or texts become tensors."""
    outputs: dict[str, OutputOptions] = Field(default_factory=dict)
    """Output name -> mask, pool or class options of the comparison."""
    metric: str | dict[str, Any] | None = None
    """Task metric: a name, ``{name, args}`` or ``pkg.module:Class``."""
    target: TargetSpec = TargetSpec()
    """The machine the result is for."""
    passes: list[Step] = Field(default_factory=list)
    """The chain, in order."""
    limits: Limits = Limits()
    """What the result must hold."""
    train: Training = Training()
    """How the passes that train go about it."""

    _base: Path = PrivateAttr(default_factory=Path.cwd)

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if re.fullmatch(r"[\w.-]+", name) is None or not name.strip("."):
            raise ValueError(f"'{name}' is no plain word (letters, digits, '_', '-', '.')")
        return name

    @field_validator("passes", mode="before")
    @classmethod
    def _steps(cls, entries: Iterable[Any]) -> list[Step]:
        return [Step.of(entry) for entry in entries]

    @field_validator("data", mode="before")
    @classmethod
    def _sources(cls, entries: Any) -> Any:
        if not isinstance(entries, Mapping):
            return entries
        return {split: {"source": spec} if isinstance(spec, str) else spec for split, spec in entries.items()}

    @model_validator(mode="after")
    def _unique_ids(self) -> Recipe:
        ids = [step.id for step in self.passes]
        for name in ids:
            if ids.count(name) > 1:
                raise ValueError(f"two steps have the id '{name}'; give one of them an id of its own")
        return self

    @property
    def base(self) -> Path:
        """The folder that relative paths in the recipe count from."""
        return self._base

    @property
    def exact(self) -> bool:
        """True when no pass may move the outputs beyond float noise."""
        return all(step.options.kind == "exact" for step in self.passes)

    @classmethod
    def load(cls, name_or_file: str | Path, sets: Iterable[str] = ()) -> Recipe:
        """Load a recipe file, or a shipped one by name, with ``KEY=VALUE`` overrides.

        Raises:
            RecipeError: no such recipe, or a mistake in it with file, line, column and suggestion.
        """
        from optkit.recipe.load import load_recipe

        return load_recipe(str(name_or_file), sets)

    def rooted(self, base: Path) -> Recipe:
        """The same recipe with relative paths counting from ``base``, and files of code found there."""
        metric = self.metric
        if isinstance(metric, dict) and "name" in metric:
            metric = {**metric, "name": absolute(str(metric["name"]), base)}
        metric = absolute(metric, base) if isinstance(metric, str) else metric
        function = self.train.function and absolute(self.train.function, base)
        train = self.train.model_copy(update={"function": function})
        passes = [
            step.model_copy(update={"options": step.options.rooted(lambda name: absolute(name, base))})
            for step in self.passes
        ]
        copy = self.model_copy(update={"metric": metric, "train": train, "passes": passes})
        copy._base = base
        return copy

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default spelled out, as plain data that loads again."""
        plain = self.model_dump(mode="json", exclude={"passes", "data"}, exclude_none=True)
        plain["limits"] = self.limits.plain()
        plain["data"] = {
            split: rooted_source(source, self.base).model_dump(mode="json", exclude_none=True)
            for split, source in self.data.items()
        }
        for entry in plain["preprocess"].values():
            if "tokenizer" in entry:
                entry["tokenizer"] = absolute(str(entry["tokenizer"]), self.base)
        order = list(type(self).model_fields)
        plain["passes"] = [step.resolved() for step in self.passes]
        return {key: plain[key] for key in order if key in plain}

    def text(self) -> str:
        """The resolved recipe as YAML, with the default limits as a comment."""
        import yaml

        resolved = yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True, width=110)
        return f"{resolved}# limits where none is stated: {Limits().resolved(self.exact).describe()}\n"


def rooted_source(source: DataSource, base: Path) -> DataSource:
    """The source with its paths made absolute."""
    labels = None if source.labels is None else absolute(source.labels, base)
    return source.model_copy(update={"source": absolute(source.source, base), "labels": labels})


def absolute(reference: str, base: Path) -> str:
    """A path, or the file of ``FILE.py:name``, counted from ``base``; what is no file there stays as it is."""
    place, colon, _ = reference.rpartition(":")
    file = place if colon and place.endswith(".py") else reference
    path = base / Path(file).expanduser()
    return str(path.resolve()) + reference[len(file) :] if path.exists() else reference
