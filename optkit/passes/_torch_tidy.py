"""What torch's exporters leave behind, put in order: names of weights and dimensions, metadata nobody reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optkit.model.onnx_file import walk_bodies
from optkit.model.signature import Signature

if TYPE_CHECKING:
    from onnx import ModelProto


def strip_prefix(proto: ModelProto, prefix: str) -> None:
    """Weights get the names they have in the module: with ``inner.``, ``inner.layer.weight`` -> ``layer.weight``."""
    taken = {value.name for body in walk_bodies(proto) for value in getattr(body, "initializer", ())}
    names = {name: name.removeprefix(prefix) for name in taken if name.startswith(prefix)}
    names = {old: new for old, new in names.items() if new not in taken}
    for body in walk_bodies(proto):
        for tensor in getattr(body, "initializer", ()):
            tensor.name = names.get(tensor.name, tensor.name)
        for node in body.node:
            for index, name in enumerate(node.input):
                node.input[index] = names.get(name, name)


def tidy(proto: ModelProto, signature: Signature) -> list[str]:
    """Strip what only the exporter needs, and give dynamic dimensions the signature's names.

    Metadata of nodes and values is 39 % of a small file; inferred shapes in ``value_info`` make onnxruntime's dynamic
    quantizer fail.

    Returns:
        The dimensions that the signature calls dynamic and the exporter made fixed, as ``input[axis]=size``.
    """
    for body in walk_bodies(proto):
        for field in ("value_info", "metadata_props", "doc_string"):
            body.ClearField(field)
        parts = [*body.node, *getattr(body, "initializer", ()), *_values(body)]
        for part in parts:
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
    proto.ClearField("metadata_props")
    proto.ClearField("doc_string")
    return _name_dims(proto, signature)


def _values(body: Any) -> list[Any]:
    """Inputs and outputs of a graph; those of a function are plain names."""
    return [] if not hasattr(body, "initializer") else [*body.input, *body.output]


def _name_dims(proto: ModelProto, signature: Signature) -> list[str]:
    ours = {spec.name: spec.shape or () for spec in signature.inputs}
    names: dict[str, str] = {}
    fixed = []
    for value in proto.graph.input:
        for axis, (dim, wanted) in enumerate(
            zip(value.type.tensor_type.shape.dim, ours.get(value.name, ()), strict=False)
        ):
            if isinstance(wanted, str) and dim.dim_param:
                names.setdefault(dim.dim_param, wanted)
            elif isinstance(wanted, str):
                fixed.append(f"{value.name}[{axis}]={dim.dim_value}")
    for value in [*proto.graph.input, *proto.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dim.dim_param)
    return fixed


def relax_outputs(proto: ModelProto, found: Mapping[str, Sequence[int]], sizes: Mapping[str, int]) -> bool:
    """Name the outputs' dimensions by what a run showed, where the exporter had them fixed or made up a name.

    Args:
        proto: the export; changed in place.
        found: output -> shape in a run.
        sizes: dynamic dimension -> its size in that run; a dimension of that size gets its name.

    Returns:
        Whether anything was changed.
    """
    changed = False
    for value in proto.graph.output:
        dims = value.type.tensor_type.shape.dim
        for axis, (dim, size) in enumerate(zip(dims, found[value.name], strict=False)):
            named = [name for name, each in sizes.items() if each == size]
            wrong = dim.HasField("dim_value") and dim.dim_value != size
            foreign = bool(dim.dim_param) and not sizes.keys() & set(re.findall(r"\w+", dim.dim_param))
            if wrong or (foreign and len(named) == 1):
                dim.dim_param = named[0] if len(named) == 1 else f"{value.name}_dim{axis}"
                changed = True
    return changed
