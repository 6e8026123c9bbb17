"""The directions in which the outputs of layers vary on data, and two layers that keep the first of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optkit.errors import PassError
from optkit.model.surgery import Factorize, operate
from optkit.passes._prune.layer_drop import unlike
from optkit.passes._prune.layers import outputs
from optkit.passes._prune.matrices import Inputs, Layer, matrix, replaced, rows_of, run
from optkit.passes._prune.rank import Floats, lost_shares
from optkit.passes._quant.moments import grouped
from optkit.passes._quant.unpadded import unpadded_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

    from optkit.passes._base import Context

SAMPLES = 512
"""Of the calibration data that are looked at, at most."""
ROWS = 32
"""Rows of outputs that are looked at for each of their channels, at most, in one batch."""
TOGETHER = 512
"""Rows that are summed at a time, of one batch or several."""
DAMPING = 0.01
"""Weight of the spectrum of the weights alone beside that of the outputs: directions that the data do not show."""


@dataclass(frozen=True)
class Spectrum:
    """The directions of a layer's outputs, the most important first."""

    directions: Tensor
    """float64[outputs, k], orthonormal."""
    spread: Tensor
    """float64[k]: standard deviation along each."""
    mean: Tensor
    """float64[k]: along each, of the output without its bias; zeros for a layer that has none."""
    lost: Floats
    """[k + 1]: share of the output's variance (of its mean square without a bias) that is lost with so many."""
    rows: int
    """Of outputs seen."""

    def error(self, rank: int) -> float:
        """Root mean square of what is lost, as a share of the output's spread."""
        return float(self.lost[rank] ** 0.5)


def spectra_of(module: nn.Module, layers: Sequence[Layer], ctx: Context) -> dict[str, Spectrum]:
    """Of all layers; the calibration data run once for as many of them as fit into memory together.

    Raises:
        PassError: an output is infinite or NaN.
    """
    widths = {each.name: 2 * min(each.inputs, each.outputs) for each in layers}
    known: dict[str, Spectrum] = {}
    for group in grouped(widths):
        known |= spectra(module, group, unpadded_tensors(ctx, SAMPLES), ctx.seed)
    return known


def few(known: Mapping[str, Spectrum]) -> list[str]:
    """A sentence where a layer has fewer rows than directions."""
    short = [(each.rows / len(each.spread), name) for name, each in known.items() if each.rows < len(each.spread)]
    return [
        f"only {known[name].rows} rows of calibration data (samples x positions) for the {len(known[name].spread)}"
        f" directions of '{name}': at least as many are needed, and 10 times as many are usual"
        for _, name in sorted(short)[:1]
    ]


def spectra(module: nn.Module, names: Sequence[str], batches: Iterable[Inputs], seed: int) -> dict[str, Spectrum]:
    """Directions of the outputs of some layers on some data.

    W' = U U^T W with the first eigenvectors U of the outputs' covariance W C W^T: what the SVD of W C^(1/2) gives.

    Source: Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and Detection", 2015; Chen
    et al., "DRONE: Data-aware Low-rank Compression for Large NLP Models", 2021; Wang et al., "SVD-LLM", 2024.

    Raises:
        PassError: an output is infinite or NaN.
    """
    import torch

    random = torch.Generator().manual_seed(seed)
    seen = {name: _Seen(module.get_submodule(name), random) for name in names}
    handles = [module.get_submodule(name).register_forward_hook(each.hook) for name, each in seen.items()]
    try:
        for inputs in batches:
            run(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: each.spectrum(name) for name, each in seen.items()}


def split(
    module: nn.Module, ranks: Mapping[str, int], known: Mapping[str, Spectrum], inputs: Inputs
) -> tuple[nn.Module, list[Factorize]]:
    """Put two layers in the place of each of these: the module, which is then tried on ``inputs``, and what was done.

    Raises:
        PassError: it does something else with them than call them.
    """
    operations = [Factorize(module=name, rank=rank) for name, rank in ranks.items()]
    whole = {name: module.get_submodule(name) for name in ranks}
    module = operate(module, operations)
    for name, rank in ranks.items():
        install(whole[name], module.get_submodule(name), known[name], rank)
    _require_same(module, whole, inputs)
    return module, operations


