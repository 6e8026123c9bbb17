"""What a torch module costs, counted: parameters, and multiplications with additions of one forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optkit.data.dataset import Dataset
from optkit.model.model import Model

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """Of one module, on one sample."""

    parameters: int
    """Elements of all parameters, tied ones once."""
    macs: int
    """Multiply-accumulates of convolutions, matrix products and attention in one forward of one sample."""

    def told(self, before: Cost) -> str:
        """In words, beside what it was."""
        parameters = f"parameters {_short(before.parameters)} -> {_short(self.parameters)}"
        return f"{parameters}, MACs per sample {_short(before.macs)} -> {_short(self.macs)}"


def cost(module: nn.Module, inputs: Mapping[str, Tensor], samples: int = 1) -> Cost:
    """Count both; the module runs once on ``inputs``, which hold so many samples."""
    flops = counted(module, inputs).get_total_flops()
    return Cost(sum(each.numel() for each in module.parameters()), flops // (2 * samples))


def counted(module: nn.Module, inputs: Mapping[str, Tensor]) -> FlopCounterMode:
    """torch's counter, after one forward that it has watched.

    Source: torch.utils.flop_counter.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from optkit.model.torch_call import run_module

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), _frozen(module), counter:
        run_module(module, inputs)
    return counter


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No parameter asks for gradients meanwhile: the hooks of torch's counter break on views of those that do."""
    asking = [each for each in module.parameters() if each.requires_grad]
    for each in asking:
        each.requires_grad_(False)
    try:
        yield
    finally:
        for each in asking:
            each.requires_grad_(True)


def sample_inputs(model: Model, dataset: Dataset) -> tuple[dict[str, Tensor], int]:
    """The first batch as CPU tensors by name, and how many samples it holds (those of padding included)."""
    from optkit.model.torch_call import to_tensor

    batch = next(iter(dataset.batches()))
    dtypes = {spec.name: spec.dtype for spec in model.signature.inputs}
    tensors = {name: to_tensor(name, batch.inputs[name], dtype) for name, dtype in dtypes.items()}
    axes = model.signature.batch_axes()
    sizes = [tensors[name].shape[axis] for name, axis in axes.items() if axis is not None and name in tensors]
    return tensors, sizes[0] if sizes else 1


def _short(count: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
