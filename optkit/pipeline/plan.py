"""Refuses before any work: passes, packages, provider, data, limits, output; and the original runs once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

from optkit.errors import DataError, PackageError, RecipeError, UsageError
from optkit.evaluate.limits import Limits
from optkit.evaluate.metrics import needs_labels
from optkit.model.bundle import check_output
from optkit.model.machine import usable_threads
from optkit.model.model import Form, Model
from optkit.model.signature import dim_names
from optkit.model.target import Target
from optkit.passes._base import Pass
from optkit.passes._registry import missing_packages, pip_hint
from optkit.pipeline.asked import check_ending, check_shapes, spare_original
from optkit.pipeline.cache import Cache
from optkit.pipeline.contract import check_notes
from optkit.pipeline.gather import Gathered, complete_inputs, gather, implied_outputs, open_splits
from optkit.pipeline.isolate import refuse_within_import
from optkit.pipeline.job import Job
from optkit.pipeline.probe import probe
from optkit.pipeline.provable import check_provable, check_search, check_training, not_proved
from optkit.pipeline.steps import refuse, skip_by_rule
from optkit.recipe.recipe import Recipe, Step, absolute, rooted_source
from optkit.runner.providers import require

_MODEL_SUFFIXES = (".onnx", ".ort", ".pt", ".pt2", ".pth", ".ts", ".safetensors", ".bin")
"""Endings that say the format, and are no part of a model's name."""


class Options(TypedDict, total=False):
    """What ``optimize`` and ``plan`` take beside model, recipe and output."""

    factory: str | None
    """``pkg.module:fn`` or ``FILE.py:fn`` that builds the module for a state_dict."""
    signature: str | None
    """``'x=float32[batch,3,224,224]'``."""
    trust_pickle: bool
    """Allow code inside the model file to run."""
    data: Mapping[str, Any] | list[str] | None
    """Split -> path or DataSource."""
    metric: str | Mapping[str, Any] | None
    """Task metric."""
    limits: Limits | Iterable[str] | None
    """On top of the recipe's: a Limits, or ``["cosine=0.995"]``."""
    provider: str | None
    """Overrides the recipe's target."""
    threads: int | None
    """Overrides the recipe's target."""
    allow_synthetic_calibration: bool
    """Calibrate on made-up inputs where there are no data."""
    cache: Cache | None
    """Default: ``Cache.default()``."""
    seed: int
    """Of every random choice."""


@dataclass(frozen=True)
class Planned:
    """One step as it will go."""

    step: Step
    takes: Form
    gives: Form
    skip: str
    """Empty, or why it will not run."""


@dataclass(frozen=True)
class Plan:
    """A checked plan: all that is needed is there, and the original has run."""

    job: Job
    recipe: Recipe
    steps: tuple[Planned, ...]
    output: Path | None
    notes: tuple[str, ...]
    beside: Mapping[str, Any] = field(default_factory=dict)
    """Options that were given and that no recipe can state."""

    def facts(self) -> dict[str, Any]:
        """What ``--dry-run`` shows: plain data."""
        job = self.job
        return {
            "model": {"path": str(job.original.path), "form": job.original.form, "kind": job.original.kind},
            "inputs": [str(spec) for spec in job.original.signature.inputs],
            "outputs": [str(spec) for spec in job.original.signature.outputs],
            "recipe": self.recipe.name,
            "steps": [{"id": p.step.id, "takes": p.takes, "gives": p.gives, "skip": p.skip} for p in self.steps],
            "data": {
                name: {"source": data.source, "samples": data.count, "batch": data.batch, "synthetic": data.synthetic}
                for name, data in job.splits.items()
            },
            "metric": job.metric,
            "target": {"provider": job.target.provider, "threads": job.target.threads or usable_threads()},
            "output": None if self.output is None else str(self.output),
            "notes": list(self.notes),
        }


def make_plan(
    model: str | Path | Model,
    recipe: str | Path | Recipe | Pass | Sequence[Pass],
    output: str | Path | None,
    options: Options,
    *,
    force: bool = False,
    write: bool = True,
) -> Plan:
    """Check everything that ``optimize`` will need; the original runs once.

    Args:
        model: see ``optimize``.
        recipe: see ``optimize``.
        output: see ``optimize``.
        options: see ``Options``.
        force: an existing output is no mistake.
        write: keep the original's outputs in the cache for what follows; False writes nothing at all.

    Raises:
        OptkitError: the first thing that is wrong, with its exit code.
    """
    recipe = as_recipe(recipe)
    out = None if output is None else Path(output)
    if out is not None:
        check_output(out, force=force)
    opened = open_given(model, options)
    if out is not None:
        spare_original(opened, out)
    target = as_target(recipe, options)
    require(target.provider)
    steps = chain(recipe, opened, target)
    if out is not None:
        check_ending(out, steps[-1].gives if steps else opened.form)
    gathered = gather(opened, recipe=recipe, flags=options.get("data"), metric=options.get("metric"))
    opened = complete_inputs(opened, gathered, recipe)
    check_shapes(target.shapes, opened.signature)
    if not recipe.outputs:
        recipe = recipe.model_copy(update={"outputs": implied_outputs(opened)})
    sizes = fixed_sizes(steps, opened, target)
    job = make_job(opened, recipe, gathered, target, options, sizes)
    for planned in steps:
        if not planned.skip:
            _check_step(planned, job)
    check_metric(job)
    running = [planned.step.options for planned in steps if not planned.skip]
    check_training(job, running)
    check_search(job, running)
    job = replace(job, original=probe(job, write=write))
    if write:
        check_provable(job)
    asked = _as_asked(recipe, job, gathered, options)
    notes = (
        *gathered.notes,
        *_set_aside(job, gathered),
        *_told(sizes),
        *(check_notes(job) if write else not_proved(job)),
    )
    return Plan(job, asked, tuple(steps), out, notes, _beside(opened, options))


