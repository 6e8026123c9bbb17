"""Second moments of what a layer reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optkit.passes._prune.matrices import is_conv1d, matrix, rows_of

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

SAMPLES = 512
"""Of the calibration data that are looked at, at most."""
ROWS_PER_INPUT = 16
"""Rows (samples x positions) of all data together for each input of a layer; of one sample at least ``ROWS``."""
ROWS = 64
ALIKE = 1e-3
"""Relative error to which a layer has to give what its matrix gives."""


class Seen:
    """Second moments of a layer's inputs, as its matrix reads them, of two halves of the data."""

    def __init__(self, layer: nn.Module, random: Generator) -> None:
        import torch

        self.layer, self.random = layer, random
        self.matrix = matrix(layer)
        """float64[outputs, inputs x kernel]."""
        width = self.matrix.shape[1]
        self.half = 0
        """The one that the rows count for which come next."""
        self.strange = False
        """The layer does something of its own."""
        self.quota = max(ROWS, ROWS_PER_INPUT * width // SAMPLES)
        self.rows = [0, 0]
        self.total = torch.zeros(2, width, dtype=torch.float64)
        self.square = torch.zeros(2, width, width, dtype=torch.float64)

    @property
    def usable(self) -> bool:
        """Whether both halves have rows, all of them finite."""
        return not self.strange and min(self.rows) > 0 and bool(self.square.isfinite().all())

    def hook(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Take note of some rows of a call."""
        import torch

        plain = all(isinstance(each, torch.Tensor) for each in (*args[:1], output))
        read = columns(layer, args[0].detach()) if args and plain and not self.strange else None
        given = rows_of(layer, output).float() if plain else None
        if read is None or given is None or len(read) != len(given):
            self.strange = True
            return
        if not len(read):
            return
        read = read.float()
        wanted = self.quota * len(args[0])
        if len(read) > wanted:
            some = torch.randperm(len(read), generator=self.random)[:wanted]
            read, given = read[some], given[some]
        self.strange = not self._alike(read[:8], given[:8])
        self.rows[self.half] += len(read)
        self.total[self.half] += read.double().sum(0)
        self.square[self.half] += (read.T @ read).double()

    def _alike(self, read: Tensor, given: Tensor) -> bool:
        import torch

        bias = 0 if self.layer.bias is None else self.layer.bias.detach().double()
        found = read.double() @ self.matrix.T + bias
        tolerance = max(ALIKE, 4 * torch.finfo(self.layer.weight.dtype).eps)
        return bool((found - given).abs().max() <= tolerance * max(float(found.abs().max()), 1e-6))

    def mean(self, *halves: int) -> Tensor:
        """float64[inputs] of these halves."""
        which = list(halves)
        return self.total[which].sum(0) / sum(self.rows[half] for half in which)

    def moment(self, *halves: int) -> Tensor:
        """float64[inputs, inputs]: the covariance for a layer with a bias, else the mean of the squares."""
        import torch

        which = list(halves)
        square = self.square[which].sum(0) / sum(self.rows[half] for half in which)
        mean = self.mean(*halves)
        return square if self.layer.bias is None else square - torch.outer(mean, mean)


def columns(layer: nn.Module, data: Tensor) -> Tensor | None:
    """What the outputs of each position come from: [positions, inputs x kernel]; None where that is not known."""
    from torch import nn
    from torch.nn import functional

    if isinstance(layer, nn.Linear) or is_conv1d(layer):
        return data.reshape(-1, data.shape[-1])
    rank = layer.weight.dim() - 2
    if data.dim() != rank + 2 or isinstance(layer.padding, str):
        return None
    if set(layer.kernel_size) == {1} and not any(layer.padding):
        strided = data[(..., *(slice(None, None, step) for step in layer.stride))]
        return strided.movedim(1, -1).reshape(-1, data.shape[1])
    if rank != 2 or layer.padding_mode != "zeros":
        return None
    found = functional.unfold(data, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return found.movedim(1, -1).reshape(-1, found.shape[1])
