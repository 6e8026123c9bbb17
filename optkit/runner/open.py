"""The right runner for a model, and a dataset through it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from optkit.data.dataset import Array, Arrays, Batch, Dataset
from optkit.errors import ModelError
from optkit.model.machine import usable_threads
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.runner.base import Runner


def open_runner(
    model: Model,
    target: Target,
    *,
    outputs: Sequence[str] | None = None,
    session: Mapping[str, str] | None = None,
) -> Runner:
    """Make a model ready to run: ONNX and ORT on onnxruntime, torch forms on torch (CPU, in eval mode).

    Args:
        model: any form.
        target: provider (onnxruntime only) and threads.
        outputs: names to return; of an ONNX model also inner tensors. None = all of the model's outputs.
        session: onnxruntime session config entries, over those of ``model.session``.

    Raises:
        ModelError: it does not load, or has no output of such a name.
        ProviderError: the provider is not there, or did not start.
        PackageError: the engine is not installed.
    """
    if model.form in ("onnx", "ort"):
        from optkit.runner.onnx import OnnxRunner

        return OnnxRunner(model, target, outputs=outputs, session=session)
    from optkit.runner.torch import TorchRunner

    runner: Runner = TorchRunner(model, target.threads or usable_threads())
    return runner if outputs is None else _Selected(runner, tuple(outputs), model)


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

    def run(self, inputs: Arrays) -> Arrays:
        found = self._runner.run(inputs)
        if unknown := [name for name in self.outputs if name not in found]:
            raise ModelError(
                f"The model has no output named {', '.join(unknown)}.",
                file=self._model.path,
                expected="one of " + ", ".join(found),
                fix="export it to ONNX first to read inner tensors",
            )
        return {name: found[name] for name in self.outputs}

    def close(self) -> None:
        self._runner.close()
