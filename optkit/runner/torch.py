"""Torch models on torch itself: the true original, in its own engine, on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optkit.data.dataset import Array, Arrays
from optkit.errors import DataError, ModelError, OptkitError
from optkit.model.load_torch import bind_inputs, first_line, load_module, name_outputs, to_tensor
from optkit.model.model import Model
from optkit.model.signature import TensorSpec
from optkit.runner.base import Runner

if TYPE_CHECKING:
    from torch import Tensor

_FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})


class TorchRunner(Runner):
    """A module in eval mode, called with inputs by name; outputs are named by ``name_outputs``.

    bfloat16 outputs come back as float32, because numpy has no bfloat16.

    Args:
        model: of form ``torch``.
        threads: intra-op threads of this process while the runner is open.

    Raises:
        ModelError: the model does not load.
        PackageError: torch or transformers is not installed.
    """

    def __init__(self, model: Model, threads: int) -> None:
        self._module = load_module(model)
        import torch

        self._model = model
        self._before = torch.get_num_threads()
        self._closed = False
        self.outputs: tuple[str, ...] = tuple(spec.name for spec in model.signature.outputs)
        if threads > 0:
            torch.set_num_threads(threads)

    def run(self, inputs: Arrays) -> Arrays:
        """Outputs by name, for one batch; see ``Runner.run``."""
        import torch

        self._check(inputs)
        specs = {spec.name: spec for spec in self._model.signature.inputs}
        tensors = {name: to_tensor(name, array, _wanted(array, specs.get(name))) for name, array in inputs.items()}
        args, kwargs = bind_inputs(self._module, tensors, list(specs))
        try:
            with torch.inference_mode():
                found = name_outputs(self._module(*args, **kwargs))
        except OptkitError:
            raise
        except (Exception, SystemExit) as error:  # forward is the user's code; torch's errors have no common class
            shapes = ", ".join(f"{name}={array.dtype}{list(array.shape)}" for name, array in inputs.items())
            raise ModelError(
                f"torch failed on {shapes}: {first_line(error)}.",
                expected="inputs that the module's forward takes",
                fix="check names, dtypes and shapes; state them with --signature",
                file=self._model.path,
            ) from error
        self.outputs = tuple(found)
        return {name: _array(tensor) for name, tensor in found.items()}

    def close(self) -> None:
        """Drop the module, and give the process its number of threads back."""
        import torch

        if not self._closed:
            torch.set_num_threads(self._before)
            self._closed = True
            del self._module

    def _check(self, inputs: Arrays) -> None:
        if self._closed:
            raise ModelError("The runner is closed.", file=self._model.path, fix="open a new one")
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
