"""Opening and saving ONNX models as onnx-ir graphs: weights stay on disk until somebody reads them."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optkit.errors import PassError

if TYPE_CHECKING:
    import onnx_ir as ir

    from optkit.model.model import Model

# onnxslim and the quantizers import onnxruntime, which reads this once and else writes to the home folder.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


_FROZEN = "optkit.frozen"
OVERRIDABLE_FROM = 4
"""IR version from which an initializer among the inputs is a default; before, the format wanted all of them there."""


def load_ir(path: Path) -> ir.Model:
    """The model with its external weights memory-mapped, and no initializer left that a caller could override.

    ``frozen_inputs`` tells which could before.

    Raises:
        ModelError: no ONNX model, or its external data are missing, too short or outside its folder.
    """
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveInitializersFromInputsPass

    from optkit.model.onnx_file import load_structure

    model = ir.serde.deserialize_model(load_structure(path))
    ir.external_data.set_base_dir(model.graph, path.parent)
    defaults = [value.name for value in model.graph.inputs if value.is_initializer()]
    model.meta[_FROZEN] = defaults if (model.ir_version or 0) >= OVERRIDABLE_FROM else []
    RemoveInitializersFromInputsPass()(model)
    return model


def frozen_inputs(model: ir.Model) -> list[str]:
    """A sentence for every optional input that ``load_ir`` made a constant of; ask before other passes run."""
    return [
        f"input '{name}' has a default value and can no longer be overridden" for name in model.meta.get(_FROZEN, ())
    ]


def inline(model: ir.Model) -> ir.Model:
    """The same model without local functions, so that every node can be seen."""
    from onnx_ir.passes.common import InlinePass

    return InlinePass()(model).model if model.functions else model


def raise_opset(model: ir.Model, minimum: int) -> ir.Model:
    """The model at opset ``minimum``, or as it is when it has that or a later one.

    Raises:
        PassError: onnx's version converter does not know an operator of the model.
    """
    return model if model.opset_imports.get("", minimum) >= minimum else convert_opset(model, minimum)


def convert_opset(model: ir.Model, version: int) -> ir.Model:
    """The model at opset ``version``.

    Raises:
        PassError: onnx's version converter does not know an operator of the model.
    """
    import onnx
    import onnx_ir as ir

    try:
        return ir.from_proto(onnx.version_converter.convert_version(ir.to_proto(model), version))
    except (RuntimeError, ValueError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).split("failed: ")[-1].strip()
        way = "raised" if version > model.opset_imports.get("", version) else "lowered"
        raise PassError(
            f"The model's opset {model.opset_imports.get('')} cannot be {way} to {version}: {reason}",
            expected=f"a model of opset {version}{' or later' if way == 'raised' else ''}",
            fix=f"export it again with opset {version}{' or later' if way == 'raised' else ''}",
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """onnx-ir and onnxscript log what they cannot infer or fold, and go on; what matters is checked on the result."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def remove_unused(model: ir.Model) -> None:
    """Drop nodes and weights that nothing needs any more, and make every name unique."""
    from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)
    NameFixPass()(model)


def save_ir(model: ir.Model, path: Path) -> None:
    """Write ``path``, with weights of more than ``EXTERNAL_ABOVE`` bytes in ``<name>.data`` beside it."""
    import onnx_ir as ir

    from optkit.model.onnx_file import EXTERNAL_ABOVE

    if weight_bytes(model) > EXTERNAL_ABOVE:
        ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)
        return
    ir.external_data.load_to_model(model)
    ir.save(model, path)


def written(model: Model, graph: ir.Model, folder: Path) -> Model:
    """``model`` with ``graph`` as its file, in a ``folder`` that is made for it: what a pass works on for a while."""
    folder.mkdir()
    save_ir(graph, folder / "model.onnx")
    return replace(model, path=folder / "model.onnx")


def derived(source: Model, graph: ir.Model, folder: Path, sentence: str) -> Model:
    """What a pass made of ``source``: ``graph`` without what nothing needs, in a ``folder`` that is made for it."""
    remove_unused(graph)
    return source.derive(written(source, graph, folder).path, "onnx", sentence)


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers, those of subgraphs included."""
    values = (value for graph in model.graphs() for value in graph.initializers.values())
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def op_counts(model: ir.Model) -> Counter[str]:
    """How many nodes of each type, with subgraphs and functions; contrib ops as ``com.microsoft.Gelu``."""
    nodes = [*model.graph.all_nodes(), *(node for body in model.functions.values() for node in body.all_nodes())]
    return Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in nodes)


def node_label(node: ir.Node) -> str:
    """The node's name, or its type and first output where it has none."""
    return node.name or f"{node.op_type} -> {node.outputs[0].name}"


def constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The array of an initializer or a Constant node's output, as a view where possible; None for anything computed."""
    import onnx_ir as ir

    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def add_constant(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """A new initializer of the graph, named after ``name`` and unlike its other initializers."""
    import onnx_ir as ir

    free = name
    while free in graph.initializers:
        free += "_"
    value = ir.val(free, const_value=ir.tensor(array, name=free))
    graph.register_initializer(value)
    return value


def keep_overwritten(model: ir.Model) -> None:
    """Give constants back to the graph that lost them, under the names that the rewriter has given them meanwhile.

    onnxscript's rules name a new constant after another, and put it in the place of one that has the name already.
    """
    for node in model.graph.all_nodes():
        for value in node.inputs:
            known = value is None or value.producer() or value.is_initializer() or value.is_graph_input()
            if value is not None and not known and value.const_value is not None:
                model.graph.register_initializer(value)


def sole_source(value: ir.Value | None) -> ir.Node | None:
    """The node that computes a value which only one node reads, and nobody outside."""
    if value is None or value.is_graph_output() or len(value.uses()) != 1:
        return None
    return value.producer()


def count_changes(before: Counter[str], after: Counter[str]) -> list[tuple[str, str]]:
    """(type, ``12 -> 3``) for every type of node whose number differs."""
    kinds = sorted(before.keys() | after.keys())
    return [(kind, f"{before[kind]} -> {after[kind]}") for kind in kinds if before[kind] != after[kind]]
