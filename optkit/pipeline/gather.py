"""Finds data, preprocessing and metric for a model: flags first, then the recipe, then data.yaml beside the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from optkit.data.dataset import Dataset
from optkit.data.open import find_data_file, infer_inputs, open_dataset
from optkit.data.spec import DataSource, Split
from optkit.data.split import carve_search
from optkit.data.synthetic import synthetic
from optkit.errors import DataError, ModelError, UsageError
from optkit.evaluate.judge import OutputOptions
from optkit.model.model import Assets, Model
from optkit.model.signature import Signature, parse_signature
from optkit.model.target import Target
from optkit.recipe.recipe import Recipe

SYNTHETIC_SAMPLES = 16


@dataclass(frozen=True)
class Source:
    """A data source, the folder its path counts from, and whether it may name code."""

    spec: DataSource
    base: Path
    code: bool


@dataclass(frozen=True)
class Gathered:
    """Everything that was found about a model's data, before any of it is read."""

    sources: Mapping[str, Source] = field(default_factory=dict)
    preprocess: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    assets_dir: Path | None = None
    metric: str | Mapping[str, Any] | None = None
    metric_code: bool = False
    notes: tuple[str, ...] = ()


def parse_data_flags(flags: Mapping[str, Any] | list[str] | None) -> dict[str, Source]:
    """``["calibration=c.npz", "e.npz"]`` or ``{"calibration": "c.npz"}``; a bare path is evaluation.

    Raises:
        UsageError: a split that does not exist.
    """
    if not isinstance(flags, Mapping):
        pairs = (flag.partition("=") for flag in flags or ())
        flags = {name if eq else "evaluation": path if eq else name for name, eq, path in pairs}
    for split in flags:
        if split not in get_args(Split):
            raise UsageError(
                f"--data {split}=...: there is no split '{split}'.",
                expected="one of " + ", ".join(get_args(Split)),
                fix="write --data evaluation=FILE, or just --data FILE",
            )
    return {
        split: Source(value if isinstance(value, DataSource) else DataSource(source=str(value)), Path.cwd(), True)
        for split, value in flags.items()
    }


def gather(
    model: Model,
    *,
    recipe: Recipe | None = None,
    flags: Mapping[str, Any] | list[str] | None = None,
    metric: str | Mapping[str, Any] | None = None,
) -> Gathered:
    """Flags win over the recipe, the recipe over ``data.yaml`` beside the model, split by split."""
    found = find_data_file(model.path)
    sources: dict[str, Source] = {}
    if found is not None:
        sources |= {split: Source(spec, found.base, False) for split, spec in found.data.items()}
    stated: dict[str, Source] = {}
    if recipe is not None:
        stated |= {split: Source(spec, recipe.base, True) for split, spec in recipe.data.items()}
    for given in (stated, parse_data_flags(flags)):
        if "evaluation" in given and "search" not in given:
            sources.pop("search", None)
        sources |= given
    preprocess, folder = _preprocess(model, recipe, found)
    chosen = metric or (recipe.metric if recipe else None)
    code = chosen is not None
    if chosen is None and found is not None:
        chosen = found.metric
    notes = (f"data from {found.path}",) if found is not None and found.data and not flags else ()
    return Gathered(sources, preprocess, folder, chosen, code, notes)


def _preprocess(model: Model, recipe: Recipe | None, found: Any) -> tuple[Mapping[str, Mapping[str, Any]], Path | None]:
    if recipe is not None and recipe.preprocess:
        return recipe.preprocess, recipe.base
    if model.assets.preprocess:
        return model.assets.preprocess, model.assets.folder
    if found is not None and found.preprocess:
        return found.preprocess, found.base
    return {}, None


