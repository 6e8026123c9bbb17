"""``run_pass``: the one way for tests to exercise a pass, and small models and data for it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from optkit.data.dataset import Array, Arrays, Batch, Dataset
from optkit.evaluate.limits import Limits
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.passes._base import Outcome, Pass
from optkit.passes._train.training import Training
from optkit.pipeline.cache import Cache
from optkit.pipeline.context import StepContext
from optkit.pipeline.job import Job

_ROOT = tempfile.TemporaryDirectory(prefix="optkit-test-")
Data = Mapping[str, Dataset | Arrays]


def run_pass(
    pass_: Pass,
    model: Model | Path | onnx.ModelProto,
    *,
    data: Data | None = None,
    target: Target | None = None,
    seed: int = 0,
    original: Model | None = None,
    training: Training | None = None,
) -> Outcome:
    """What ``pass_`` makes of ``model``, in the pipeline's own context; ``original``: what it was made of, else itself.

    ``data`` maps splits to datasets or to arrays whose axis 0 is the samples.
    """
    opened = open_any(model)
    splits = {split: as_dataset(split, found) for split, found in (data or {}).items()}
    splits |= {"evaluation": next(iter(splits.values()))} if splits and "evaluation" not in splits else {}
    job = Job(
        original=original or opened,
        target=target or Target(threads=1),
        splits=splits,
        limits=Limits(),
        exact=pass_.kind == "exact",
        cache=Cache(fresh_dir()),
        synthetic_calibration=True,
        seed=seed,
        training=training or Training(),
    )
    reads = frozenset(pass_.reads()) | ({"sample"} if opened.form == "torch" else set())
    return pass_(opened, _Here(job, fresh_dir(), pass_.name(), reads=reads, times=pass_.decides_by_time()))


class _Here(StepContext):
    """The real context; only models run on the CPU, so that passes can be tried for providers this machine lacks."""

    def run(self, model: Model, batches: Dataset, outputs: Sequence[str] | None = None) -> Iterator[Arrays]:
        here = replace(self.job, target=Target("cpu", 1))
        return StepContext(here, self.workdir, self.step).run(model, batches, outputs)


def fresh_dir() -> Path:
    """An empty folder that lives as long as the test run."""
    return Path(tempfile.mkdtemp(dir=_ROOT.name))


def open_any(model: Model | Path | onnx.ModelProto) -> Model:
    if isinstance(model, onnx.ModelProto):
        onnx.checker.check_model(model)
        path = fresh_dir() / "model.onnx"
        onnx.save(model, path)
        model = path
    return model if isinstance(model, Model) else Model.open(model)


def as_dataset(split: str, data: Dataset | Arrays) -> Dataset:
    return MemoryData(split, data) if isinstance(data, dict) else data


@dataclass(frozen=True)
class MemoryData:
    """Arrays in memory as a ``Dataset``."""

    split: str
    arrays: Arrays
    batch: int = 8
    source: str = "memory"
    synthetic: bool = False
    labels: Array | None = None
    groups: Array | None = None

    @property
    def count(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def digest(self) -> str:
        return hashlib.sha256(b"".join(array.tobytes() for array in self.arrays.values())).hexdigest()

    def batches(self) -> Iterator[Batch]:
        for start in range(0, self.count, self.batch):
            inputs = {name: array[start : start + self.batch] for name, array in self.arrays.items()}
            yield Batch(inputs, len(next(iter(inputs.values()))))

    def subset(self, indices: Array, split: str) -> MemoryData:
        return MemoryData(split, {name: array[indices] for name, array in self.arrays.items()}, self.batch)


def session_of(
    path: Path, *, outputs: Sequence[str] | None = None, config: Mapping[str, str] | None = None, plain: bool = False
) -> ort.InferenceSession:
    """A CPU session; ``outputs`` may name inner tensors; ``plain`` switches onnxruntime's own rewrites off."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(_with_outputs(path, outputs), options, providers=["CPUExecutionProvider"])


def _with_outputs(path: Path, outputs: Sequence[str] | None) -> str | bytes:
    if outputs is None:
        return str(path)
    model = onnx.load(path)
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in known)
    return model.SerializeToString()


def run_onnx(model: Model | Path, inputs: Arrays, *, plain: bool = False) -> Arrays:
    """Outputs by name on one batch."""
    path, config = (model.path, model.session) if isinstance(model, Model) else (model, {})
    session = session_of(path, config=config, plain=plain)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def ops_of(model: Model | Path) -> dict[str, int]:
    """Node type -> how many, contrib operators with their domain, subgraphs included."""
    counts: dict[str, int] = {}
    for node in _nodes(onnx.load(model.path if isinstance(model, Model) else model, load_external_data=False).graph):
        kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def onnx_model(
    text: str, weights: Mapping[str, Array] | None = None, *, opset: int = 20, contrib: bool = False
) -> onnx.ModelProto:
    """A model from ONNX's text form of a graph, with initializers added: ``onnx_model("g (float[N,4] x) => ...")``."""
    graph = onnx.parser.parse_graph(text)
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items())
    opsets = [onnx.helper.make_opsetid("", opset)]
    if contrib:
        opsets.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """float32 draws from a normal distribution."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * np.float32(scale)


def relative_error(result: Array, reference: Array) -> float:
    """Root mean square error over the reference's standard deviation."""
    difference = result.astype(np.float64) - reference.astype(np.float64)
    return float(np.sqrt(np.mean(difference**2)) / np.std(reference.astype(np.float64)))
