"""Linear layers of a live module: how neural-compressor finds those it may have, and what becomes of their weights."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from optkit.passes._quant.nbits import Blocks, Floats, Grid

if TYPE_CHECKING:
    from torch import Tensor, nn

Method = Literal["gptq", "awq", "hqq", "rtn"]


@dataclass(frozen=True)
class Settings:
    """What neural-compressor is asked for."""

    method: Method
    bits: int
    block: int
    """Consecutive input channels that share a scale."""
    symmetric: bool


@dataclass(frozen=True)
class Taken:
    """A weight matrix [N, K] as neural-compressor quantized it: N output channels, K input channels."""

    blocks: Blocks
    """Its codes, scales and zeros."""
    rest: Floats | None = None
    """[N, blocks]: what is to be added to the zeros, which HQQ leaves between two codes; None = nothing."""
    factors: Floats | None = None
    """[K]: what the layer's input is multiplied by first (AWQ); None = nothing."""


def take(codes: NDArray[Any], scales: Floats, zeros: Floats, settings: Settings, factors: Floats | None) -> Taken:
    """Pack ``(codes - zeros) * scales``.

    Args:
        codes: whole numbers [N, K] from 0 on.
        scales: float32[N, blocks].
        zeros: float32[N, blocks], in codes; whole numbers or not.
        settings: how many bits and weights a block has.
        factors: see ``Taken``.
    """
    grid = Grid(settings.bits, settings.block, symmetric=bool((zeros == 1 << (settings.bits - 1)).all()))
    whole = np.clip(np.rint(zeros), 0, grid.top)
    made = Blocks.empty(grid, *codes.shape)
    made.put(0, grid.split(codes.astype(np.float32)), scales, whole)
    return Taken(made, None if (whole == zeros).all() else zeros - whole, factors)


def linear_layers(module: nn.Module) -> dict[str, Floats]:
    """Name -> float32[N, K] of every linear layer, Conv1D of transformers (GPT-2) included."""
    from torch import nn

    found = {name: part.weight.detach().numpy() for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    return found | {name: part.weight.detach().numpy().T for name, part in _turned(module).items()}


def _turned(module: nn.Module) -> dict[str, Any]:
    from transformers.pytorch_utils import Conv1D

    return {name: part for name, part in module.named_modules() if isinstance(part, Conv1D)}


def turn(module: nn.Module) -> None:
    """``Conv1D -> Linear``, which neural-compressor's algorithms all take."""
    from torch import nn

    for name, part in _turned(module).items():
        width, rows = part.weight.shape
        layer = nn.Linear(width, rows, device="meta")
        layer.weight, layer.bias = nn.Parameter(part.weight.detach().T.contiguous()), part.bias
        module.set_submodule(name, layer)


def hide(module: nn.Module, names: Collection[str]) -> None:
    """Put layers where a walk through the modules does not find them: GPTQ takes all it finds, configured or not."""
    from torch import nn

    class Kept(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.__dict__.update(layer=layer, weight=layer.weight, bias=layer.bias)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(inputs)

    for name in names:
        module.set_submodule(name, Kept(module.get_submodule(name)))


def without_heads(module: nn.Module) -> dict[str, Floats]:
    """The layers that its other methods take."""
    from neural_compressor.torch.utils.constants import LM_HEAD_NAMES

    layers = linear_layers(module)
    return {name: layers[name] for name in layers if not any(re.match(head, name) for head in LM_HEAD_NAMES)}
