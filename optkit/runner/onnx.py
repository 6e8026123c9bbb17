"""ONNX and ORT files on onnxruntime: the provider that was asked for, or a refusal, never a silent fallback."""

from __future__ import annotations

import contextlib
import ctypes
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optkit.data.dataset import Array, Arrays
from optkit.errors import DataError, ModelError, ProviderError
from optkit.model.machine import usable_threads
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.runner.base import Runner
from optkit.runner.providers import built_in, import_ort, ort_failures, placement, reason, require, short_name

if TYPE_CHECKING:
    import onnxruntime

DTYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "bool": "bool",
    "string": "string",
} | {f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
"""onnxruntime's tensor types -> numpy's names, plus ``bfloat16`` and ``string``."""

_BFLOAT16 = 16
"""``onnx.TensorProto.BFLOAT16``: numpy has no such type, so these tensors travel as raw values."""

_NVIDIA = {"CUDAExecutionProvider", "TensorrtExecutionProvider"}
"""Providers whose libraries may lie in pip packages, where the loader does not look by itself."""

_BAD_FILE = {"InvalidProtobuf", "InvalidGraph", "NoSuchFile", "NoModel"}
"""onnxruntime's classes of errors that no choice of provider would mend."""

_SECOND = {"TensorrtExecutionProvider": ("CUDAExecutionProvider",)}
"""Provider -> providers that take what it refuses, before the CPU does."""


class OnnxRunner(Runner):
    """A session of onnxruntime on one model.

    ``outputs`` may name inner tensors: they become outputs of the graph in memory, nothing is written, and weights in
    external data stay where they are. bfloat16 outputs come back as float32.

    Args:
        model: of form ``onnx`` or ``ort``.
        target: provider and threads.
        outputs: names to return, in this order; None = the model's own outputs.
        session: onnxruntime session config entries, over those of ``model.session``.
        optimize: False switches all of onnxruntime's graph optimizations off.

    Raises:
        ModelError: the file does not load, or has no tensor of a name in ``outputs``.
        ProviderError: the provider is not there, or did not start.
        PackageError: onnxruntime is not installed.
    """

    def __init__(
        self,
        model: Model,
        target: Target,
        *,
        outputs: Sequence[str] | None = None,
        session: Mapping[str, str] | None = None,
        optimize: bool = True,
    ) -> None:
        self._model = model
        provider = require(target.provider)
        declared = {spec.name for spec in model.signature.outputs}
        structure, entries = None, {"session.record_ep_graph_assignment_info": "1"} | dict(model.session)
        if outputs is not None and not declared.issuperset(outputs) and model.kind == "onnx":
            structure, entries = _with_outputs(model, outputs), entries | _beside(model)
        options = _options(target, entries | dict(session or {}), optimize)
        self._session: onnxruntime.InferenceSession | None = _open(model, provider, options, structure)
        self._inputs = {spec.name: spec for spec in self.session.get_inputs()}
        types = {spec.name: spec.type for spec in self.session.get_outputs()}
        self.outputs = tuple(types) if outputs is None else tuple(outputs)
        if unknown := [name for name in self.outputs if name not in types]:
            raise _no_tensor(model, unknown, types)
        kinds = [spec.type for spec in self._inputs.values()] + [types[name] for name in self.outputs]
        self._bfloat16 = "tensor(bfloat16)" in kinds

    @property
    def session(self) -> onnxruntime.InferenceSession:
        """The open session. ModelError when the runner was closed."""
        if self._session is None:
            raise ModelError("The runner is closed.", file=self._model.path, fix="open a new one")
        return self._session

    @property
    def provider(self) -> str:
        """Short name of the provider that runs the model."""
        return short_name(self.session.get_providers()[0])

    def placement(self) -> dict[str, dict[str, int]]:
        """Which nodes run where: short provider name -> {operator: nodes}, see ``providers.placement``."""
        return placement(self.session)

    def run(self, inputs: Arrays) -> Arrays:
        """Outputs by name, for one batch; see ``Runner.run``."""
        feeds = self._feeds(inputs)
        try:
            values = self._compute_raw(feeds) if self._bfloat16 else self.session.run(list(self.outputs), feeds)
        except ort_failures() as error:
            raise self._blame(error) from error
        found = dict(zip(self.outputs, values, strict=True))
        for name, value in found.items():
            if not isinstance(value, np.ndarray):
                kind = type(value).__name__
                raise ModelError(
                    f"Output '{name}' is a {kind}, not a tensor.",
                    file=self._model.path,
                    fix="export the model without maps, sequences and optional outputs (ZipMap)",
                )
        return found

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        """``session.run`` alone on checked inputs; see ``Runner.bind``."""
        feeds = self._feeds(inputs)
        self.run(inputs)
        if self._bfloat16:
            return lambda: self._compute_raw(feeds)
        run, names = self.session.run, list(self.outputs)
        return lambda: run(names, feeds)

    def close(self) -> None:
        """End the session and its threads."""
        self._session = None

    def _feeds(self, inputs: Arrays) -> Arrays:
        """The inputs in the model's dtypes."""
        if inputs.keys() != self._inputs.keys():
            missing = [name for name in self._inputs if name not in inputs]
            extra = [name for name in inputs if name not in self._inputs]
            words = [f"input '{n}' is missing" for n in missing] + [f"'{n}' is no input" for n in extra]
            raise DataError(
                f"The data do not fit the model: {', '.join(words)}.",
                expected="arrays named " + ", ".join(self._inputs),
                fix="name them so, or map them with columns: {input: column}",
            )
        return {name: _fit(inputs[name], spec) for name, spec in self._inputs.items()}

    def _compute_raw(self, feeds: Arrays) -> list[Array]:
        ort = import_ort()
        make = ort.OrtValue
        values = {
            name: make.ortvalue_from_numpy_with_onnx_type(
                np.require(array, requirements="C").view(np.uint16), _BFLOAT16
            )
            if array.dtype.name == "bfloat16"
            else make.ortvalue_from_numpy(np.require(array, requirements="C"))
            for name, array in feeds.items()
        }
        return [_array(value) for value in self.session.run_with_ort_values(list(self.outputs), values)]

    def _blame(self, error: Exception) -> DataError | ModelError:
        """Wrong dimensions are the data's fault, all else the model's or the engine's."""
        if "invalid dimensions" in str(error) or "Invalid rank" in str(error):
            text = " ".join(str(error).split("INVALID_ARGUMENT : ")[-1].split("Please fix")[0].split())
            return DataError(
                f"The data do not fit the model: {text}.",
                expected="; ".join(f"{spec.name} of shape {spec.shape}" for spec in self._inputs.values()),
                fix="give arrays of that shape",
            )
        return ModelError(
            f"onnxruntime failed to run the model: {reason(error)}",
            file=self._model.path,
            expected="a model that runs on these inputs",
            fix="check the model and the inputs with 'optkit inspect'",
        )


def _options(target: Target, entries: Mapping[str, str], optimize: bool) -> onnxruntime.SessionOptions:
    ort = import_ort()
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong comes as an exception too, and is told once
    options.intra_op_num_threads = target.threads or usable_threads()
    options.inter_op_num_threads = 1
    if short_name(target.provider) == "directml":
        options.enable_mem_pattern = False  # DirectML refuses sessions that plan memory ahead
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in entries.items():
        options.add_session_config_entry(key, str(value))
    return options


def _open(
    model: Model, provider: str, options: onnxruntime.SessionOptions, structure: bytes | None
) -> onnxruntime.InferenceSession:
    """A session on the file, or on ``structure`` in its place."""
    if not model.path.is_file():
        raise ModelError("There is no such model file.", file=model.path, fix="check the path")
    ort = import_ort()
    present = built_in().values()
    names = [name for name in (provider, *_SECOND.get(provider, ())) if name in present] or None
    if names is None:
        options.add_provider_for_devices([d for d in ort.get_ep_devices() if d.ep_name == provider][:1], {})
    elif provider in _NVIDIA:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            ort.preload_dlls()
    try:
        opened = ort.InferenceSession(structure or str(model.path), options, providers=names, enable_fallback=0)
    except ort_failures() as error:
        raise _load_error(model, provider, error) from error
    started = opened.get_providers()
    if started[0] != provider:
        raise ProviderError(
            f"The execution provider '{short_name(provider)}' did not start: onnxruntime would have used "
            f"'{short_name(started[0])}' in its place.",
            expected="a driver and libraries of the versions that this onnxruntime needs",
            fix="compare them with https://onnxruntime.ai/docs/execution-providers, or use --provider cpu",
        )
    return opened


def _load_error(model: Model, provider: str, error: Exception) -> ModelError | ProviderError:
    text = reason(error).rstrip(".")
    if provider != "CPUExecutionProvider" and type(error).__name__ not in _BAD_FILE:
        return ProviderError(
            f"The execution provider '{short_name(provider)}' did not take the model: {text}.",
            file=model.path,
            fix="try --provider cpu",
        )
    return ModelError(
        f"onnxruntime cannot load the model: {text}.",
        file=model.path,
        expected="a complete ONNX or ORT file whose operators this onnxruntime knows",
        fix="export it again, or update onnxruntime",
    )


def _with_outputs(model: Model, names: Sequence[str]) -> bytes:
    """The model's structure with inner tensors as further outputs; onnxruntime finds their types itself."""
    from onnx import ValueInfoProto

    from optkit.model.onnx_file import load_structure

    proto = load_structure(model.path)
    graph = proto.graph
    known = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
    known |= {weight.name for weight in graph.initializer}
    if unknown := [name for name in names if name not in known]:
        raise _no_tensor(model, unknown, [value.name for value in graph.output])
    present = {value.name for value in graph.output}
    graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in present)
    found: bytes = proto.SerializeToString()
    return found


