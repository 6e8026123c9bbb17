"""What an ORT file (a flatbuffer of onnxruntime) says about itself."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optkit.errors import ModelError
from optkit.model.onnx_file import batch_name, dtype_name, name_dims
from optkit.model.signature import Dim, Signature, TensorSpec
from optkit.model.summary import Found, Weight


def read_ort(path: Path) -> Found:
    """Operators, weights and signature by the classes that onnxruntime brings for this format; no session is made.

    Raises:
        ModelError: the flatbuffer is damaged.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # it is read once, when the module is imported
    try:
        from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession import InferenceSession
    except ImportError:
        return Found(notes=["its content cannot be read without onnxruntime: pip install 'optkit[cpu]'"])
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            session = InferenceSession.GetRootAsInferenceSession(content, 0)
            return _found(session)
    except (struct.error, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"The ORT file is cut off or damaged: {error}.",
            expected="a complete file as onnxruntime writes it",
            fix="convert or copy the model again",
            file=path,
        ) from error


def _found(session: Any) -> Found:
    model = session.Model()
    graph = model.Graph()
    found = Found(
        producer=f"{_text(model.ProducerName())} {_text(model.ProducerVersion())}".strip()
        or f"onnxruntime {_text(session.OrtVersion())}",
        ir_version=int(model.IrVersion()),
    )
    domains = {""}
    for inner in _graphs(graph):
        weights = {weight.name: weight for weight in map(_weight, _all(inner, "Initializers"))}
        found.weights += weights.values()
        for node in _all(inner, "Nodes"):
            domain, op = _text(node.Domain()), _text(node.OpType())
            domains.add(domain)
            found.operators[f"{domain}.{op}" if domain not in ("", "ai.onnx") else op] += 1
            names = [_text(name) for name in _all(node, "Inputs")]
            found.used += [(op, weights[name]) for name in names if name in weights and len(weights[name].shape) > 1]
    opsets = {_text(each.Domain()): int(each.Version()) for each in _all(model, "OpsetImport")}
    found.opsets = {domain or "ai.onnx": version for domain, version in opsets.items() if domain in domains}
    found.signature = _signature(graph)
    return found


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in _all(graph, "Nodes"):
        for attribute in _all(node, "Attributes"):
            if attribute.G() is not None:
                yield from _graphs(attribute.G())
            for inner in _all(attribute, "Graphs"):
                yield from _graphs(inner)


def _all(owner: Any, what: str) -> list[Any]:
    """A vector of a flatbuffer table as a list."""
    get = getattr(owner, what)
    return [get(index) for index in range(getattr(owner, f"{what}Length")())]


def _text(value: bytes | None) -> str:
    return (value or b"").decode()


def _weight(tensor: Any) -> Weight:
    return Weight(_text(tensor.Name()), dtype_name(tensor.DataType()), tuple(map(int, _all(tensor, "Dims"))))


def _signature(graph: Any) -> Signature:
    held = {_text(tensor.Name()) for tensor in _all(graph, "Initializers")}
    values = {_text(value.Name()): value for value in _all(graph, "NodeArgs")}
    inputs = [name for name in map(_text, _all(graph, "Inputs")) if name not in held]
    batch = batch_name([_type(values[name])[1] for name in inputs])
    outputs = map(_text, _all(graph, "Outputs"))
    return Signature(
        inputs=tuple(_spec(name, values[name], batch) for name in inputs),
        outputs=tuple(_spec(name, values[name], batch) for name in outputs),
    )


def _spec(name: str, value: Any, batch: str | None) -> TensorSpec:
    dtype, dims = _type(value)
    return TensorSpec(name, dtype, None if dims is None else name_dims(name, dims, batch))


def _type(value: Any) -> tuple[str, tuple[Dim | None, ...] | None]:
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.TensorTypeAndShape import TensorTypeAndShape

    table = value.Type().Value()
    kind = TensorTypeAndShape()
    kind.Init(table.Bytes, table.Pos)
    if kind.Shape() is None:
        return dtype_name(kind.ElemType()), None
    dims = [dim.Value() for dim in _all(kind.Shape(), "Dim")]
    return dtype_name(kind.ElemType()), tuple(_dim(dim) for dim in dims)


def _dim(value: Any) -> Dim | None:
    if value is None or value.DimType() == 0:
        return None
    return int(value.DimValue()) if value.DimType() == 1 else (_text(value.DimParam()) or None)
