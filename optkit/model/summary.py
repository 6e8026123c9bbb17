"""What a model's files say about it: operators, weights, sizes. Reads headers and structure, executes nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import Field

from optkit.model.digest import model_files
from optkit.model.manifest import Fact
from optkit.model.model import Model
from optkit.model.signature import Signature

BITS = {"float64": 64, "int64": 64, "uint64": 64, "float32": 32, "int32": 32, "uint32": 32, "float16": 16}
BITS |= {"bfloat16": 16, "int16": 16, "uint16": 16, "int8": 8, "uint8": 8, "bool": 8, "int4": 4, "uint4": 4}
BITS |= {"complex64": 64, "complex128": 128, "int2": 2, "uint2": 2, "float4_e2m1fn": 4}
"""Bits per value of a dtype, by name; 8-bit floats are not listed."""


class TensorGroup(Fact):
    """All weights of one dtype."""

    dtype: str
    tensors: int
    elements: int
    bytes: int


class Layer(Fact):
    """Weights that one kind of operator uses."""

    op: str
    """ONNX operator; of torch models the one it becomes."""
    dtype: str
    count: int
    """Weights of rank 2 and more, each counted once."""
    elements: int


class DataFile(Fact):
    """External data beside an ONNX file."""

    path: str
    bytes: int


class Summary(Fact):
    """A model as its files describe it."""

    path: str
    form: str
    kind: str
    """How it is opened: onnx, ort, pt2, torchscript, weights, pickle or huggingface."""
    size_bytes: int
    """On disk, external data included."""
    inputs: tuple[str, ...]
    """As ``name=dtype[dims]``; empty where the file does not say."""
    outputs: tuple[str, ...]
    dynamic: tuple[str, ...]
    """Names of the dynamic dimensions of the inputs."""
    producer: str = ""
    """What wrote it, with version."""
    ir_version: int | None = None
    """Of ONNX files."""
    opsets: dict[str, int] = Field(default_factory=dict)
    """Domain -> version; the domain of ONNX itself is ``ai.onnx``."""
    architecture: str = ""
    """Of Hugging Face folders the class of config.json, of pickles the class of the outermost object."""
    parameters: int | None = None
    """Values in weights of floating, 8-bit and narrower types, running statistics included; ties count once."""
    weights: tuple[TensorGroup, ...] = ()
    """By dtype, the largest first."""
    layers: tuple[Layer, ...] = ()
    """Where the weights are used, the largest first."""
    operators: dict[str, int] = Field(default_factory=dict)
    """Operator -> nodes, most frequent first, subgraphs and functions included; contrib ones with their domain."""
    external: tuple[DataFile, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Weight:
    """One stored tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size of the values; 0 for strings, which have no fixed size."""
        return 0 if self.dtype == "string" else (self.elements * BITS.get(self.dtype, 8) + 7) // 8

    @property
    def is_parameter(self) -> bool:
        """Whether it counts as parameters: wide integers are shapes and indices, not weights."""
        narrow = BITS.get(self.dtype, 8) < 16 and self.dtype not in ("bool", "string")
        return narrow or "float" in self.dtype or "complex" in self.dtype


@dataclass
class Found:
    """What a reader of one kind of file found; ``summarize`` makes a Summary of it."""

    weights: list[Weight] = field(default_factory=list)
    used: list[tuple[str, Weight]] = field(default_factory=list)
    """(operator, weight) for weights of rank 2 and more."""
    operators: Counter[str] = field(default_factory=Counter)
    signature: Signature | None = None
    """Where the reader knows more than opening found out."""
    producer: str = ""
    ir_version: int | None = None
    opsets: dict[str, int] = field(default_factory=dict)
    architecture: str = ""
    external: list[DataFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def summarize(model: Model) -> Summary:
    """Facts about an opened model, from its files.

    Raises:
        ModelError: a file is damaged.
    """
    found = _read(model)
    signature = model.signature if model.signature.inputs or found.signature is None else found.signature
    return Summary(
        path=str(model.path),
        form=model.form,
        kind=model.kind,
        size_bytes=sum(file.stat().st_size for file in model_files(model)),
        inputs=tuple(map(str, signature.inputs)),
        outputs=tuple(map(str, signature.outputs)),
        dynamic=signature.dynamic,
        producer=found.producer,
        ir_version=found.ir_version,
        opsets=found.opsets,
        architecture=found.architecture,
        parameters=sum(each.elements for each in found.weights if each.is_parameter) if found.weights else None,
        weights=_groups(found.weights),
        layers=_layers(found.used),
        operators=dict(sorted(found.operators.items(), key=lambda item: (-item[1], item[0]))),
        external=tuple(found.external),
        notes=tuple(found.notes),
    )


def _read(model: Model) -> Found:
    if model.kind == "onnx":
        from optkit.model.summary_onnx import read_onnx

        return read_onnx(model.path)
    if model.kind == "ort":
        from optkit.model.summary_ort import read_ort

        return read_ort(model.path)
    from optkit.model.summary_torch import read_torch

    return read_torch(model)


def _groups(weights: Iterable[Weight]) -> tuple[TensorGroup, ...]:
    by_dtype: dict[str, list[Weight]] = {}
    for weight in weights:
        by_dtype.setdefault(weight.dtype, []).append(weight)
    groups = [
        TensorGroup(
            dtype=dtype,
            tensors=len(each),
            elements=sum(weight.elements for weight in each),
            bytes=sum(weight.bytes for weight in each),
        )
        for dtype, each in by_dtype.items()
    ]
    return tuple(sorted(groups, key=lambda group: -group.bytes))


def _layers(used: Iterable[tuple[str, Weight]]) -> tuple[Layer, ...]:
    """A weight that several nodes of one kind share counts once."""
    by_op: dict[tuple[str, str], dict[int, Weight]] = {}
    for op, weight in used:
        by_op.setdefault((op, weight.dtype), {})[id(weight)] = weight
    layers = [
        Layer(op=op, dtype=dtype, count=len(each), elements=sum(weight.elements for weight in each.values()))
        for (op, dtype), each in by_op.items()
    ]
    return tuple(sorted(layers, key=lambda layer: -layer.elements))
