"""A Quantizer whose layers lose exactly as much as is asked for, and a job to hold its budget in.

``y = x W0 W1 ... W5`` with orthogonal weights. A layer with the error e has ``W + e R`` for its weights, with another
orthogonal R: it moves its output by e times its length, and the layers behind keep that. So alone it moves the model's
output by e, and several layers together by about the root of the sum of their squares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import numpy_helper

from optkit.data.dataset import Array, Batch, Dataset
from optkit.evaluate.limits import Limits
from optkit.model.manifest import Ratio, Verdict
from optkit.model.model import Form, Model
from optkit.model.target import Target
from optkit.passes._base import Context, Outcome
from optkit.passes._quant.layered import FLOAT, Built, Layered, Quantizer
from optkit.pipeline.cache import Cache
from optkit.pipeline.context import StepContext
from optkit.pipeline.job import Job
from tests.helpers import MemoryData, fresh_dir, normal, onnx_model

WIDTH = 16
COUNT = 6
NAMES = tuple(f"fc{index}" for index in range(COUNT))
TENSORS = {name: f"h{index}" if index < COUNT - 1 else "y" for index, name in enumerate(NAMES)}
BAD = {"fc2": 0.3, "fc5": 0.2}
"""Errors of the two bad layers; every other layer has ``SLIGHT``."""
SLIGHT = 0.004
SIXTEEN = 0.05
"""Share of its error that a layer has left at int16."""


def orthogonal(seed: int) -> Array:
    """float32[WIDTH, WIDTH]"""
    return np.linalg.qr(normal(WIDTH, WIDTH, seed=seed).astype(np.float64))[0].astype(np.float32)


def chain() -> Model:
    """The model in float; its nodes are called fc0 to fc5."""
    lines = [
        f"{TENSORS[name]} = MatMul({f'h{index - 1}' if index else 'x'}, w{index})" for index, name in enumerate(NAMES)
    ]
    text = f"g (float[batch,{WIDTH}] x) => (float[batch,{WIDTH}] y) {{ {' '.join(lines)} }}"
    proto = onnx_model(text, {f"w{index}": orthogonal(index) for index in range(COUNT)})
    for node, name in zip(proto.graph.node, NAMES, strict=True):
        node.name = name
    path = fresh_dir() / "model.onnx"
    onnx.save(proto, path)
    return Model.open(path)


class ToyQuantizer(Quantizer):
    """Lose as much as ``errors`` says."""

    forms: ClassVar[Mapping[Form, Form]] = {"onnx": "onnx"}

    errors: dict[str, float] = BAD
    """Layer -> error at int8."""
    ladder: tuple[str, ...] = ("int8", FLOAT)
    """From int8 to float32."""

    def layered(self, model: Model, ctx: Context) -> Layered:
        """Every layer that ``exclude`` does not name."""
        layers = {name: tensor for name, tensor in TENSORS.items() if name not in self.exclude}
        serial = iter(range(1000))

        def build(levels: Mapping[str, str]) -> Built:
            assert set(levels) <= set(layers) and set(levels.values()) <= set(self.ladder)
            precision = {name: levels.get(name, self.ladder[0]) for name in layers}
            path = ctx.workdir / f"built-{next(serial)}" / "model.onnx"
            path.parent.mkdir()
            onnx.save(self._rounded(onnx.load(model.path), precision), path)
            changes = [(name, f"MatMul at {level}") for name, level in precision.items() if level != FLOAT]
            return Built(model.derive(path, "onnx", self.sentence()), changes, ["built"])

        return Layered(model, layers, self.ladder, build, skipped=[(name, "excluded") for name in self.exclude])

    def _rounded(self, proto: onnx.ModelProto, precision: Mapping[str, str]) -> onnx.ModelProto:
        for index, name in enumerate(NAMES):
            share = {"int8": 1.0, "int16": SIXTEEN, FLOAT: 0.0}[precision.get(name, FLOAT)]
            tensor = next(each for each in proto.graph.initializer if each.name == f"w{index}")
            error = np.float32(share * self.errors.get(name, SLIGHT))
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor) + error * orthogonal(100 + index), tensor.name)
            )
        return proto


@dataclass(frozen=True)
class Watched(StepContext):
    """The real context, which tells what was judged and timed; the stopwatch is replaced."""

    judged: list[Model] = field(default_factory=list)
    timed: list[Sequence[Model]] = field(default_factory=list)
    speeds: Sequence[float] = (1.0, 0.8, 0.7)
    """Speedups of the models that are timed, against the first."""

    def judge(self, model: Model, data: Dataset | None = None) -> Verdict:
        if data is None:
            self.judged.append(model)
        return super().judge(model, data)

    def time(self, models: Sequence[Model], *, budget_s: float = 4.0, confidence: float = 0.99) -> list[Ratio]:
        assert self.times and self.may_time and all(model.path.is_file() for model in models)
        self.timed.append(models)
        return [ratio(speed) for _, speed in zip(models, self.speeds, strict=False)]


def ratio(speedup: float) -> Ratio:
    """2 ms against that."""
    ends = {"low": speedup - 0.01, "high": speedup + 0.01, "confidence": 0.99, "blocks": 10, "inputs": "real"}
    return Ratio(baseline_ms=2.0, candidate_ms=2.0 / speedup, speedup=speedup, **ends)


def context(model: Model, *, limits: Limits, bench: bool = False, **more: Any) -> Watched:
    """For a pass with ``repair``, on 48 samples of the split search."""
    given = {key: more.pop(key) for key in list(more) if key in ("speeds",)}
    splits = {
        name: MemoryData(name, {"x": normal(48, WIDTH, seed=seed)}) for name, seed in (("search", 7), ("evaluation", 8))
    }
    job = {"splits": splits, "exact": False, "cache": Cache(fresh_dir()), "target": Target("cpu", 1), "bench": bench}
    made = Job(**{"original": model, "limits": limits, **job, **more})
    return Watched(made, fresh_dir(), "toy-quantizer", reads=frozenset({"search"}), **given)


class Labelled(MemoryData):
    """Batches that have their labels."""

    def batches(self) -> Iterator[Batch]:
        for index, batch in enumerate(super().batches()):
            start = index * self.batch
            yield replace(batch, labels=None if self.labels is None else self.labels[start : start + batch.size])

    def subset(self, indices: Array, split: str) -> Labelled:
        """Those samples with their labels."""
        some = super().subset(indices, split)
        return Labelled(split, some.arrays, some.batch, labels=None if self.labels is None else self.labels[indices])


def labelled(count: int) -> dict[str, Labelled]:
    """Samples whose labels are what the model in float says."""
    found = {}
    for name, seed in (("search", 7), ("evaluation", 8)):
        x = y = normal(count, WIDTH, seed=seed)
        for index in range(COUNT):
            y = y @ orthogonal(index)
        found[name] = Labelled(name, {"x": x}, labels=y.argmax(axis=1))
    return found


def run_toy(pass_: ToyQuantizer, ctx: Watched) -> Outcome:
    """The pass on the job's original."""
    return pass_(ctx.original, ctx)


def left_behind(ctx: Watched) -> Iterator[Path]:
    """Models in the workdir."""
    return ctx.workdir.rglob("*.onnx")
