"""ONNX files and OpenVINO's own on OpenVINO: Intel's engine itself, not onnxruntime's provider of that name."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from optkit.data.dataset import Array, Arrays
from optkit.errors import ModelError, PackageError, ProviderError, UsageError
from optkit.model.machine import usable_threads
from optkit.model.model import Model
from optkit.model.signature import TensorSpec
from optkit.model.target import Target
from optkit.runner.base import Runner, RunnerAbout
from optkit.runner.feeds import Port, check_shapes, fit_feeds, from_bfloat16

PREFIX = "openvino."
"""Session config entries that begin so are properties of OpenVINO; all others are onnxruntime's, and left alone."""

PRECISION = PREFIX + "INFERENCE_PRECISION_HINT"
"""``f32`` or ``bf16``; without it OpenVINO takes bf16 for float32 models where the processor multiplies bfloat16."""

DTYPES = {
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    "bf16": "bfloat16",
    "boolean": "bool",
} | {f"{sign}{bits}": f"{'u' * (sign == 'u')}int{bits}" for sign in "iu" for bits in (8, 16, 32, 64)}
"""OpenVINO's element types -> numpy's names, plus ``bfloat16``."""

_TELEMETRY = "openvino_telemetry"
"""The module that tells Intel of every import, and keeps a client's id below the home folder."""

_HEADING = re.compile(
    r"Exception from |Check '|FrontEnd API failed|Model wasn't fully|While validating|Summary:|.* with a message:$"
)
"""Lines that OpenVINO puts before what it has to say."""


class OpenVinoRunner(Runner):
    """A model compiled by OpenVINO for the CPU: one stream, the hint for latency, dynamic shapes as the file has them.

    bfloat16 outputs come back as float32.

    Args:
        model: an ONNX file, or an ``.xml`` of OpenVINO with its ``.bin`` beside it.
        target: threads.
        session: entries ``openvino.PROPERTY``, over those of ``model.session``.

    Raises:
        ModelError: OpenVINO does not read or compile it, or it takes or gives strings.
        ProviderError: this processor does not compute in the precision that was asked for.
        UsageError: OpenVINO knows no such property.
        PackageError: openvino is not installed.
    """

    def __init__(self, model: Model, target: Target, *, session: Mapping[str, str] | None = None) -> None:
        self._model = model
        entries = dict(model.session) | dict(session or {})
        self._entries = {key: str(value) for key, value in entries.items() if key.startswith(PREFIX)}
        begin = time.perf_counter()
        self._engine = import_openvino()
        imported = time.perf_counter()
        core = self._engine.Core()
        graph = self._read(core)
        loaded = time.perf_counter()
        self._threads = target.threads or usable_threads()
        self._compiled: Any = self._compile(core, graph, self._threads)
        self._request: Any = self._compiled.create_infer_request()
        self._seconds = (imported - begin, loaded - imported, time.perf_counter() - loaded)
        self._inputs = {port.name: port for port in _ports(graph.inputs, model.signature.inputs)}
        self.outputs = tuple(port.name for port in _ports(graph.outputs, model.signature.outputs))
        self._precision: str = _type_name(self._compiled.get_property("INFERENCE_PRECISION_HINT"))
        self._check_precision()

    @property
    def about(self) -> RunnerAbout:
        """Engine, settings and times; see ``Runner.about``."""
        import_s, load_s, session_s = self._seconds
        self._open()
        return RunnerAbout(
            engine="openvino",
            version=self._engine.__version__.split("-")[0],
            import_s=import_s,
            load_s=load_s,
            session_s=session_s,
            precision=self._precision,
            session=self._entries,
            threads=self._threads,
        )

    def run(self, inputs: Arrays) -> Arrays:
        """Outputs by name, for one batch; see ``Runner.run``."""
        request = self._open()
        self._feed(request, inputs)
        self._infer(request)
        return dict(zip(self.outputs, map(_array, request.output_tensors), strict=True))

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        """The inference alone, in a request of its own that shares memory with the inputs; see ``Runner.bind``."""
        self._open()
        request = self._compiled.create_infer_request()
        self._feed(request, inputs)
        return partial(self._infer, request)

    def close(self) -> None:
        """Give the compiled model back."""
        self._request = self._compiled = None

    def _open(self) -> Any:
        if self._request is None:
            raise ModelError("The runner is closed.", file=self._model.path, fix="open a new one")
        return self._request

    def _feed(self, request: Any, inputs: Arrays) -> None:
        """Give the inputs to the request in the model's dtypes and order, without copying them."""
        feeds = fit_feeds(inputs, self._inputs)
        check_shapes(feeds, self._inputs)
        request.kept = [_tensor(self._engine, array) for array in feeds.values()]  # it does not keep them alive itself
        try:
            for index, tensor in enumerate(request.kept):
                request.set_input_tensor(index, tensor)
        except RuntimeError as error:
            raise self._failed("OpenVINO failed to run the model", error) from error

    def _infer(self, request: Any) -> object:
        try:
            return request.infer(share_outputs=True)
        except RuntimeError as error:
            raise self._failed("OpenVINO failed to run the model", error) from error

    def _read(self, core: Any) -> Any:
        if not self._model.path.is_file():
            raise ModelError("There is no such model file.", file=self._model.path, fix="check the path")
        try:
            graph = core.read_model(str(self._model.path))
        except RuntimeError as error:
            raise self._failed("OpenVINO cannot read the model", error) from error
        if any(port.element_type.get_type_name() == "string" for port in (*graph.inputs, *graph.outputs)):
            raise ModelError(
                "The model takes or gives strings, which optkit does not feed to OpenVINO.",
                file=self._model.path,
                fix="run it on onnxruntime: leave @openvino out",
            )
        return graph

    def _compile(self, core: Any, graph: Any, threads: int) -> Any:
        settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(threads)}
        settings |= {key.removeprefix(PREFIX): value for key, value in self._entries.items()}
        try:
            return core.compile_model(graph, "CPU", settings)
        except RuntimeError as error:
            if "nsupported property" in str(error) or "for property key" in str(error):
                raise UsageError(
                    f"OpenVINO does not take its settings: {reason(error)}.",
                    expected=f"session entries {PREFIX}PROPERTY of OpenVINO's CPU plugin",
                    fix=f"correct {', '.join(self._entries)}",
                ) from error
            raise self._failed("OpenVINO cannot compile the model", error) from error

    def _check_precision(self) -> None:
        wanted = self._entries.get(PRECISION, self._precision)
        if wanted != self._precision:
            raise ProviderError(
                f"OpenVINO would compute in {self._precision} on this processor, not in {wanted}.",
                expected="a precision that the processor computes in",
                fix="use @openvino, which takes what is fastest here, or @openvino:f32",
            )

    def _failed(self, what: str, error: Exception) -> ModelError:
        return ModelError(
            f"{what}: {reason(error)}.",
            file=self._model.path,
            expected="an ONNX file whose operators and shapes OpenVINO knows",
            fix="run it on onnxruntime: leave @openvino out",
        )


