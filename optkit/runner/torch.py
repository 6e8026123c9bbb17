"""Torch models on torch itself: the true original, in its own engine, on the CPU."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from optkit.data.dataset import Array, Arrays
from optkit.errors import DataError, ModelError, OptkitError, PackageError
from optkit.model.load_torch import bind_inputs, first_line, load_module, name_outputs, to_tensor
from optkit.model.model import Model
from optkit.model.signature import TensorSpec
from optkit.runner.base import Runner, RunnerAbout

if TYPE_CHECKING:
    from torch import Tensor

_COMPILER_ERRORS = {"InvalidCxxCompiler", "CppCompileError"}
"""Classes of torch._inductor.exc: no C++ compiler, or one that did not compile the generated code."""

_FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})


class TorchRunner(Runner):
    """A module in eval mode, called with inputs by name; outputs are named by ``name_outputs``.

    bfloat16 outputs come back as float32, because numpy has no bfloat16.

    Args:
        model: of form ``torch``.
        threads: intra-op threads of this process while the runner is open.
        compile: go through ``torch.compile`` with its defaults. It compiles in the first call, for that shape; again
            in the second shape, then for any.

    Raises:
        ModelError: the model does not load, or is TorchScript, which torch.compile leaves as it is.
        PackageError: torch or transformers is not installed.
    """

    def __init__(self, model: Model, threads: int, *, compile: bool = False) -> None:
        if compile and model.kind == "torchscript":
            raise _not_compiled(model)
        begin = time.perf_counter()
        with contextlib.suppress(ImportError):  # load_module says what is missing
            import torch
        imported = time.perf_counter()
        self._module = load_module(model)
        loaded = time.perf_counter()
        self._call: Callable[..., object] = torch.compile(self._module) if compile else self._module
        self._seconds = (imported - begin, loaded - imported, time.perf_counter() - loaded if compile else 0.0)
        self._compiled = compile
        self._model = model
        self._before = torch.get_num_threads()
        self._closed = False
        self.outputs: tuple[str, ...] = tuple(spec.name for spec in model.signature.outputs)
        if threads > 0:
            torch.set_num_threads(threads)

    @property
    def about(self) -> RunnerAbout:
        """Engine and times; see ``Runner.about``."""
        import torch

        self._refuse_closed()
        import_s, load_s, session_s = self._seconds
        return RunnerAbout(
            engine="torch-compile" if self._compiled else "torch",
            version=str(torch.__version__),  # a class of torch, which whoever unpickles it would have to import
            import_s=import_s,
            load_s=load_s,
            session_s=session_s,
            threads=torch.get_num_threads(),
        )

    def run(self, inputs: Arrays) -> Arrays:
        """Outputs by name, for one batch; see ``Runner.run``."""
        import torch

        args, kwargs = self._arguments(inputs)
        try:
            with torch.inference_mode():
                found = name_outputs(self._call(*args, **kwargs))
        except OptkitError:
            raise
        except (Exception, SystemExit) as error:  # forward is the user's code; torch's errors have no common class
            raise self._blame(error, inputs) from error
        self.outputs = tuple(found)
        return {name: _array(tensor) for name, tensor in found.items()}

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        """The module's call on tensors made once; outputs stay tensors. See ``Runner.bind``."""
        import torch

        args, kwargs = self._arguments(inputs)
        call, inference = self._call, torch.inference_mode

        def once() -> object:
            try:
                with inference():
                    return call(*args, **kwargs)
            except (Exception, SystemExit) as error:  # as in run
                raise self._blame(error, inputs) from error

        return once

    def close(self) -> None:
        """Drop the module, and give the process its number of threads back."""
        import torch

        if not self._closed:
            torch.set_num_threads(self._before)
            self._closed = True
            del self._module, self._call

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ModelError("The runner is closed.", file=self._model.path, fix="open a new one")

    def _arguments(self, inputs: Arrays) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The module's arguments as tensors of its dtypes."""
        self._refuse_closed()
        self._check(inputs)
        specs = {spec.name: spec for spec in self._model.signature.inputs}
        tensors = {name: to_tensor(name, array, _wanted(array, specs.get(name))) for name, array in inputs.items()}
        return bind_inputs(self._module, tensors, list(specs))

    def _check(self, inputs: Arrays) -> None:
        specs = {spec.name: spec for spec in self._model.signature.inputs}
        if not specs:
            return
        missing = [f"input '{name}' is missing" for name in specs if name not in inputs]
        extra = [f"'{name}' is no input" for name in inputs if name not in specs]
        wrong = [_misfit(spec, inputs[name]) for name, spec in specs.items() if name in inputs]
        if words := [*missing, *extra, *filter(None, wrong)]:
            raise DataError(
                f"The data do not fit the model: {', '.join(words)}.",
                expected="; ".join(map(str, specs.values())),
                fix="name and convert the arrays so, or map names with columns: {input: column}",
            )

    def _blame(self, error: BaseException, inputs: Arrays) -> ModelError | PackageError:
        inner: BaseException = getattr(error, "inner_exception", error)
        if type(inner).__name__ in _COMPILER_ERRORS:
            told = next((line.strip() for line in str(inner).splitlines() if "error: " in line), first_line(inner))
            return PackageError(
                f"torch.compile needs a C++ compiler that works: {told}.",
                expected="g++ or clang with the headers of this Python",
                fix="apt install g++ python3-dev, or name a compiler in CXX; or time the model as it is: MODEL@eager",
            )
        shapes = ", ".join(f"{name}={array.dtype}{list(array.shape)}" for name, array in inputs.items())
        engine = "torch.compile" if self._compiled else "torch"
        hint = "; if MODEL@eager runs, it is torch.compile that cannot do this model" if self._compiled else ""
        return ModelError(
            f"{engine} failed on {shapes}: {first_line(error)}.",
            expected="inputs that the module's forward takes",
            fix=f"check names, dtypes and shapes; state them with --signature{hint}",
            file=self._model.path,
        )


def _not_compiled(model: Model) -> ModelError:
    return ModelError(
        "This is TorchScript, which torch.compile leaves as it is.",
        file=model.path,
        expected="a torch.export archive, a state_dict with --factory, or a Hugging Face folder",
        fix="time it as it is: MODEL@eager; or save the module with torch.export.save",
    )


def _misfit(spec: TensorSpec, array: Array) -> str:
    if not _fits(array, spec.dtype):
        return f"input '{spec.name}' is {array.dtype} and not {spec.dtype}"
    if spec.shape is not None and array.ndim != len(spec.shape):
        return f"input '{spec.name}' has {array.ndim} dimensions and not {len(spec.shape)}"
    return ""


def _wanted(array: Array, spec: TensorSpec | None) -> str:
    return array.dtype.name if spec is None else spec.dtype


def _fits(array: Array, wanted: str) -> bool:
    """Whether the array has that dtype, or becomes it without loss: floats of any width, whole numbers in its range."""
    given = array.dtype.name
    if given == wanted or {given, wanted} <= _FLOATS:
        return True
    if array.dtype.kind not in "iu" or "int" not in wanted:
        return False
    limits = np.iinfo(wanted)
    return array.size == 0 or bool(array.min() >= limits.min and array.max() <= limits.max)


def _array(tensor: Tensor) -> Array:
    import torch

    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    wide = plain.float() if plain.dtype is torch.bfloat16 else plain
    made: Array = np.array(wide.numpy())
    return made