def _no_tensor(model: Model, unknown: Iterable[str], outputs: Iterable[str]) -> ModelError:
    inner = " or of inner tensors of its main graph" if model.kind == "onnx" else ""
    return ModelError(
        f"The model has no tensor named {', '.join(unknown)}.",
        file=model.path,
        expected=f"names of its outputs ({', '.join(outputs)}){inner}",
        fix="list them with 'optkit inspect'",
    )


def _beside(model: Model) -> dict[str, str]:
    """Where external data lie when the structure is handed over as bytes."""
    return {"session.model_external_initializers_file_folder_path": str(model.path.parent.resolve())}


def _fit(array: Array, spec: Any) -> Array:
    """The array in the input's dtype: floats may change width, whole numbers only if no value changes."""
    wanted = DTYPES.get(spec.type.removeprefix("tensor(").removesuffix(")"))
    given = array.dtype.name
    if given == wanted or wanted is None or (wanted == "string" and array.dtype.kind in "OUS"):
        return array
    cast = _cast(array, wanted)
    if cast is None:
        raise DataError(
            f"Input '{spec.name}' takes {wanted}, but the data are {given}.",
            expected=f"{spec.name} as {wanted} of shape {spec.shape}",
            fix=f"convert it: array.astype('{wanted}')",
        )
    return cast


def _cast(array: Array, wanted: str) -> Array | None:
    kind = "f" if array.dtype.name == "bfloat16" else array.dtype.kind
    if kind == "f" and "float" in wanted:
        return array.astype(_dtype(wanted))
    if kind in "iu" and wanted.lstrip("u").startswith("int"):
        range_ = np.iinfo(wanted)
        fits = not array.size or (int(array.min()) >= range_.min and int(array.max()) <= range_.max)
        return array.astype(wanted) if fits else None
    return None


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    found: np.dtype[Any] = np.dtype(name)
    return found


def _array(value: onnxruntime.OrtValue) -> Array:
    """The value as numpy; bfloat16, which onnxruntime does not convert, as float32."""
    if value.data_type() != "tensor(bfloat16)":
        return np.asarray(value.numpy())
    size = int(np.prod(value.shape(), dtype=np.int64)) * 2
    raw = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(raw, dtype=_dtype("bfloat16")).reshape(value.shape()).astype(np.float32)