def import_openvino() -> ModuleType:
    """OpenVINO, without its telemetry: it takes its own stub where that package cannot be imported.

    Raises:
        PackageError: it is not installed, or its libraries do not load.
    """
    hidden = _TELEMETRY not in sys.modules
    if hidden:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise PackageError(
            f"openvino cannot be imported: {error}.",
            expected="the package openvino",
            fix="pip install 'optkit[openvino]'",
        ) from error
    finally:
        if hidden:
            del sys.modules[_TELEMETRY]
    module: ModuleType = openvino
    return module


def reason(error: BaseException) -> str:
    """What OpenVINO has to say and its summary, without where in its sources it comes from, in one line."""
    lines = [" ".join(line.split()).removeprefix("-- ") for line in str(error).splitlines()]
    told = [line.rstrip(". ") for line in lines if line and not _HEADING.match(line)]
    return "; ".join(dict.fromkeys([told[0], told[-1]])) if told else type(error).__name__


def _ports(ports: Sequence[Any], specs: Sequence[TensorSpec]) -> list[Port]:
    """In the model's order, named as the signature says: OpenVINO's own files often have names like ``Result_17``."""
    known = [spec.name for spec in specs]
    found = []
    for index, port in enumerate(ports):
        names = port.get_names()
        instead = known[index] if len(known) == len(ports) else min(names)
        name = next((name for name in known if name in names), instead)
        found.append(Port(name, DTYPES.get(_type_name(port.element_type), ""), _sizes(port.partial_shape)))
    return found


def _sizes(shape: Any) -> list[int | None] | None:
    if shape.rank.is_dynamic:
        return None
    return [None if size.is_dynamic else size.get_length() for size in shape]


def _type_name(kind: Any) -> str:
    found: str = kind.get_type_name()
    return found


def _tensor(engine: ModuleType, array: Array) -> Any:
    whole = np.require(array, requirements=["C", "W"])
    if array.dtype.name == "bfloat16":
        return engine.Tensor(whole.view(np.uint16), list(array.shape), engine.Type.bf16)
    return engine.Tensor(whole, shared_memory=True)


def _array(tensor: Any) -> Array:
    """A copy as numpy; bfloat16, which OpenVINO would hand over as if it were float16, as float32."""
    data: Array = tensor.data
    return from_bfloat16(data) if _type_name(tensor.element_type) == "bf16" else np.array(data)
