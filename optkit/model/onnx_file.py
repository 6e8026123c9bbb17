"""Reading and writing ONNX files: structure without weights, signature, external data."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from optkit.errors import ModelError
from optkit.model.onnx_check import check_external, check_inline, expected_bytes, location_of
from optkit.model.signature import BATCH_NAMES, Dim, Signature, TensorSpec

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

EXTERNAL_ABOVE = 1_500_000_000
"""Bytes of weights above which ``save_onnx`` writes them beside the model; protobuf itself ends at 2 GiB."""

_PROTOBUF_LIMIT = 2**31 - 1
_SMALL = 1024
"""Bytes; smaller tensors always stay inside the model file, where shape inference can see them."""
_ALIGN, _PAGE = 64, 4096
"""Bytes; where tensors, and those above 1 MiB, begin in a data file, so that they can be mapped into memory."""


def load_structure(path: Path) -> ModelProto:
    """The model without its external data; everything that can be wrong with the file is checked.

    Inline weights are part of the protobuf and come along.

    Raises:
        ModelError: cut off, no ONNX, weights that do not fit their dims, or external data that are missing, too
            short, or outside the model's folder.
    """
    proto = _parse(path)
    tensors = list(walk_tensors(proto))
    check_inline(tensors, path)
    check_external(tensors, path)
    return proto


def load_onnx(path: Path) -> ModelProto:
    """The model with all its weights in memory.

    Raises:
        ModelError: as ``load_structure``, or the external data cannot be read.
    """
    from onnx.checker import ValidationError
    from onnx.external_data_helper import load_external_data_for_tensor

    proto = _parse(path)
    tensors = list(walk_tensors(proto))
    check_external(tensors, path)
    for name, tensor in tensors:
        if location_of(tensor) is None:
            continue
        try:
            load_external_data_for_tensor(tensor, str(path.parent))
        except (ValidationError, ValueError, OSError) as error:
            raise ModelError(
                f"The external data of the tensor '{name}' cannot be read: {error}.",
                expected="plain files beside the model",
                fix=f"copy {location_of(tensor)} again, as a file and not as a link",
                file=path,
            ) from error
    return proto


def save_onnx(proto: ModelProto, path: Path, *, external: bool | None = None) -> None:
    """Write the model, with its weights in ``<file name>.data`` beside it where they are many.

    Where weights go outside, they are moved out of ``proto`` to keep memory low: read the file again to go on with it.

    Args:
        proto: the model, with its weights in memory.
        path: the ``.onnx`` file; an older one and its data file are replaced.
        external: True = weights of 1 KiB and more outside, False = inside; None = outside above ``EXTERNAL_ABOVE``.

    Raises:
        ModelError: the weights should stay inside, but do not fit into one protobuf.
    """
    import onnx

    size = weight_bytes(proto)
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)
    if external is False and size > _PROTOBUF_LIMIT - 2**20:
        raise ModelError(
            f"The weights ({size:,} bytes) do not fit into one ONNX file.",
            expected="at most 2 GiB without external data",
            fix="write them beside the model (external data)",
            file=path,
        )
    if external or (external is None and size > EXTERNAL_ABOVE):
        _move_out(proto, data)
    onnx.save_model(proto, path, format="protobuf")


def _move_out(proto: ModelProto, data: Path) -> None:
    from onnx.external_data_helper import set_external_data

    end = 0
    with data.open("wb") as file:
        for tensor in _movable(proto):
            _make_raw(tensor)
            values = tensor.raw_data
            end += file.write(b"\0" * (-end % (_PAGE if len(values) > 2**20 else _ALIGN)))
            set_external_data(tensor, data.name, end, len(values))
            tensor.ClearField("raw_data")
            end += file.write(values)
    if end == 0:
        data.unlink()


def _movable(proto: ModelProto) -> Iterator[TensorProto]:
    """Initializers, and tensors in attributes only where those alone would be too much for one file."""
    from onnx import TensorProto

    initializers = [tensor for graph in walk_graphs(proto.graph) for tensor in graph.initializer]
    rest = weight_bytes(proto) - sum(map(tensor_bytes, initializers))
    tensors = [tensor for _, tensor in walk_tensors(proto)] if rest > EXTERNAL_ABOVE else initializers
    for tensor in tensors:
        if tensor.data_type != TensorProto.STRING and tensor_bytes(tensor) >= _SMALL:
            yield tensor


def _make_raw(tensor: TensorProto) -> None:
    """Values in typed fields (``float_data``, ...) -> ``raw_data``."""
    from onnx import numpy_helper

    if not tensor.HasField("raw_data"):
        name, doc = tensor.name, tensor.doc_string
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), name))
        tensor.doc_string = doc


def move_external(path: Path, locations: Mapping[str, str]) -> None:
    """Write the file again with other locations (old -> new) of its external data, which are not looked at."""
    proto = _parse(path)
    for _, tensor in walk_tensors(proto):
        new = locations.get(location_of(tensor) or "")
        for entry in tensor.external_data:
            if new is not None and entry.key == "location":
                entry.value = new
    path.write_bytes(proto.SerializeToString())


def external_files(path: Path) -> list[Path]:
    """The files that hold the model's external data, sorted by name; each once.

    Raises:
        ModelError: as ``load_structure``.
    """
    stat = path.stat()
    return list(_external_files(path.absolute(), stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=64)
def _external_files(path: Path, mtime_ns: int, size: int) -> tuple[Path, ...]:
    del mtime_ns
    if size and not _mentions(path, b"location"):
        return ()
    proto = _parse(path)
    tensors = list(walk_tensors(proto))
    check_external(tensors, path)
    locations = {location_of(tensor) for _, tensor in tensors} - {None}
    return tuple(path.parent / location for location in sorted(map(str, locations)))


def _mentions(path: Path, word: bytes) -> bool:
    """Whether the bytes occur in the file; far cheaper than parsing it."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(word) >= 0


