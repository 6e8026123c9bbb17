"""ONNX and ORT files on onnxruntime: the provider that was asked for, or a refusal, never a silent fallback."""

from __future__ import annotations

import contextlib
import ctypes
import io
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optkit.data.dataset import Array, Arrays
from optkit.errors import DataError, ModelError, ProviderError
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.runner.base import Runner, RunnerAbout
from optkit.runner.feeds import Port, fit_feeds, from_bfloat16
from optkit.runner.providers import built_in, import_ort, ort_failures, placement, reason, require, short_name
from optkit.runner.session import SECOND, apply, check, effective, provider_options

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

_SPINNING = "session.intra_op.allow_spinning"
"""Session config entry; onnxruntime's own default is that idle threads spin."""

_NVIDIA = {"CUDAExecutionProvider", "TensorrtExecutionProvider"}
"""Providers whose libraries may lie in pip packages, where the loader does not look by itself."""

_BAD_FILE = {"InvalidProtobuf", "InvalidGraph", "NoSuchFile", "NoModel"}
"""onnxruntime's classes of errors that no choice of provider would mend."""


class OnnxRunner(Runner):
    """A session of onnxruntime on one model.

    ``outputs`` may name inner tensors: they become outputs of the graph in memory, nothing is written, and weights in
    external data stay where they are. bfloat16 outputs come back as float32.

    Args:
        model: of form ``onnx`` or ``ort``.
        target: provider and threads.
        outputs: names to return, in this order; None = the model's own outputs.
        session: onnxruntime session options as in ``optkit.runner.session``, over those of ``model.session``; only the
            target's threads are above both.
        optimize: False switches all of onnxruntime's graph optimizations off.
        configure: sets session options that are no config entries (profiling), before the session is made.

    Raises:
        ModelError: the file does not load, has no tensor of a name in ``outputs``, or wants a session option that does
            not exist.
        UsageError: there is no such option in ``session``.
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
        configure: Callable[[onnxruntime.SessionOptions], None] | None = None,
    ) -> None:
        self._model = model
        begin = time.perf_counter()
        self._version: str = import_ort().__version__
        self._import_s = time.perf_counter() - begin
        provider = require(target.provider)
        declared = {spec.name for spec in model.signature.outputs}
        check(model.session, model.path)
        check(session or {})
        self._entries = effective({**model.session, **(session or {})}, target)
        structure, entries = None, {"session.record_ep_graph_assignment_info": "1"} | self._entries
        if outputs is not None and not declared.issuperset(outputs) and model.kind == "onnx":
            structure, entries = _with_outputs(model, outputs), entries | _beside(model)
        begin = time.perf_counter()
        options = _options(target, entries, optimize)
        if configure is not None:
            configure(options)
        self._threads: int = options.intra_op_num_threads
        own = provider_options(entries)
        self._session: onnxruntime.InferenceSession | None = _open(model, provider, own, options, structure)
        self._session_s = time.perf_counter() - begin
        self._inputs = {spec.name: _port(spec) for spec in self.session.get_inputs()}
        types = {spec.name: spec.type for spec in self.session.get_outputs()}
        self.outputs = tuple(types) if outputs is None else tuple(outputs)
        if unknown := [name for name in self.outputs if name not in types]:
            raise _no_tensor(model, unknown, types)
        self._bfloat16 = "bfloat16" in {port.dtype for port in self._inputs.values()} or "tensor(bfloat16)" in {
            types[name] for name in self.outputs
        }

    @property
    def session(self) -> onnxruntime.InferenceSession:
        """The open session. ModelError when the runner was closed."""
        if self._session is None:
            raise ModelError("The runner is closed.", file=self._model.path, fix="open a new one")
        return self._session

    @property
    def about(self) -> RunnerAbout:
        """Engine, settings and times; see ``Runner.about``. onnxruntime reads the file with the session."""
        return RunnerAbout(
            engine="onnxruntime",
            version=self._version,
            import_s=self._import_s,
            load_s=0.0,
            session_s=self._session_s,
            provider=self.provider,
            placement=self.placement(),
            spinning=self._entries.get(_SPINNING, "1") == "1",
            session=self._entries,
            threads=self._threads,
        )

    @property
    def provider(self) -> str:
        """Short name of the provider that runs the model."""
        return short_name(self.session.get_providers()[0])

    def placement(self) -> dict[str, dict[str, int]]:
        """Which nodes run where: short provider name -> {operator: nodes}, see ``providers.placement``."""
        return placement(self.session)

    def run(self, inputs: Arrays) -> Arrays:
        """Outputs by name, for one batch; see ``Runner.run``."""
        feeds = fit_feeds(inputs, self._inputs)
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
        """``session.run`` alone on checked inputs; ``close`` ends the session all the same. See ``Runner.bind``."""
        feeds, names = fit_feeds(inputs, self._inputs), list(self.outputs)

        def once() -> object:
            try:
                return self._compute_raw(feeds) if self._bfloat16 else self.session.run(names, feeds)
            except ort_failures() as error:
                raise self._blame(error) from error

        return once

    def close(self) -> None:
        """End the session and its threads."""
        self._session = None

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
                expected="; ".join(f"{port.name} of shape {port.shape}" for port in self._inputs.values()),
                fix="give arrays of that shape",
            )
        return ModelError(
            f"onnxruntime failed to run the model: {reason(error)}",
            file=self._model.path,
            expected="a model that runs on these inputs",
            fix="check the model and the inputs with 'optkit inspect'",
        )


def _port(spec: Any) -> Port:
    """onnxruntime's own description of an input."""
    return Port(spec.name, DTYPES.get(spec.type.removeprefix("tensor(").removesuffix(")"), ""), spec.shape)


def _options(target: Target, entries: Mapping[str, str], optimize: bool) -> onnxruntime.SessionOptions:
    ort = import_ort()
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong comes as an exception too, and is told once
    apply(options, entries, target)
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _open(
    model: Model,
    provider: str,
    own: Mapping[str, str],
    options: onnxruntime.SessionOptions,
    structure: bytes | None,
) -> onnxruntime.InferenceSession:
    """A session on the file, or on ``structure`` in its place; ``own`` are the provider's options."""
    if not model.path.is_file():
        raise ModelError("There is no such model file.", file=model.path, fix="check the path")
    ort = import_ort()
    present = built_in().values()
    names = [name for name in (provider, *SECOND.get(provider, ())) if name in present] or None
    if names is None:
        options.add_provider_for_devices([d for d in ort.get_ep_devices() if d.ep_name == provider][:1], dict(own))
    elif provider in _NVIDIA:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            ort.preload_dlls()
    providers = names and [(names[0], dict(own)), *names[1:]]
    try:
        opened = ort.InferenceSession(structure or str(model.path), options, providers=providers, enable_fallback=0)
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


def _array(value: onnxruntime.OrtValue) -> Array:
    """The value as numpy; bfloat16, which onnxruntime does not convert, as float32."""
    if value.data_type() != "tensor(bfloat16)":
        return np.asarray(value.numpy())
    size = int(np.prod(value.shape(), dtype=np.int64)) * 2
    raw = ctypes.string_at(value.data_ptr(), size) if size else b""
    return from_bfloat16(np.frombuffer(raw, dtype=np.uint16).reshape(value.shape()))
