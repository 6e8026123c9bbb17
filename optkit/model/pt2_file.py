"""The signature of a torch.export archive, from the JSON inside it; needs no torch, and unpickles nothing."""

from __future__ import annotations

import json
import re
from typing import Any

from optkit.model.onnx_file import batch_name, name_dims
from optkit.model.signature import Dim, Signature, TensorSpec

DTYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    12: "bool",
    13: "bfloat16",
    28: "uint16",
    34: "uint32",
    35: "uint64",
}
"""ScalarType of the archive (torch/_export/serde/schema.py) -> dtype name."""


def pt2_signature(text: str | bytes) -> Signature:
    """Signature from an archive's ``models/model.json`` or, older, ``serialized_exported_program.json``.

    Inputs have the names of ``forward``'s arguments, nested ones joined by ``_``. An archive does not keep the names of
    dynamic dimensions: equal symbols get equal names, ``batch`` or ``<input>_dim<axis>``. Outputs have the keys of a
    dict, or ``output_0...``; they are left out where they are nested. Empty where the JSON has an unknown layout.
    """
    try:
        return _read(json.loads(text)["graph_module"])
    except (
        KeyError,
        TypeError,
        ValueError,
        IndexError,
        AttributeError,
        RecursionError,
    ):  # a layout of another version of torch
        return Signature()


def _read(module: dict[str, Any]) -> Signature:
    values = module["graph"]["tensor_values"]
    args = [spec["user_input"]["arg"] for spec in module["signature"]["input_specs"] if "user_input" in spec]
    names = [arg["as_tensor"]["name"] for arg in args if "as_tensor" in arg]
    shapes = {name: [_size(size) for size in values[name]["sizes"]] for name in names}
    symbols = _name_symbols(shapes)
    inputs = [_spec(name, name, values, symbols) for name in names]
    return Signature(tuple(inputs), _outputs(module, values, symbols))


def _size(size: dict[str, Any]) -> Dim:
    """A fixed size, or the expression that stands for it."""
    if "as_int" in size:
        return int(size["as_int"])
    text = str(size["as_expr"]["expr_str"])
    symbol = re.fullmatch(r"Symbol\('(\w+)'.*\)|(\w+)", text)
    return (symbol[1] or symbol[2]) if symbol else text


def _name_symbols(shapes: dict[str, list[Dim]]) -> dict[str, str]:
    """Symbol -> dimension name, by where it first appears among the inputs."""
    unnamed = {name: tuple(dim if isinstance(dim, int) else None for dim in shape) for name, shape in shapes.items()}
    batch = batch_name(list(unnamed.values()))
    found: dict[str, str] = {}
    for axis_0 in (True, False):
        for name, shape in shapes.items():
            named = name_dims(name, unnamed[name], batch)
            for axis, dim in enumerate(shape):
                if isinstance(dim, str) and (axis == 0) == axis_0:
                    found.setdefault(dim, str(named[axis]))
    return found


def _spec(name: str, value: str, values: dict[str, Any], symbols: dict[str, str]) -> TensorSpec:
    sizes = [_size(size) for size in values[value]["sizes"]]
    dims = tuple(dim if isinstance(dim, int) else symbols.get(dim) for dim in sizes)
    return TensorSpec(name, DTYPES[values[value]["dtype"]], name_dims(name, dims, None))


def _outputs(module: dict[str, Any], values: dict[str, Any], symbols: dict[str, str]) -> tuple[TensorSpec, ...]:
    args = [spec["user_output"]["arg"] for spec in module["signature"]["output_specs"] if "user_output" in spec]
    names = _output_names(module, len(args))
    named = [(name, arg["as_tensor"]["name"]) for name, arg in zip(names, args, strict=False) if "as_tensor" in arg]
    if not _nameable(args, names):
        return ()
    return tuple(_spec(name, value, values, symbols) for name, value in named)


def _nameable(args: list[dict[str, Any]], names: list[str]) -> bool:
    """False where running the model once must tell the names: nested outputs, numbers, None among unnamed ones."""
    keyed = bool(names) and not names[0].startswith("output_")
    return bool(names) and all("as_tensor" in arg or (keyed and "as_none" in arg) for arg in args)


def _output_names(module: dict[str, Any], count: int) -> list[str]:
    """Keys of a dict (or of a class that pytree flattens with keys), else output_0...; empty for nested outputs."""
    tree = json.loads(module["module_call_graph"][0]["signature"]["out_spec"])[1]
    children = tree["children_spec"]
    if any(child["children_spec"] for child in children):
        return []
    context = json.loads(tree["context"] or "null")
    keyed = isinstance(context, list) and len(context) == count and all(isinstance(key, str) for key in context)
    return context if keyed else [f"output_{index}" for index in range(count)]
