"""The right runner for a model, and a dataset through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from optkit.data.dataset import Array, Arrays, Batch, Dataset
from optkit.errors import ModelError, UsageError
from optkit.model.machine import usable_threads
from optkit.model.model import Form, Model
from optkit.model.target import Engine, Target
from optkit.runner.base import Runner, RunnerAbout

_TAKES: dict[str, tuple[tuple[Form, ...], str]] = {
    "onnxruntime": (("onnx", "ort"), "export it first: optkit optimize MODEL --recipe fp32 -o model.onnx"),
    "openvino": (("onnx",), "export it first: optkit optimize MODEL --recipe fp32 -o model.onnx"),
    "torch": (("torch",), "give the torch model it was made from, or leave @eager out"),
    "torch-compile": (("torch",), "give the torch model it was made from, or leave @compile out"),
}
"""Engine -> the forms it runs, and what to do about another."""


def open_runner(
    model: Model,
    target: Target,
    *,
    outputs: Sequence[str] | None = None,
    session: Mapping[str, str] | None = None,
) -> Runner:
    """Make a model ready to run on ``target.engine``: by default ONNX and ORT on onnxruntime, torch forms on torch.

    Args:
        model: any form that the engine runs.
        target: engine, provider (onnxruntime only; the others run on the CPU) and threads.
        outputs: names to return; on onnxruntime also inner tensors. None = all of the model's outputs.
        session: session config entries, over those of ``model.session``; those of onnxruntime for onnxruntime,
            ``openvino.PROPERTY`` for OpenVINO.

    Raises:
        UsageError: the engine does not run models of this form.
        ModelError: it does not load, or has no output of such a name.
        ProviderError: the provider is not there, or did not start.
        PackageError: the engine is not installed.
    """
    engine = target.engine or ("torch" if model.form == "torch" else "onnxruntime")
    _check_form(model, engine)
    if engine == "onnxruntime":
        from optkit.runner.onnx import OnnxRunner

        return OnnxRunner(model, target, outputs=outputs, session=session)
    runner = _openvino(model, target, session) if engine == "openvino" else _torch(model, target, engine)
    return runner if outputs is None else _Selected(runner, tuple(outputs), model)


def _openvino(model: Model, target: Target, session: Mapping[str, str] | None) -> Runner:
    from optkit.runner.openvino import OpenVinoRunner

    return OpenVinoRunner(model, target, session=session)


def _torch(model: Model, target: Target, engine: Engine) -> Runner:
    from optkit.runner.torch import TorchRunner

    return TorchRunner(model, target.threads or usable_threads(), compile=engine == "torch-compile")


def _check_form(model: Model, engine: Engine) -> None:
    forms, fix = _TAKES[engine]
    if model.form not in forms:
        raise UsageError(
            f"The engine {engine} does not run {model.path.name}, a model of form {model.form}.",
            expected=f"a model of form {' or '.join(forms)}",
            fix=fix,
        )


def run_dataset(runner: Runner, dataset: Dataset) -> Iterator[Arrays]:
    """The outputs of every batch in order; rows that only pad a fixed batch size are cut off axis 0."""
    for _, outputs in run_batches(runner, dataset):
        yield outputs


def run_batches(runner: Runner, dataset: Dataset) -> Iterator[tuple[Batch, Arrays]]:
    """As ``run_dataset``, with the batch that was fed."""
    for batch in dataset.batches():
        found = runner.run(batch.inputs)
        yield batch, {name: _cut(array, dataset.batch, batch.size) for name, array in found.items()}


def _cut(array: Array, rows: int, size: int) -> Array:
    return array[:size] if size < rows and array.ndim and array.shape[0] == rows else array


class _Selected(Runner):
    """Some outputs of another runner."""

    def __init__(self, runner: Runner, outputs: tuple[str, ...], model: Model) -> None:
        self._runner, self.outputs, self._model = runner, outputs, model

    @property
    def about(self) -> RunnerAbout:
        return self._runner.about

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        return self._runner.bind(inputs)

    def run(self, inputs: Arrays) -> Arrays:
        found = self._runner.run(inputs)
        if unknown := [name for name in self.outputs if name not in found]:
            raise ModelError(
                f"The model has no output named {', '.join(unknown)}.",
                file=self._model.path,
                expected="one of " + ", ".join(found),
                fix="inner tensors are read of ONNX files on onnxruntime: export it, or leave the engine out",
            )
        return {name: found[name] for name in self.outputs}

    def close(self) -> None:
        self._runner.close()
