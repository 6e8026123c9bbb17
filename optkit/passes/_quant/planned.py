"""What quantize-static would make of an ONNX model, layer by layer, for those who prepare the weights for it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from optkit.passes._ir import constant
from optkit.passes._quant.calibrators import Calibration
from optkit.passes._quant.cpu import ActivationType
from optkit.passes._quant.operators import ABSORBED, LINEAR, WEIGHTED

if TYPE_CHECKING:
    import onnx_ir as ir

    from optkit.data.dataset import Array
    from optkit.model.model import Model
    from optkit.passes._base import Context
    from optkit.passes._quant.prepare import Prepared
    from optkit.passes._quant.ranges import Activations
    from optkit.passes._quant.static import Builder


@dataclass(frozen=True)
class Manner:
    """How to quantize: options of quantize-static of the same names."""

    activations: ActivationType
    per_channel: bool
    calibration: Calibration
    percentile: float
    bias_correction: bool
    exclude: tuple[str, ...]
    sentence: str


@dataclass(frozen=True)
class Steps:
    """How a tensor is rounded."""

    scale: float
    zero: int
    low: int
    """Least integer."""
    high: int


@dataclass(frozen=True)
class PlannedLayer:
    """One layer with integers."""

    node: str
    """Name of the Conv, ConvTranspose, MatMul or Gemm."""
    weight: str
    """Name of its weights."""
    weights: Array
    """float32, as they are in the graph."""
    per_channel: bool
    """Whether every output channel has a scale."""
    top: int
    """Largest integer of the weights; the least is its negative."""
    taken: Steps
    """Its input."""
    given: Steps | None
    """Its output, where that is rounded, be it behind the Relu or Clip that the integers absorb."""
    bias: bool
    """Whether integers of a bias are added to the products."""
    means: tuple[float, ...]
    """Of its input's channels, where its bias is corrected by them; else empty."""


@dataclass(frozen=True)
class Plan:
    """What was found."""

    layers: list[PlannedLayer]
    model: Model
    """In integers, where there are layers."""
    skipped: list[tuple[str, str]]


def plan_static(model: Model, ctx: Context, manner: Manner) -> Plan:
    """Quantize an ONNX model as quantize-static does, and read off what becomes of each layer.

    What stays in the workdir is the folder of ``Plan.model``.

    Raises:
        DataError, PassError: as quantize-static.
    """
    from optkit.passes._quant.flow import candidates
    from optkit.passes._quant.operators import auto_ops
    from optkit.passes._quant.prepare import FLOAT_FOLDER, prepare
    from optkit.passes._quant.ranges import ranges_by
    from optkit.passes._quant.static import sizes_of, tensors_of

    prepared = prepare(model, ctx)
    graph = prepared.graph.graph
    ops = auto_ops(prepared.graph, ctx.target.provider)
    chosen, everything = candidates(graph, ops, (), manner.exclude), candidates(graph, ops).names
    if not any(node.op_type in WEIGHTED and node.name in chosen.names for node in graph):
        return Plan([], model, chosen.skipped)
    tensors = tensors_of(graph, everything, chosen.names)
    found = ranges_by(manner.calibration, manner.percentile, prepared.model, tensors, ctx)
    sizes = sizes_of(graph, everything, chosen.names, found)
    builder = _builder(model, prepared, chosen.names, sizes, found, ctx, manner)
    built = builder({}).model
    layers = _read(built, graph, found, builder.weights.reduce_range, correct_bias=manner.bias_correction)
    shutil.rmtree(ctx.workdir / FLOAT_FOLDER)
    return Plan(layers, built, chosen.skipped)


def _builder(
    model: Model,
    prepared: Prepared,
    chosen: list[str],
    sizes: dict[str, int],
    found: Activations,
    ctx: Context,
    manner: Manner,
) -> Builder:
    from optkit.passes._quant.cpu import activation_grid, reduce_range
    from optkit.passes._quant.layer_weights import Weights
    from optkit.passes._quant.static import Builder

    return Builder(
        model,
        prepared.model.path,
        chosen,
        sizes,
        found,
        {"asked": activation_grid(manner.activations, ctx.target)},
        Weights(manner.per_channel, reduce_range(None, ctx.target)),
        ctx.workdir,
        manner.sentence,
        forced=False,
        correct_bias=manner.bias_correction,
    )


def _read(
    built: Model, graph: ir.Graph, found: Activations, reduce_range: bool, *, correct_bias: bool
) -> list[PlannedLayer]:
    from optkit.passes._ir import load_ir

    floats = {node.name: node for node in graph}
    layers = []
    for node in load_ir(built.path).graph:
        data, weights, source = _pair(node, 0), _pair(node, 1), floats.get(node.name)
        if node.op_type not in WEIGHTED or data is None or weights is None or source is None:
            continue
        value, stored = source.inputs[1], constant(source.inputs[1])
        assert value is not None and stored is not None  # see operators.refusal
        corrected = correct_bias and node.op_type in ("Conv", "Gemm") and source.inputs[0] is not None
        means = found[source.inputs[0].name or ""].means if corrected and source.inputs[0] is not None else []
        layers.append(
            PlannedLayer(
                node.name or "",
                value.name or "",
                np.asarray(stored),
                per_channel="axis" in weights.attributes,
                top=64 if reduce_range else 127,
                taken=_steps(data),
                given=_given(node),
                bias=_pair(node, 2) is not None,
                means=tuple(means),
            )
        )
    return layers


def _steps(node: ir.Node) -> Steps:
    """Of a QuantizeLinear or DequantizeLinear."""
    scale, zero = constant(node.inputs[1]), constant(node.inputs[2])
    assert scale is not None and zero is not None  # QdqWriter writes constants
    limits = np.iinfo(zero.dtype.name)
    return Steps(float(scale), int(zero), limits.min, limits.max)


def _given(node: ir.Node) -> Steps | None:
    users = list(node.outputs[0].consumers()) if node.op_type not in LINEAR else []
    if len(users) == 1 and users[0].op_type in ABSORBED:
        users = list(users[0].outputs[0].consumers())
    return _steps(users[0]) if len(users) == 1 and users[0].op_type == "QuantizeLinear" else None


def _pair(node: ir.Node, index: int) -> ir.Node | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None
