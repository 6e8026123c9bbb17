"""The digits models in a step's real context, with the calibration samples to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from optkit.data.open import open_dataset
from optkit.data.spec import DataSource
from optkit.evaluate.limits import Limits
from optkit.model.load_torch import load_module
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.passes._train.training import Training
from optkit.pipeline.cache import Cache
from optkit.pipeline.context import StepContext
from optkit.pipeline.job import Job

SAMPLES = Path(__file__).parents[3] / "sample_models"


def digits(name: str = "digits_mlp") -> Model:
    """A sample model as safetensors and factory."""
    return Model.open(
        SAMPLES / f"{name}.safetensors",
        factory=f"{SAMPLES / 'models.py'}:{name}",
        signature="image=float32[batch,1,8,8]",
    )


def dataset(model: Model, split: str, file: str = "", **source: Any) -> Any:
    """A split of the digits."""
    path = SAMPLES / "data" / f"digits_{file or split}.npz"
    given = DataSource(source=str(path), **source)
    empty: dict[str, dict[str, object]] = {}
    return open_dataset(
        split, given, signature=model.signature, base=SAMPLES, preprocess=empty, assets_dir=None, allow_code=False
    )


def context(folder: Path, model: Model | None = None, *, metric: str | None = "top1", **training: Any) -> StepContext:
    """A step that trains; ``training`` are the options of the block ``train:``."""
    model = model or digits()
    settings = {"steps": 24, "looks": 4, "device": "cpu", "batch": 16, **training}
    job = Job(
        original=model,
        target=Target("cpu", 1),
        splits={
            "train": dataset(model, "train", "calibration"),
            "search": dataset(model, "search"),
            "evaluation": dataset(model, "evaluation"),
        },
        limits=Limits(),
        exact=False,
        cache=Cache(folder / "cache"),
        metric=metric,
        training=Training(**settings),
    )
    return StepContext(job, folder / "work", "train")


def module_of(ctx: StepContext) -> nn.Module:
    """The original, live."""
    return load_module(ctx.original)
