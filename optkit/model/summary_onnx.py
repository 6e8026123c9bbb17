"""What an ONNX file says about itself; external data are not read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optkit.model.onnx_file import dtype_name, external_files, load_structure, walk_bodies, walk_tensors
from optkit.model.summary import DataFile, Found, Weight

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_PASS_ON = frozenset({"Transpose", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Cast"})
"""Operators behind which a weight is still that weight."""


def read_onnx(path: Path) -> Found:
    """Operators with those of subgraphs and functions, weights with those in Constant nodes, and where they are used.

    Raises:
        ModelError: as ``load_structure``.
    """
    proto = load_structure(path)
    found = Found(producer=f"{proto.producer_name} {proto.producer_version}".strip(), ir_version=proto.ir_version)
    found.opsets = {opset.domain or "ai.onnx": opset.version for opset in proto.opset_import}
    tensors = list(walk_tensors(proto))
    found.weights = [Weight(name, dtype_name(tensor.data_type), tuple(tensor.dims)) for name, tensor in tensors]
    found.external = [DataFile(path=file.name, bytes=file.stat().st_size) for file in external_files(path)]
    _look_at_nodes(proto, {weight.name: weight for weight in found.weights}, found)
    if proto.functions:
        found.notes.append(f"{len(proto.functions)} functions; their nodes are counted once each, not by call")
    return found


def _look_at_nodes(proto: ModelProto, known: dict[str, Weight], found: Found) -> None:
    for body in walk_bodies(proto):
        for node in body.node:
            found.operators[_label(node)] += 1
            weights = [known[name] for name in node.input if name in known]
            if node.op_type in _PASS_ON and weights:
                known.setdefault(node.output[0], weights[0])
                continue
            found.used += [(node.op_type, weight) for weight in weights if len(weight.shape) > 1]


def _label(node: NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else str(node.op_type)