def _require_same(module: nn.Module, whole: Mapping[str, nn.Module], inputs: Inputs) -> None:
    """Refuse a module that does not compute what it would if its old layers ``whole`` gave what their factors give.

    Raises:
        PassError: its forward asks of what class a layer is, or the like.
    """
    pairs = [(layer, module.get_submodule(name)) for name, layer in whole.items() if name]
    found = outputs(module, inputs)
    handles = [
        layer.register_forward_hook(lambda _, given, __, factors=factors: factors(*given)) for layer, factors in pairs
    ]
    try:
        with replaced(module, {name: layer for name, layer in whole.items() if name}):
            expected = outputs(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    if reason := unlike(found, expected):
        raise PassError(
            f"The module looks at the classes of its layers, and does something else with two in the place of one:"
            f" {reason}.",
            expected="a forward that only calls its layers",
            fix=f"leave them out with exclude: [{', '.join(whole)}]",
        )


def install(before: nn.Module, after: nn.Module, spectrum: Spectrum, rank: int) -> None:
    """Put the weights of the layer ``before`` into the two that took its place: z = D^-1 U^T W x, y = U D z + b'.

    D is the spread of each direction, so that z comes out even, which quantization likes. The bias takes the mean of
    what is lost.
    """
    import torch

    narrow, wide = after.get_submodule("0"), after.get_submodule("1")
    kept = spectrum.directions[:, :rank]
    scale = spectrum.spread[:rank].clamp(min=1e-6 * float(spectrum.spread[0]) or 1.0)
    with torch.no_grad():
        narrow.weight.copy_(((kept / scale).T @ matrix(before)).reshape(narrow.weight.shape))
        wide.weight.copy_((kept * scale).reshape(wide.weight.shape))
        if wide.bias is not None:
            wide.bias.copy_(before.bias.double() + spectrum.directions[:, rank:] @ spectrum.mean[rank:])


class _Seen:
    """Second moments of a layer's outputs, in the directions that its weights can give."""

    def __init__(self, layer: nn.Module, random: Any) -> None:
        import torch

        weights = matrix(layer)
        outputs, width = weights.shape[0], min(weights.shape)
        self.basis = torch.linalg.qr(weights)[0] if outputs > width else None
        self.weights, self.bias, self.random = weights, layer.bias, random
        self.most = ROWS * width
        self.rows = 0
        self.waiting: list[Tensor] = []
        self.total = torch.zeros(width, dtype=torch.float64)
        self.square = torch.zeros(width, width, dtype=torch.float64)

    def hook(self, layer: nn.Module, _: Any, output: Tensor) -> None:
        """Take note of some rows of its output."""
        import torch

        rows = rows_of(layer, output)
        if len(rows) > self.most:
            rows = rows[torch.randperm(len(rows), generator=self.random)[: self.most]]
        self.waiting.append(rows.clone())  # a ReLU in place may change them
        if sum(map(len, self.waiting)) >= TOGETHER:
            self.take()

    def take(self) -> None:
        """Add what waits to the sums."""
        import torch

        if not self.waiting:
            return
        rows = torch.cat(self.waiting).double()
        self.waiting.clear()
        rows = rows if self.bias is None else rows - self.bias.detach().double()
        rows = rows if self.basis is None else rows @ self.basis
        self.rows += len(rows)
        self.total += rows.sum(0)
        self.square += rows.T @ rows

    def spectrum(self, name: str) -> Spectrum:
        """Of what was seen."""
        import torch

        self.take()
        mean = self.total / max(1, self.rows) * (self.bias is not None)
        moment = self.square / max(1, self.rows) - torch.outer(mean, mean)
        if not bool(torch.isfinite(moment).all()):
            raise PassError(
                f"The output of '{name}' becomes infinite or NaN on the calibration data.",
                expected="finite activations",
                fix="check the calibration data and the weights, or leave the layer out with 'exclude'",
            )
        alone = self.weights if self.basis is None else self.basis.T @ self.weights
        alone = alone @ alone.T
        share = float(moment.trace()) / max(float(alone.trace()), 1e-300) or 1.0
        damping = DAMPING * max(1.0, len(mean) / max(1, self.rows))
        _, turn = torch.linalg.eigh(moment + damping * share * alone)
        turn = turn.flip(1)
        kept = ((turn.T @ moment) * turn.T).sum(1).clamp(min=0)
        directions = turn if self.basis is None else self.basis @ turn
        return Spectrum(directions, kept.sqrt(), turn.T @ mean, lost_shares(kept.numpy()), self.rows)
