"""torch -> ONNX in memory, by either of torch's exporters, under the names of the signature."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.data.dataset import Arrays
from optkit.model.load_torch import bind_inputs, first_line, forward_names, name_outputs, to_tensor
from optkit.model.model import Model
from optkit.model.onnx_file import load_onnx
from optkit.model.signature import Signature
from optkit.passes._onnxscript import hasten
from optkit.passes._parity import dynamic_sizes, resized
from optkit.passes._torch_tidy import strip_prefix

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor, nn
    from torch.export import ExportedProgram

_UNNAMED = "optkit_unnamed_"
"""Prefix of outputs that have no lawful name (generation caches); they are dropped after the export."""

_INNER = "inner."
"""Prefix that ``_flat_module`` puts before every weight's name; it is taken off after the export."""


@dataclass(frozen=True)
class Source:
    """What is exported: a live module, and one batch it is traced with."""

    model: Model
    module: nn.Module
    inputs: Mapping[str, Tensor]
    """By name. No dynamic dimension has size 1 here, because torch takes that size for fixed."""
    program: ExportedProgram | None = None
    """The export that the module comes from, for ``.pt2`` files."""

    def dims(self, name: str) -> dict[int, str]:
        """Axis -> name, for the dynamic dimensions of an input."""
        shape = self.model.signature.input(name).shape or ()
        return {axis: dim for axis, dim in enumerate(shape) if isinstance(dim, str)}

    def names(self) -> list[str]:
        """Names of the inputs, in the order in which ``forward`` takes them."""
        known = [name for name in forward_names(self.module) if name in self.inputs]
        return known if len(known) == len(self.inputs) else list(self.inputs)

    def call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of ``forward``."""
        return bind_inputs(self.module, {name: self.inputs[name] for name in self.names()}, self.names())


def trace_inputs(inputs: Arrays, signature: Signature) -> dict[str, Tensor]:
    """The inputs as tensors of the signature's dtypes, with dynamic dimensions of size 2 or more; see ``Source``."""
    sizes = {dim: max(2, size) for dim, size in dynamic_sizes(inputs, signature).items()}
    dtypes = {spec.name: spec.dtype for spec in signature.inputs}
    wide = resized(inputs, signature, sizes)
    return {name: to_tensor(name, array.copy(), dtypes[name]) for name, array in wide.items()}


def export_dynamo(source: Source, opset: int | None) -> ModelProto:
    """Through ``torch.export``; an archive of ``torch.export`` goes in as it is, with its own dynamic dimensions."""
    import torch

    args, kwargs = source.call()
    outputs = _leaf_names(source.module, args, kwargs)
    hasten()
    given: dict[str, Any] = {"model": source.module, "args": args, "kwargs": kwargs}
    if source.program is not None:
        given = {"model": source.program}
    else:
        shapes = {name: source.dims(name) for name in source.names()}
        given["dynamic_shapes"] = tuple(shapes.values()) if args else shapes
    with _quiet():
        program = torch.onnx.export(
            **given,
            dynamo=True,
            opset_version=opset,
            input_names=source.names(),
            output_names=outputs,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("the exporter returned no program")
    proto: ModelProto = program.model_proto
    unnamed = {name for name in outputs if name.startswith(_UNNAMED)}
    _keep(proto.graph.output, lambda value: value.name not in unnamed)
    return proto


def _leaf_names(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
    """A name for every tensor that ``forward`` returns, in the order of torch's pytrees."""
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


def export_torchscript(source: Source, opset: int | None, folder: Path) -> ModelProto:
    """Through torch's older exporter, which traces, and which takes TorchScript.

    Args:
        source: module and batch.
        opset: of the result; None = the exporter's own default.
        folder: where a temporary file may be written.
    """
    import torch

    names = source.names()
    scripted = isinstance(source.module, torch.jit.ScriptModule)
    tensors = tuple(source.inputs[name] for name in names)
    with torch.inference_mode():
        found = source.module(*source.call()[0], **source.call()[1])
    outputs = list(name_outputs(found))
    module = source.module
    if not scripted or isinstance(found, Mapping):
        module = _flat_module(source.module, names).eval()
    with _quiet(), torch.no_grad(), tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "model.onnx"
        if scripted and module is not source.module:  # the exporter knows no dicts, tracing sees through them
            module = torch.jit.trace(module, tensors, check_trace=False)
        torch.onnx.export(
            module,
            tensors,
            str(path),
            dynamo=False,
            verbose=False,
            opset_version=opset,
            input_names=names,
            output_names=outputs,
            dynamic_axes={name: source.dims(name) for name in names if source.dims(name)},
        )
        proto = load_onnx(path)
    strip_prefix(proto, _INNER)
    return proto


def _flat_module(module: nn.Module, names: Sequence[str]) -> nn.Module:
    """The module with inputs by position and the lawful outputs as a tuple."""
    from torch import nn

    class Flat(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            args, kwargs = bind_inputs(self.inner, dict(zip(names, tensors, strict=True)), names)
            return tuple(name_outputs(self.inner(*args, **kwargs)).values())

    return Flat()


def root_cause(error: BaseException) -> str:
    """The first sentence of the exporter's own cause; torch wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error).split(". ")[0]


def _keep(values: Any, wanted: Any) -> None:
    kept = [value for value in values if wanted(value)]
    del values[:]
    values.extend(kept)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn about their own insides, and print graphs; what matters is checked on the result."""
    import torch

    print_graph = torch._C._jit_onnx_log
    torch._C._jit_onnx_log = lambda *_: None  # its switch is set again by the exporter itself
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch._C._jit_onnx_log = print_graph
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
