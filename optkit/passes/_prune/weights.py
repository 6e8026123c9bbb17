"""Where torch modules and ONNX graphs keep the weights of linear layers and convolutions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from optkit.passes._ir import constant, node_label
from optkit.passes._prune.sparse import Array, Rule, Weight
from optkit.passes._quant.select import EXCLUDED, excluded
from optkit.passes._quant.weights import unfit

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor, nn

ONNX_LAYERS = ("MatMul", "Gemm", "Conv", "ConvTranspose")


@dataclass
class Found:
    """What was looked for in a model."""

    weights: list[Weight] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(layer, why its weights stay as they are)."""
    labels: list[str] = field(default_factory=list)
    """Of all layers that were looked at."""

    def look(self, label: str, exclude: Sequence[str], found: Weight | str) -> None:
        """Take a layer's weights, or the reason why not."""
        self.labels.append(label)
        found = EXCLUDED if excluded(label, exclude) else found
        if isinstance(found, Weight) and (reason := unfit(found.read())):
            found = reason
        if isinstance(found, Weight):
            self.weights.append(found)
        else:
            self.skipped.append((label, found))


def torch_weights(module: nn.Module, exclude: Sequence[str]) -> Found:
    """Of Linear, Conv, ConvTranspose, the projections of MultiheadAttention, and transformers' Conv1D."""
    found = Found()
    taken: dict[int, str] = {}
    layers = list(_torch_layers(module))
    own = {id(part) for _, part, _, _ in layers}
    others = {
        id(value): name
        for name, part in module.named_modules()
        if id(part) not in own
        for value in part.parameters(recurse=False)
    }
    for name, part, parameter, axis in layers:
        value = part._parameters.get(parameter)
        label = name or type(part).__name__
        if value is None:
            found.look(label, exclude, "its weight is computed, as by a parametrization")
        elif id(value) in others:
            found.look(label, exclude, f"its weight is also that of '{others[id(value)]}', which is no such layer")
        elif id(value) in taken:
            found.look(label, exclude, f"its weight is that of '{taken[id(value)]}'")
        else:
            taken[id(value)] = label
            found.look(label, exclude, _of_torch(label, value, axis))
    return found


def _torch_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, int]]:
    """(name, layer, its parameter, the axis of its inputs)."""
    from torch import nn

    kinds = {
        nn.Linear: ("weight", 1),
        **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), ("weight", 1)),
        **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), ("weight", 0)),
    }
    for name, part in module.named_modules():
        kind = next((kinds[each] for each in kinds if isinstance(part, each)), None)
        if kind is not None:
            yield name, part, *kind
        elif isinstance(part, nn.MultiheadAttention) and part.in_proj_weight is not None:
            yield name, part, "in_proj_weight", 1
        elif type(part).__name__ == "Conv1D" and hasattr(part, "weight"):
            yield name, part, "weight", 0


def _of_torch(label: str, value: Tensor, axis: int) -> Weight:
    import torch

    def read() -> Array:
        whole = value.detach()
        return np.asarray((whole.float() if whole.dtype == torch.bfloat16 else whole).numpy())

    def prune(rule: Rule) -> None:
        with torch.no_grad():
            value.copy_(torch.from_numpy(rule(read())))

    return Weight(label, axis, read, prune)


def onnx_weights(model: ir.Model, exclude: Sequence[str]) -> Found:
    """Of MatMul, Gemm, Conv and ConvTranspose, in subgraphs too; all constants must be initializers."""
    found = Found()
    taken: dict[ir.Value, str] = {}
    for node in model.graph.all_nodes():
        if node.domain or node.op_type not in ONNX_LAYERS:
            continue
        label = node_label(node)
        value, axis = _operand(node)
        if reason := _refusal(value):
            found.look(label, exclude, reason)
        elif value in taken:
            found.look(label, exclude, f"its weights are those of '{taken[value]}'")
        else:
            taken[value] = label
            found.look(label, exclude, _of_onnx(label, value, axis))
    return found


def _operand(node: ir.Node) -> tuple[ir.Value, int]:
    """The weights as they are stored, and the axis of inputs there."""
    value = node.inputs[1]
    assert value is not None  # the checker guarantees it
    if node.op_type in ("Conv", "ConvTranspose"):
        return value, 1 if node.op_type == "Conv" else 0
    turned = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
    before = value.producer()
    if before is not None and (before.domain, before.op_type) == ("", "Transpose") and before.inputs[0] is not None:
        stored = constant(before.inputs[0])
        if stored is not None and stored.ndim == 2:
            value, turned = before.inputs[0], not turned
    return value, -1 if turned else -2


def _refusal(value: ir.Value) -> str:
    weights = constant(value)
    if weights is None or not value.is_initializer():
        return "its second input is computed, not a constant weight"
    if weights.ndim < 2:
        return "its weights are a vector"
    if weights.dtype.kind not in "fV":  # bfloat16 is a V
        return f"its weights are {weights.dtype}"
    turned = [user.outputs[0] for user, _ in value.uses() if user.op_type == "Transpose"]
    users = [user.op_type for each in (value, *turned) for user, _ in each.uses()]
    others = [user for user in users if user not in (*ONNX_LAYERS, "Transpose")]
    if others or value.is_graph_output():
        return f"its weights are read by {others[0] if others else 'whoever calls the model'} too"
    return ""


def _of_onnx(label: str, value: ir.Value, axis: int) -> Weight:
    import onnx_ir as ir

    stored: Any = value.const_value

    def read() -> Array:
        return np.asarray(stored.numpy())

    def prune(rule: Rule) -> None:
        def make() -> ir.Tensor:
            return ir.tensor(rule(read()), name=value.name)

        # Made when it is saved, so that one layer at a time is in memory.
        value.const_value = ir.LazyTensor(make, stored.dtype, stored.shape, name=value.name)

    return Weight(label, axis % stored.numpy().ndim, read, prune)
