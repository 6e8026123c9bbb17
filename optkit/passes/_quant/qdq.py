"""Static quantization in QDQ form: which nodes, and onnxruntime's quantizer on measured ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from optkit.model.onnx_file import walk_graphs
from optkit.passes._quant.select import EXCLUDED, excluded

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

    from optkit.passes._quant.ranges import Range

_Layer = Literal["Conv", "ConvTranspose", "MatMul", "Gemm"]
_Norm = Literal["Softmax", "BatchNormalization", "InstanceNormalization", "LayerNormalization"]
_Pointwise = Literal["Add", "Mul", "Where", "Relu", "Clip", "LeakyRelu", "Sigmoid"]
_Along = Literal["MaxPool", "AveragePool", "GlobalAveragePool", "ArgMax", "CumSum", "TopK", "Resize"]
_Shape = Literal["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"]
_Part = Literal["Concat", "Split", "Slice", "Pad", "Gather", "GatherElements"]
QdqOp = Literal[_Layer, _Norm, _Pointwise, _Along, _Shape, _Part]
"""ONNX operators that onnxruntime's quantizer knows: its ``QDQRegistry`` and ``QLinearOpsRegistry``."""
LINEAR: tuple[QdqOp, ...] = ("MatMul", "Gemm")
"""What is quantized in models with attention or layer normalization: there, more costs accuracy and wins no time."""
CONVOLUTIONAL: tuple[QdqOp, ...] = (
    *("Conv", "ConvTranspose", *LINEAR),
    *("Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Split", "Pad", "Resize"),
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice"),
)
"""What is quantized in convolutional networks, so that int8 flows from layer to layer. onnxruntime's own list without
Softmax, whose result 8 bits cannot hold, and without normalizations."""
WEIGHTED = frozenset({"Conv", "ConvTranspose", *LINEAR})
"""Operators that are worth it by themselves."""
_SEQUENCE_OPS = frozenset(
    {
        *("LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "RMSNormalization"),
        *("Attention", "MultiHeadAttention", "GroupQueryAttention", "LSTM", "GRU"),
    }
)


@dataclass(frozen=True)
class Selection:
    """The nodes that will be quantized."""

    ops: tuple[QdqOp, ...]
    nodes: list[NodeProto] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def tensors(self, graph: GraphProto) -> list[str]:
        """Names of the activations whose ranges are needed, in order of appearance."""
        held = {tensor.name for tensor in graph.initializer}
        names = (name for node in self.nodes for name in (*node.input, *node.output))
        return list(dict.fromkeys(name for name in names if name and name not in held))


def auto_ops(graph: GraphProto) -> tuple[QdqOp, ...]:
    """``CONVOLUTIONAL`` for graphs with convolutions and no sign of attention, else ``LINEAR``."""
    held = {tensor.name for tensor in graph.initializer}
    kinds = {node.op_type for body in walk_graphs(graph) for node in body.node}
    attention = kinds & _SEQUENCE_OPS or any(
        node.op_type == "MatMul" and not held & set(node.input) for node in graph.node
    )
    convolutional = any(node.op_type == "Conv" for node in graph.node)
    return CONVOLUTIONAL if convolutional and not attention else LINEAR


def select(graph: GraphProto, ops: tuple[QdqOp, ...], exclude: Sequence[str]) -> Selection:
    """The nodes of ``graph`` (every one has a name) to quantize, and those a user might miss with the reason."""
    held = {tensor.name: tensor.data_type for tensor in graph.initializer}
    chosen = Selection(ops)
    for node in graph.node:
        reason = _refusal(node, ops, exclude, held)
        if not reason:
            chosen.nodes.append(node)
        elif reason == EXCLUDED or node.op_type in WEIGHTED:
            chosen.skipped.append((node.name, reason))
    return chosen


def _refusal(node: NodeProto, ops: tuple[str, ...], exclude: Sequence[str], held: Mapping[str, int]) -> str:
    if node.domain not in ("", "ai.onnx"):
        return f"it is not ONNX's own {node.op_type}"
    if node.op_type not in ops:
        return f"{node.op_type} is not among the operators to quantize here"
    if excluded(node.name, exclude):
        return EXCLUDED
    if node.op_type in WEIGHTED and node.input[1] not in held:
        return "its second input is computed, not a constant weight"
    if node.op_type in WEIGHTED and held[node.input[1]] != 1:  # TensorProto.FLOAT
        return "its weights are not float32"
    return ""


def quantize_qdq(
    model: ModelProto, chosen: Selection, ranges: Mapping[str, Range], *, signed: bool, **options: bool
) -> ModelProto:
    """``model`` with QuantizeLinear and DequantizeLinear around every chosen node, and its weights as int8.

    Args:
        model: with weights, changed in place; every node has a name.
        chosen: nodes to quantize.
        ranges: by tensor; nodes whose first input has none (it is no float32) stay as they are.
        signed: int8 activations with zero point 0, else uint8 with any zero point.
        options: ``per_channel`` and ``reduce_range`` of onnxruntime's quantizer.

    Source: onnxruntime.quantization.qdq_quantizer. Unlike there, results of MatMul and Gemm stay float32, which their
    integer kernels give for free: rounding them again costs accuracy, and an operator each.
    """
    from onnx import TensorProto
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import add_infer_metadata

    _state_types(model.graph, ranges)
    metadata = list(model.metadata_props)
    add_infer_metadata(model)  # tells the quantizer not to write the model to disk and infer shapes
    quantizer = QDQQuantizer(
        model,
        weight_qType=TensorProto.INT8,
        activation_qType=TensorProto.INT8 if signed else TensorProto.UINT8,
        tensors_range=_tensors_data(ranges),
        nodes_to_quantize=[node.name for node in chosen.nodes if node.input[0] in ranges],
        nodes_to_exclude=[],
        op_types_to_quantize=list(chosen.ops),
        extra_options={
            "ActivationSymmetric": signed,
            "WeightSymmetric": True,
            "OpTypesToExcludeOutputQuantization": list(LINEAR),
        },
        **options,
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()  # the quantizer appends its nodes at the end
    made: ModelProto = quantizer.model.model
    del made.metadata_props[:], made.graph.value_info[:]
    made.metadata_props.extend(metadata)
    return made


def _state_types(graph: GraphProto, ranges: Mapping[str, Range]) -> None:
    """The quantizer reads dtypes of tensors from here; exporters' own entries contradict it and each other at times."""
    from onnx import TensorProto, helper

    del graph.value_info[:]
    graph.value_info.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ranges)


def _tensors_data(ranges: Mapping[str, Range]) -> Any:
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData

    bounds = {name: tuple(np.array(edge, np.float32) for edge in found.bounds()) for name, found in ranges.items()}
    return TensorsData(CalibrationMethod.MinMax, bounds)


def quantized_nodes(graph: GraphProto, chosen: Selection) -> Iterator[tuple[str, str]]:
    """(name, what) of every chosen node that now computes on dequantized tensors."""
    sources = {name: node.op_type for node in graph.node for name in node.output}
    names = {node.name for node in chosen.nodes}
    for node in graph.node:
        inputs = node.input[:2] if node.op_type in WEIGHTED else node.input[:1]
        if node.name in names and inputs and all(sources.get(name) == "DequantizeLinear" for name in inputs):
            yield node.name, f"{node.op_type} on dequantized int8"
