"""Layers that lost inputs take over what those gave, as far as the inputs that stay can tell it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optkit.passes._prune.cut import Kept, left
from optkit.passes._prune.inputs_seen import Seen
from optkit.passes._prune.matrices import Inputs, is_conv1d, is_layer, matrix, run
from optkit.passes._prune.norms import output_error
from optkit.passes._quant.moments import grouped

if TYPE_CHECKING:
    from torch import Tensor, nn

    Solution = tuple[Tensor, Tensor | None]

WIDEST = 8192
"""Inputs of a layer (channels x kernel), at most."""
DAMPINGS = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
"""Weight of the change itself, as a share of the inputs' mean square; each layer takes what suits unseen rows best."""


@dataclass(frozen=True)
class Reader:
    """A layer that lost inputs."""

    name: str
    lost: NDArray[np.int64]
    """Columns of its matrix before."""
    kept: NDArray[np.int64]
    rows: NDArray[np.int64] | None
    """The outputs that it has left; None = all."""


def take_over(
    whole: nn.Module,
    module: nn.Module,
    original: nn.Module,
    kept: Kept,
    data: Callable[[], Iterable[Inputs]],
    seed: int,
) -> str:
    """Change the weights of the layers that read pruned units, where that brings the outputs nearer to the original's.

    ``W x`` becomes ``W' x_kept`` with W' = W_kept + W_lost C_lost,kept (C_kept,kept + damping)^-1, C the second moments
    of its inputs (their covariance, if the layer has a bias, which then takes the mean): least squares, held to the
    weights that were there. Each half of the data says which damping suits the other.

    Source: He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks" (reconstruction); Hassibi and
    Stork 1993, "Optimal Brain Surgeon".

    Args:
        whole: live, before the units went.
        module: live, without them; changed in place.
        original: live, what the outputs should be.
        kept: what was kept of each group.
        data: batches of calibration samples, inputs by name, again at each call.
        seed: of the rows that are looked at.

    Returns:
        a sentence; empty where nothing was changed.
    """
    readers = {each.name: each for each in _readers(whole, kept)}
    widths = {name: 2 * (len(each.lost) + len(each.kept)) for name, each in readers.items()}
    found: dict[str, Solution] = {}
    for group in grouped(widths):
        found |= _solutions(whole, [readers[name] for name in group], data, seed)
    if not found:
        return ""
    before = output_error(module, original, data())
    own = {name: _put(module.get_submodule(name), solution) for name, solution in found.items()}
    after = output_error(module, original, data())
    if after < before:
        layers = "1 layer" if len(found) == 1 else f"{len(found)} layers"
        return (
            f"{layers} took over what the pruned units gave, by least squares on calibration data: "
            f"error of the outputs {before:.3g} -> {after:.3g}"
        )
    for name, solution in own.items():
        _put(module.get_submodule(name), solution)
    return ""


def _put(layer: nn.Module, solution: Solution) -> Solution:
    """Give the layer these weights, not in place as others may share the old ones; those it had."""
    import torch

    had = layer.weight, layer.bias
    for name, new in zip(("weight", "bias"), solution, strict=True):
        old = getattr(layer, name)
        if new is not None:
            setattr(layer, name, torch.nn.Parameter(new.detach().to(old).contiguous(), requires_grad=old.requires_grad))
    return had


def _readers(whole: nn.Module, kept: Kept) -> Iterator[Reader]:
    """Linear layers and convolutions without groups that lost inputs, and whose weights are theirs alone."""
    parts = [(part, keep) for part, keep in left(kept) if part.tensor.endswith(".weight") and len(part.names) == 1]
    outputs = {part.tensor: keep for part, keep in parts if part.role != "in"}
    vectors = [id(each) for name, each in whole.named_parameters(remove_duplicate=False) if name.endswith("bias")]
    for part, keep in parts:
        name = part.tensor.removesuffix(".weight")
        layer = whole.get_submodule(name)
        if part.role != "in" or not is_layer(layer) or getattr(layer, "groups", 1) != 1:
            continue
        read_elsewhere = part.dim != (0 if is_conv1d(layer) else 1) or vectors.count(id(layer.bias)) > 1
        if read_elsewhere or not layer.weight.is_floating_point():
            continue
        columns = matrix(layer).shape[1]
        if columns <= WIDEST:
            of_each = np.arange(columns).reshape(part.size, -1)
            lost = np.delete(of_each, keep, axis=0).ravel()
            yield Reader(name, lost, of_each[keep].ravel(), outputs.get(part.tensor))


def _solutions(
    whole: nn.Module, readers: Sequence[Reader], data: Callable[[], Iterable[Inputs]], seed: int
) -> dict[str, Solution]:
    import torch

    random = torch.Generator().manual_seed(seed)
    seen = {each.name: Seen(whole.get_submodule(each.name), random) for each in readers}
    handles = [each.layer.register_forward_hook(each.hook) for each in seen.values()]
    try:
        for half, inputs in zip(cycle((0, 1)), data(), strict=False):
            for each in seen.values():
                each.half = half
            run(whole, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {each.name: _solved(each, seen[each.name]) for each in readers if seen[each.name].usable}


def _solved(reader: Reader, seen: Seen) -> Solution:
    import torch

    layer, weight = seen.layer, seen.matrix
    lost, kept = torch.from_numpy(reader.lost), torch.from_numpy(reader.kept)

    def fit(*halves: int) -> _Fit:
        return _Fit(seen.moment(*halves), weight[:, lost], lost, kept)

    one, other = fit(0), fit(1)
    damping = min(DAMPINGS, key=lambda each: other.error(one.gain(each)) + one.error(other.gain(each)))
    gain = fit(0, 1).gain(damping)
    new, bias = weight[:, kept] + gain, layer.bias
    if bias is not None:
        mean = seen.mean(0, 1)
        bias = bias.detach().double() + weight[:, lost] @ mean[lost] - gain @ mean[kept]
    if reader.rows is not None:
        rows = torch.from_numpy(reader.rows)
        new, bias = new[rows], None if bias is None else bias[rows]
    return (new.T if is_conv1d(layer) else new.reshape(len(new), -1, *layer.weight.shape[2:])), bias


class _Fit:
    """What the inputs that stay say of what the lost ones give, by the second moments of some data."""

    def __init__(self, moment: Tensor, weight: Tensor, lost: Tensor, kept: Tensor) -> None:
        import torch

        self.aim = weight @ moment[lost][:, kept]
        self.square = moment[kept][:, kept]
        self.rest = float(((weight @ moment[lost][:, lost]) * weight).sum())
        self.values, self.turn = torch.linalg.eigh(self.square)
        self.scale = max(float(self.values.mean()), 1e-30)

    def gain(self, damping: float) -> Tensor:
        """float64[outputs, kept]: what to add to the weights of the inputs that stay."""
        return ((self.aim @ self.turn) / (self.values.clamp(min=0) + damping * self.scale)) @ self.turn.T

    def error(self, gain: Tensor) -> float:
        """Mean square of what the outputs lack with this gain."""
        return self.rest - 2 * float((gain * self.aim).sum()) + float(((gain @ self.square) * gain).sum())
