"""Everything that stays the same during one optimization or comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optkit import __version__
from optkit.data.dataset import Dataset
from optkit.errors import DataError
from optkit.evaluate.judge import OutputOptions
from optkit.evaluate.limits import Limits
from optkit.evaluate.metrics import Metric, load_metric
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.passes._base import Pass
from optkit.passes._train.training import Training
from optkit.pipeline.cache import Cache, key_of


@dataclass(frozen=True)
class Job:
    """What is judged against what, on which data, for which machine. Plain and picklable."""

    original: Model
    target: Target
    splits: Mapping[str, Dataset]
    limits: Limits
    exact: bool
    cache: Cache
    outputs: Mapping[str, OutputOptions] = field(default_factory=dict)
    metric: str | Mapping[str, Any] | None = None
    metric_code: bool = False
    """Whether ``metric`` may name code (it came from a flag or a recipe)."""
    metric_asked: bool = False
    """Whether it was named on the spot (a flag), so that data it cannot be measured on are an error."""
    exporter: Pass | None = None
    """The recipe's one torch -> onnx pass."""
    synthetic_calibration: bool = False
    seed: int = 0
    bench: bool = True
    """Whether passes may choose by timing."""
    training: Training = field(default_factory=Training)
    """How passes train."""

    def split(self, name: str) -> Dataset:
        """The dataset of a split; ``sample`` is at most two samples, real ones where there are any.

        Raises:
            DataError: there is none, or calibration on synthetic data was not allowed.
        """
        if name == "sample":
            dataset = self.splits.get("search") or self.splits["evaluation"]
            return dataset.subset(np.arange(min(2, dataset.count)), "sample")
        if name not in self.splits:
            raise DataError(
                f"There are no {name} data.",
                expected=f"some real samples, a few hundred for {name}",
                fix=f"give them with --data {name}=FILE.npz, in the recipe, or in a data.yaml beside the model",
            )
        dataset = self.splits[name]
        if name == "calibration" and dataset.synthetic and not self.synthetic_calibration:
            raise DataError(
                "There are no calibration data, and made-up ones give wrong ranges.",
                expected="some real samples, a few hundred",
                fix="give them with --data calibration=FILE.npz (or --allow-synthetic-calibration, at your own risk)",
            )
        return dataset

    def load_metric(self) -> Metric | None:
        """A fresh metric object, or None where no metric was asked for."""
        return None if self.metric is None else load_metric(self.metric, allow_code=self.metric_code)

    def runtime_facts(self) -> dict[str, Any]:
        """What outputs depend on beside model and data: optkit, provider, threads, processor, library versions."""
        from optkit.model.machine import machine, usable_threads

        threads = self.target.threads or usable_threads()
        versions = {"optkit": __version__, **library_versions("numpy", "onnxruntime", "torch", "transformers")}
        return {"target": self.target, "threads": threads, "features": machine().features, "versions": versions}


def library_versions(*names: str) -> dict[str, str]:
    """Distribution name -> installed version, for those that are installed."""
    from importlib import metadata

    found = {}
    for name in names:
        for distribution in (name, f"{name}-gpu"):
            try:
                found[name] = metadata.version(distribution)
                break
            except metadata.PackageNotFoundError:
                continue
    return found


def outputs_key(job: Job, model: Model, dataset: Dataset) -> str:
    """Cache key of a model's outputs on a dataset."""
    facts = {"what": "arrays", "model": model.digest, "inputs": model.signature.inputs, "data": dataset.digest}
    return key_of({**facts, "session": dict(model.session), **job.runtime_facts()})