def fixed_sizes(steps: Iterable[Planned], model: Model, target: Target) -> dict[str, int]:
    """Dynamic dimension of the inputs -> the one size that a step's result takes."""
    known = {name for dim in model.signature.dynamic for name in dim_names(dim)}
    stated = [planned.step.options.fixes(target) for planned in steps if not planned.skip]
    return {name: size for sizes in stated for name, size in sizes.items() if name in known}


def _told(sizes: Mapping[str, int]) -> tuple[str, ...]:
    text = ", ".join(f"{name}={size}" for name, size in sizes.items())
    return (f"everything is measured at {text}, which the recipe fixes",) if sizes else ()


def _set_aside(job: Job, gathered: Gathered) -> tuple[str, ...]:
    """What the search split took from evaluation, said aloud."""
    search, rest = job.splits["search"], job.splits["evaluation"]
    if "search" in gathered.sources or search.synthetic:
        return ()
    if search.digest == rest.digest:
        return ("there are too few evaluation samples to set some aside: steps and verdict were measured on the same",)
    total = search.count + rest.count
    return (f"{search.count} of {total} evaluation samples were set aside to check the steps on (no search split)",)


def _beside(model: Model, options: Options) -> dict[str, Any]:
    """What was said about the model, and how to go about it, beside the recipe."""
    factory = options.get("factory") or model.factory
    given = {
        "factory": None if factory is None else absolute(factory, Path.cwd()),
        "signature": options.get("signature"),
        "trust_pickle": options.get("trust_pickle") or model.trust_pickle,
        "allow_synthetic_calibration": options.get("allow_synthetic_calibration"),
        "seed": options.get("seed"),
    }
    return {name: value for name, value in given.items() if value}


def _as_asked(recipe: Recipe, job: Job, gathered: Gathered, options: Options) -> Recipe:
    """The recipe with what the options and ``data.yaml`` said written into it, so that it alone does the same again."""
    threads = options.get("threads") or recipe.target.threads
    return recipe.model_copy(
        update={
            "data": {split: rooted_source(source.spec, source.base) for split, source in gathered.sources.items()},
            "metric": gathered.metric,
            "limits": job.limits,
            "target": recipe.target.model_copy(update={"provider": job.target.provider, "threads": threads}),
        }
    )


def as_recipe(recipe: str | Path | Recipe | Pass | Sequence[Pass]) -> Recipe:
    """A recipe from a name, a file, passes, or itself."""
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, str | Path):
        return Recipe.load(recipe)
    return Recipe(passes=[recipe] if isinstance(recipe, Pass) else list(recipe))


def open_given(model: str | Path | Model, options: Options) -> Model:
    """The model opened with what the options say about it.

    Raises:
        UsageError: an option that does not exist, and would else be ignored in silence.
        ModelError: as ``Model.open`` does.
    """
    refuse_within_import()
    for name in options.keys() - Options.__annotations__.keys():
        close = difflib.get_close_matches(name, Options.__annotations__, n=1)
        raise UsageError(
            f"There is no option '{name}'.",
            expected="one of " + ", ".join(Options.__annotations__),
            fix=f"did you mean '{close[0]}'?" if close else "leave it out",
        )
    if isinstance(model, Model):
        return model
    return Model.open(
        model,
        factory=options.get("factory"),
        signature=options.get("signature"),
        trust_pickle=options.get("trust_pickle", False),
    )


def as_target(recipe: Recipe | None, options: Options) -> Target:
    """The recipe's target with the options' overrides; threads stay 0 where nobody states them."""
    target = recipe.target.target() if recipe else Target()
    provider = options.get("provider") or target.provider
    threads = options.get("threads") or target.threads
    return Target(provider, threads, target.shapes)


def at_sizes(target: Target, sizes: Mapping[str, int]) -> Target:
    """The target with shapes, where it has any, that a model with these fixed ``sizes`` can be measured at."""
    return replace(target, shapes={**target.shapes, **sizes}) if target.shapes else target


def as_limits(given: Limits | Iterable[str] | None) -> Limits:
    """Limits from an object or ``k=v`` strings."""
    if isinstance(given, Limits):
        return given
    return Limits.parse(list(given or ()))