def complete_inputs(model: Model, gathered: Gathered, recipe: Recipe | None = None) -> Model:
    """The model with input names, dtypes and shapes: its own, the recipe's, or the data's.

    Raises:
        ModelError: none of them says.
    """
    signature = model.signature
    if not signature.inputs and recipe is not None and recipe.inputs:
        text = ";".join(f"{name}={spec}" for name, spec in recipe.inputs.items())
        signature = Signature(parse_signature(text), signature.outputs)
    if not signature.inputs:
        for split in ("evaluation", "calibration", "search"):
            if split in gathered.sources:
                source = gathered.sources[split]
                signature = Signature(
                    infer_inputs(source.spec, base=source.base, allow_code=source.code), signature.outputs
                )
                break
    if not signature.inputs:
        raise ModelError(
            f"{model.path.name} does not say what its inputs are, and there are no data to tell.",
            expected="names, dtypes and shapes of the inputs",
            fix="add --signature 'x=float32[batch,3,224,224]'",
        )
    assets = Assets(gathered.preprocess, gathered.assets_dir) if gathered.preprocess else model.assets
    return replace(model, signature=signature, assets=assets)


def implied_outputs(model: Model) -> dict[str, OutputOptions]:
    """How a sentence encoder's tokens are pooled before they are compared, as its own folder says."""
    if model.kind != "huggingface":
        return {}
    from optkit.model.huggingface import sentence_pooling

    pool = sentence_pooling(model.path)
    return {"last_hidden_state": OutputOptions.model_validate({"pool": pool})} if pool else {}


def open_splits(
    model: Model,
    gathered: Gathered,
    target: Target,
    *,
    seed: int,
    search: bool,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, Dataset]:
    """Every split that there is; evaluation on synthetic data as a last resort, search carved from evaluation.

    Args:
        model: with its inputs completed.
        gathered: from ``gather``.
        target: its shapes size the dynamic dimensions of synthetic inputs.
        seed: of carving and of synthetic inputs.
        search: whether a search split is wanted at all (a comparison alone looks at nothing else).
        sizes: of dynamic dimensions, where not the model but what it is compared with takes one size only.

    Raises:
        DataError: a source that is missing or does not fit the model, or the sizes.
    """
    model, rows = _sized(model, sizes or {})
    with _sizes_told(sizes or {}):
        splits: dict[str, Dataset] = {
            split: open_dataset(
                split,
                source.spec,
                signature=model.signature,
                base=source.base,
                preprocess=gathered.preprocess,
                assets_dir=gathered.assets_dir,
                allow_code=source.code,
                rows=rows,
            )
            for split, source in gathered.sources.items()
        }
    for split, offset in (("evaluation", 0), ("search", 1), ("calibration", 2)):
        made_up = split != "search" or splits.get("evaluation") is None or splits["evaluation"].synthetic
        if split not in splits and made_up and (search or split == "evaluation"):
            splits[split] = _synthetic(model, target, split, seed + offset, rows)
    if search and "search" not in splits:
        splits["search"], splits["evaluation"] = carve_search(splits["evaluation"], seed)
    return splits


@contextmanager
def _sizes_told(sizes: Mapping[str, int]) -> Iterator[None]:
    """Where data do not fit, the sizes that they had to have may be what is wrong."""
    try:
        yield
    except DataError as error:
        if sizes:
            text = ", ".join(f"{name}={size}" for name, size in sizes.items())
            error.fix = f"{error.fix}; here the recipe, or the result, fixes {text}".removeprefix("; ")
        raise


def _sized(model: Model, sizes: Mapping[str, int]) -> tuple[Model, int | None]:
    """The model with these dimensions fixed, but for that of the samples, whose name says where they are."""
    batch = model.signature.batch_dims
    rows = next((sizes[name] for name in batch if name in sizes), None)
    others = {name: size for name, size in sizes.items() if name not in batch}
    return model.with_signature(model.signature.fixed(others)), rows


def _synthetic(model: Model, target: Target, split: str, seed: int, rows: int | None) -> Dataset:
    batch = rows or target.shapes.get("batch", 8)
    return synthetic(
        model.signature,
        split=split,
        shapes=target.shapes,
        count=max(SYNTHETIC_SAMPLES, batch),
        batch=batch,
        seed=seed,
        rows=rows,
    )
