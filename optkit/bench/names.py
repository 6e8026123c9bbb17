"""Which of the model's own nodes a node of the profile came from, where names tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import NodeProto

_ADDED = re.compile(
    r"(_quantized|_quantize|_quantizelinear|_dequantize|_dequantizelinear|_quant_scales_mul|_output_scale_mul|_quant"
    r"|_matmul_quant|_nhwc|_nchwc|_int8|_qdq|_token_\d+|/\w+fusion/?)$",
    re.IGNORECASE,
)
"""What quantizers and onnxruntime's rewrites add to the end of a node's name."""

_BEFORE = re.compile(r"^fused ", re.IGNORECASE)

_PRODUCTS = re.compile(r"Conv|Gemm|MatMul")
_FUSED_AFTER = 3
"""Nodes after a product (bias, activation) that rewrites may take into it."""


def base_name(name: str) -> str:
    """The name before quantizers and rewrites: ``node_MatMul_91_quant`` -> ``node_MatMul_91``."""
    return _stages(name)[-1]


def _stages(name: str) -> list[str]:
    """The name, and what is left of it each time that an addition is taken off."""
    found = [_BEFORE.sub("", name)]
    while (shorter := _ADDED.sub("", found[-1])) not in ("", found[-1]):
        found.append(shorter)
    return [name, *found]


def origins(path: Path, operators: Mapping[str, str]) -> dict[str, str]:
    """Name in the profile -> name of the node before quantizers and rewrites; empty where it is onnxruntime's own.

    onnxruntime names fused nodes and nodes without a name after their operator: such names say nothing about where
    they came from, and the same one means different nodes in different models.

    onnxruntime calls a convolution in its blocked layout after the tensor it gives, be that of the convolution or of
    the activation it took in: such a tensor leads back to the product it came from.

    Args:
        path: the ``.onnx`` file.
        operators: name in its profile -> operator.
    """
    from optkit.model.onnx_file import load_structure, walk_graphs

    nodes = [node for graph in walk_graphs(load_structure(path).graph) for node in graph.node]
    own = {node.name for node in nodes}
    makers = {tensor: node for node in nodes for tensor in node.output if tensor}
    found = {}
    for name, operator in operators.items():
        stages = _stages(name)
        tensor = next((stage for stage in reversed(stages) if stage in makers), None)
        if not own.isdisjoint(stages):
            found[name] = stages[-1]
        else:
            found[name] = "" if tensor is None else _source(tensor, operator, makers)
    return found


def _source(tensor: str, operator: str, makers: Mapping[str, NodeProto]) -> str:
    """Name, before quantizers, of the product that a tensor comes from, or of the node of this operator."""
    first = node = makers[tensor]
    for _ in range(_FUSED_AFTER):
        if node.op_type == operator or _PRODUCTS.search(node.op_type):
            return base_name(node.name)
        before = makers.get(node.input[0]) if node.input else None
        if before is None:
            break
        node = before
    return base_name(first.name)
