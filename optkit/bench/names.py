"""Which of the model's own nodes a node of the profile came from, as far as names tell."""

from __future__ import annotations

import re
from collections.abc import Iterable
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
    before, name = "", _BEFORE.sub("", name)
    while before != name:
        before, name = name, _ADDED.sub("", name) or name
    return name


def origins(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Name in the profile -> name of the node in the file.

    onnxruntime calls a convolution in its blocked layout after the tensor it gives, be that of the convolution or of
    the activation it took in: such a tensor leads back to the product it came from.

    Args:
        path: the ``.onnx`` file.
        names: of nodes in its profile.
    """
    from optkit.model.onnx_file import load_structure, walk_graphs

    nodes = [node for graph in walk_graphs(load_structure(path).graph) for node in graph.node]
    own = {node.name for node in nodes}
    makers = {tensor: node for node in nodes for tensor in node.output}
    bases = {name: base_name(name) for name in names}
    return {name: base if base in own or base not in makers else _source(base, makers) for name, base in bases.items()}


def _source(tensor: str, makers: dict[str, NodeProto]) -> str:
    """Name of the product that a tensor comes from, or of the node that gives it."""
    first = node = makers[tensor]
    for _ in range(_FUSED_AFTER):
        if _PRODUCTS.search(node.op_type):
            return str(node.name)
        before = makers.get(node.input[0]) if node.input else None
        if before is None:
            break
        node = before
    return str(first.name) or tensor
