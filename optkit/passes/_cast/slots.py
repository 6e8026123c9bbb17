"""Where a node's type is its own choice, as its operator's schema says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

Schema = tuple[tuple[str, ...], tuple[str, ...], dict[str, frozenset[str]]]
"""Types of inputs and of outputs (a variable such as ``T``, or ``tensor(float)``), and what each variable may be."""


_ANY = frozenset({"tensor(float16)", "tensor(bfloat16)"})


@dataclass(frozen=True)
class Slots:
    """Where a node's float32 tensors are whose type is its own choice."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    allowed: frozenset[str]
    """ONNX types that all of them may have."""

    def values(self, node: ir.Node) -> Iterator[ir.Value]:
        """The tensors in these places."""
        yield from (value for i in self.inputs if (value := node.inputs[i]) is not None)
        yield from (node.outputs[i] for i in self.outputs)


def find_slots(node: ir.Node, opset: int) -> Slots | None:
    """Where ``node`` has float32 tensors that may have another type by its schema; None = its schema is not known."""
    if node.op_type == "Cast" and not node.domain:
        given = tuple(i for i, value in enumerate(node.outputs) if is_float32(value))
        return Slots((), given, _ANY)
    schema = _schema(node.domain, node.op_type, opset)
    if schema is None:
        return None
    takes, gives, types = schema
    free = [(i, name) for i, name in _floats(node.inputs, takes) if name in types]
    bound = {name for _, name in free}
    outputs = tuple(i for i, name in _floats(node.outputs, gives) if name in bound)
    allowed = frozenset.intersection(*(types[name] for name in bound)) if bound else frozenset()
    return Slots(tuple(i for i, _ in free), outputs, allowed)


def _floats(values: Sequence[ir.Value | None], names: Sequence[str]) -> Iterator[tuple[int, str]]:
    """(index, its parameter's type) of each float32 tensor; the last parameter may be there several times."""
    for i, value in enumerate(values):
        if value is not None and is_float32(value):
            yield i, names[min(i, len(names) - 1)]


@cache
def _schema(domain: str, kind: str, opset: int) -> Schema | None:
    """The operator as onnx describes it; those of onnxruntime as onnxruntime does."""
    import onnx

    try:
        found = onnx.defs.get_schema(kind, opset, domain)
    except onnx.defs.SchemaError:
        return _own_schemas().get((domain, kind))
    return (
        tuple(each.type_str for each in found.inputs),
        tuple(each.type_str for each in found.outputs),
        {each.type_param_str: frozenset(each.allowed_type_strs) for each in found.type_constraints},
    )


@cache
def _own_schemas() -> dict[tuple[str, str], Schema]:
    from onnxruntime.capi import _pybind_state

    return {
        (found.domain, found.name): (
            tuple(each.typeStr for each in found.inputs),
            tuple(each.typeStr for each in found.outputs),
            {each.type_param_str: frozenset(each.allowed_type_strs) for each in found.type_constraints},
        )
        for found in _pybind_state.get_all_operator_schema()
    }


def is_float32(value: ir.Value) -> bool:
    """Whether the tensor is known to be float32."""
    import onnx_ir as ir

    return bool(value.dtype == ir.DataType.FLOAT)