def make_job(
    model: Model, recipe: Recipe, gathered: Gathered, target: Target, options: Options, sizes: Mapping[str, int]
) -> Job:
    """The job of an optimization: data opened in the ``sizes`` that steps fix, limits merged, export pass found."""
    seed = options.get("seed", 0)
    return Job(
        original=model,
        target=at_sizes(target, sizes),
        splits=open_splits(model, gathered, target, seed=seed, search=True, sizes=sizes),
        limits=recipe.limits.merged(as_limits(options.get("limits"))),
        exact=recipe.exact,
        cache=options.get("cache") or Cache.default(),
        outputs=recipe.outputs,
        metric=gathered.metric,
        metric_code=gathered.metric_code,
        metric_asked=options.get("metric") is not None,
        exporter=exporter_of(recipe),
        synthetic_calibration=options.get("allow_synthetic_calibration", False),
        seed=seed,
        training=recipe.train,
    )


def exporter_of(recipe: Recipe) -> Pass | None:
    """The recipe's one torch -> onnx pass.

    Raises:
        RecipeError: there are two.
    """
    found = [step.options for step in recipe.passes if step.options.forms.get("torch") == "onnx"]
    if len(found) > 1:
        raise RecipeError(
            "The recipe has more than one pass that exports torch to ONNX.",
            expected="one of them",
            fix="remove " + ", ".join(pass_.name() for pass_ in found[1:]),
        )
    return found[0] if found else None


def _form_fix(form: Form, model: Model) -> str:
    if form == "torch":
        return "put '- export-onnx' before it"
    if model.form == "torch":
        return "move it before the export, or remove it"
    return "start from the torch model (a state_dict with --factory, or a Hugging Face folder), or remove the step"


def chain(recipe: Recipe, model: Model, target: Target) -> list[Planned]:
    """The steps with their forms.

    Raises:
        RecipeError: a pass cannot take what the one before it gives, or none exports a torch model.
    """
    form, planned = model.form, []
    for step in recipe.passes:
        skip = skip_by_rule(step, form, target)
        gives = form if skip else step.options.forms.get(form)
        if gives is None:
            takes = " or ".join(step.options.forms)
            raise RecipeError(
                f"The step '{step.id}' takes {takes}, but the model is in the form {form} at that point.",
                expected="passes whose forms fit together",
                fix=_form_fix(form, model),
            )
        planned.append(Planned(step, form, gives, skip))
        form = gives
    if form == "torch":
        raise RecipeError(
            "The recipe leaves the model in the form torch.",
            expected="a pass that exports it, and runs for this target",
            fix="add '- export-onnx' to the recipe",
        )
    return planned


def _check_step(planned: Planned, job: Job) -> None:
    pass_ = planned.step.options
    missing = missing_packages(type(pass_))
    if missing:
        raise PackageError(
            f"The step '{planned.step.id}' needs the package {missing[0]}, which is not installed.",
            expected=", ".join(pass_.needs),
            fix=pip_hint(missing[0]),
        )
    for split in pass_.reads():
        job.split(split)
    refuse(planned.step, unfit(planned, job.original, job.target))


def unfit(planned: Planned, original: Model, target: Target) -> str:
    """Empty, or why the pass cannot work, as far as it can be told before the steps before it have run."""
    pass_ = planned.step.options
    return pass_.applies_to(target) or (pass_.applies(original, target) if planned.takes == original.form else "")


def check_metric(job: Job) -> None:
    """A metric loads, and a top-level ``metric_drop`` can be checked.

    Raises:
        DataError: it cannot, for want of labelled data or a metric.
    """
    metric = job.load_metric()
    evaluation = job.splits["evaluation"]
    unlabelled = evaluation.synthetic or (evaluation.labels is None and metric is not None and needs_labels(metric))
    what = "The limit metric_drop" if job.limits.metric_drop is not None else f"The metric {job.metric}"
    if (job.limits.metric_drop is not None and (metric is None or unlabelled)) or (job.metric_asked and unlabelled):
        lacks = "a metric" if metric is None else "labelled evaluation data"
        raise DataError(
            f"{what} cannot be checked without {lacks}.",
            expected="labelled evaluation data, and a metric",
            fix="add --data evaluation=FILE.npz with a 'labels' array and --metric top1, or move the limit below "
            "'labelled:'",
        )


def default_output(model: str | Path | Model, recipe: Recipe) -> Path:
    """``MODEL-STEM.RECIPE`` in the current folder: ``my.v1.onnx`` becomes ``my.v1.int8``.

    Raises:
        UsageError: the model has no name to take it from.
    """
    path = model.path if isinstance(model, Model) else Path(model)
    named = path if path.name.strip(".") else path.resolve()
    stem = named.name
    while stem.lower().endswith(_MODEL_SUFFIXES):
        stem = stem[: stem.rindex(".")]
    if not stem:
        raise UsageError("The output has no name.", expected="an output folder", fix="give it with -o")
    return Path(f"{stem}.{recipe.name}")
