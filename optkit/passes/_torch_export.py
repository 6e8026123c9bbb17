"""torch -> ONNX in memory, by either of torch's exporters, under the names of the signature."""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.model.load_torch import bind_inputs, forward_names, load_exported, name_outputs
from optkit.model.model import Model
from optkit.model.onnx_file import load_onnx, walk_bodies
from optkit.model.signature import Signature

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor, nn

_INNER = "inner."
"""Prefix that ``_flat_module`` puts before every weight's name, taken off again after the export."""


@dataclass(frozen=True)
class Source:
    """What is exported: a live module, and one batch it is traced with."""

    model: Model
    module: nn.Module
    inputs: Mapping[str, Tensor]
    """By name; no dynamic dimension has size 1, because torch would take that for fixed."""
    signature: Signature

    def dims(self, name: str) -> dict[int, str]:
        """Axis -> name of the dynamic dimensions of an input."""
        shape = self.signature.input(name).shape or ()
        return {axis: dim for axis, dim in enumerate(shape) if isinstance(dim, str)}

    def ordered(self) -> list[str]:
        """Names of the inputs in the order in which ``forward`` takes them."""
        known = [name for name in forward_names(self.module) if name in self.inputs]
        return known if len(known) == len(self.inputs) else list(self.inputs)


def export_dynamo(source: Source, opset: int | None) -> ModelProto:
    """Through ``torch.export``; an archive of ``torch.export`` goes in as it is."""
    import torch

    names = source.ordered()
    args, kwargs = bind_inputs(source.module, {name: source.inputs[name] for name in names}, names)
    outputs = _leaf_names(source.module, args, kwargs)
    if source.model.kind == "pt2":
        given: dict[str, Any] = {"model": load_exported(source.model)}
    else:
        shapes = {name: source.dims(name) for name in names}
        dynamic = tuple(shapes.values()) if args else shapes
        given = {"model": source.module, "args": args, "kwargs": kwargs, "dynamic_shapes": dynamic}
    with _quiet():
        program = torch.onnx.export(
            **given,
            dynamo=True,
            opset_version=opset,
            input_names=names,
            output_names=outputs,
            external_data=False,
            verbose=False,
        )
    assert_program(program)
    proto: ModelProto = program.model_proto
    drop_outputs(proto, [name for name in outputs if name.startswith(_UNNAMED)])
    return proto


_UNNAMED = "optkit_unnamed_"


def _leaf_names(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """A name for every tensor that ``forward`` returns, in torch's order; caches get a name that is dropped later."""
    import torch
    from torch.utils._pytree import tree_leaves

    with torch.inference_mode():
        value = module(*args, **kwargs)
    wanted = list(name_outputs(value).items())
    names = []
    for index, leaf in enumerate(each for each in tree_leaves(value) if isinstance(each, torch.Tensor)):
        place = next((at for at, (_, tensor) in enumerate(wanted) if tensor is leaf), None)
        names.append(f"{_UNNAMED}{index}" if place is None else wanted.pop(place)[0])
    return names