def _parse(path: Path) -> ModelProto:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # no stubs among the dependencies
    from onnx import ModelProto

    if path.stat().st_size > _PROTOBUF_LIMIT:
        raise _broken(path, "The file is larger than 2 GiB, so it is no ONNX model")
    proto = ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise _broken(path, "The file is cut off or no ONNX model: its protobuf cannot be read") from error
    if not proto.HasField("graph"):
        raise _broken(path, "The file is cut off or no ONNX model: there is no graph in it")
    if not proto.opset_import:
        raise _broken(path, "The ONNX model is cut off: it does not say its opset")
    if not proto.graph.output:
        raise _broken(path, "The ONNX model is damaged: its graph has no outputs")
    return proto


def _broken(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{what}.",
        expected="a complete ONNX file (weights above 2 GiB lie beside it as external data)",
        fix="export or copy it again, and compare sizes or checksums with the source",
        file=path,
    )


def walk_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph itself, then every subgraph (bodies of If, Loop, Scan), depth first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from walk_graphs(attribute.g)
            for inner in attribute.graphs:
                yield from walk_graphs(inner)


def walk_bodies(proto: ModelProto) -> Iterator[GraphProto | FunctionProto]:
    """Everything that holds nodes: the graph, the functions, and the subgraphs of both."""
    yield from walk_graphs(proto.graph)
    for function in proto.functions:
        yield function
        for node in function.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from walk_graphs(attribute.g)
                for inner in attribute.graphs:
                    yield from walk_graphs(inner)


def walk_tensors(proto: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """(name, tensor) of all initializers and attribute tensors, in subgraphs and functions too.

    A tensor without a name of its own has the name of its node's output.
    """
    for body in walk_bodies(proto):
        if hasattr(body, "initializer"):
            for tensor in body.initializer:
                yield tensor.name, tensor
            for sparse in body.sparse_initializer:
                yield sparse.values.name, sparse.values
                yield sparse.values.name, sparse.indices
        for node in body.node:
            for tensor in _attribute_tensors(node):
                yield tensor.name or next(iter(node.output), node.name), tensor


def _attribute_tensors(node: NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            if sparse.HasField("values"):
                yield from (sparse.values, sparse.indices)


def tensor_bytes(tensor: TensorProto) -> int:
    """Size of the tensor's values by its dims and dtype; strings by what they hold."""
    expected = expected_bytes(tensor)
    return sum(map(len, tensor.string_data)) if expected is None else expected


def weight_bytes(proto: ModelProto) -> int:
    """Size of all tensors by dims and dtype, wherever their values lie."""
    return sum(tensor_bytes(tensor) for _, tensor in walk_tensors(proto))


def onnx_signature(proto: ModelProto) -> Signature:
    """Inputs (without initializers) and outputs; dynamic dimensions have names.

    An unnamed dimension becomes ``<name>_dim<axis>``, but ``batch`` where it is axis 0 and axis 0 of every input is
    dynamic and, if named, named like a batch. Values that are no tensors (sequence, optional, map) have that word as
    dtype, and no shape.
    """
    held = {tensor.name for tensor in proto.graph.initializer}
    held.update(sparse.values.name for sparse in proto.graph.sparse_initializer)
    inputs = [value for value in proto.graph.input if value.name not in held]
    batch = batch_name([_dims(value.type) for value in inputs])
    return Signature(
        inputs=tuple(_spec(value, batch) for value in inputs),
        outputs=tuple(_spec(value, batch) for value in proto.graph.output),
    )


def batch_name(shapes: Sequence[tuple[Dim | None, ...] | None]) -> str | None:
    """The name for an unnamed axis 0 (None in ``shapes``), or None where axis 0 cannot be the batch everywhere."""
    first = [shape[0] for shape in shapes if shape]
    named = [dim for dim in first if isinstance(dim, str)]
    if not first or any(isinstance(dim, int) for dim in first):
        return None
    if any(name.lower() not in BATCH_NAMES for name in named):
        return None
    return named[0] if named else "batch"


def name_dims(name: str, dims: tuple[Dim | None, ...], batch: str | None) -> tuple[Dim, ...]:
    """The shape with a name for every unnamed (None) dimension."""
    own = [f"{name}_dim{axis}" if axis or batch is None else batch for axis in range(len(dims))]
    return tuple(own[axis] if dim is None else dim for axis, dim in enumerate(dims))


def _spec(value: ValueInfoProto, batch: str | None) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return TensorSpec(value.name, (kind or "unknown").removesuffix("_type"), None)
    dims = _dims(value.type)
    shape = None if dims is None else name_dims(value.name, dims, batch)
    return TensorSpec(value.name, dtype_name(value.type.tensor_type.elem_type), shape)


def _dims(kind: TypeProto) -> tuple[Dim | None, ...] | None:
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else (dim.dim_param or None)
        for dim in kind.tensor_type.shape.dim
    )


def dtype_name(elem_type: int) -> str:
    """``TensorProto.DataType`` -> numpy's dtype name, ``bfloat16`` or ``string``."""
    from onnx import TensorProto, helper

    if elem_type == TensorProto.STRING:
        return "string"
    try:
        return str(helper.tensor_dtype_to_np_dtype(elem_type).name)
    except KeyError:
        return TensorProto.DataType.Name(elem_type).lower() if elem_type in TensorProto.DataType.values() else "unknown"
