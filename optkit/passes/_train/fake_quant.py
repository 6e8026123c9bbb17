"""Rounding in a live torch module as integers will round it, with gradients that go through.

    y = Linear(x, W, b)  ->  y = Linear(Q(x), Q(W), b + (W - Q(W)) E[x])

Q rounds to the integers that quantize-static takes: of the input with a scale that stays, of the weights with the scale
of what they are at the moment. The gradient of rounding is taken for 1 (straight-through; Bengio et al. 2013,
"Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation"), and for 0 where the input
is cut off. A batch normalization behind a convolution counts as folded into it, with fixed statistics (Jacob et al.
2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from optkit.passes._train.fake_sites import Site, channels, inputs_of, is_norm, norm_factor

if TYPE_CHECKING:
    from torch import Tensor, nn

    from optkit.passes._quant.planned import Steps


@contextmanager
def fake_quantized(module: nn.Module, sites: Sequence[Site]) -> Iterator[None]:
    """Within, the modules of ``sites`` round, and batch normalizations keep their statistics."""
    from torch.nn.utils import parametrize

    undo: list[Callable[[], Any]] = [_freeze(part) for part in module.modules() if is_norm(part)]
    rounding = _rounding()
    try:
        for site in sites:
            part, fake = site.module, rounding(site)
            parametrize.register_parametrization(part, "weight", fake)
            undo.append(partial(parametrize.remove_parametrizations, part, "weight", leave_parametrized=False))
            undo.append(part.register_forward_pre_hook(fake.round_input, with_kwargs=True).remove)
            undo.append(part.register_forward_hook(fake.round_bias).remove)
            if site.layer.given is not None:
                undo.append((site.norm or part).register_forward_hook(_round_output(site.layer.given)).remove)
        yield
    finally:
        for each in reversed(undo):
            each()


def _freeze(norm: nn.Module) -> Callable[[], None]:
    """Keep it in eval mode, whatever mode its module is put in."""
    before = norm.training
    norm.eval()
    norm.train = lambda *_: norm

    def thaw() -> None:
        del norm.train
        norm.train(before)

    return thaw


def _round_output(steps: Steps) -> Callable[..., Tensor]:
    return lambda _, __, output: _rounded(output, steps)


def _rounded(value: Tensor, steps: Steps) -> Tensor:
    import torch

    made: Tensor = torch.fake_quantize_per_tensor_affine(value, steps.scale, steps.zero, steps.low, steps.high)
    return made


def _rounding() -> Any:
    """The parametrization of a weight; a class made here, as torch is not imported above."""
    import torch
    from torch import nn

    class Rounding(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
        """Rounds a module's weights and input."""

        def __init__(self, site: Site) -> None:
            super().__init__()
            self._site = (site,)  # in a tuple, so that the module inside does not become a part of itself
            self._axis = channels(site.module)
            means = site.layer.means if len(site.layer.means) == inputs_of(site.module) else ()
            self.register_buffer("means", torch.tensor(means), persistent=False)
            self._lost = self._scale = torch.zeros(())

        def forward(self, weight: Tensor) -> Tensor:
            layer, axis = self._site[0].layer, self._axis
            factor = self._factor(weight.dim())
            whole = weight * factor
            others = [each for each in range(weight.dim()) if each != axis]
            peak = whole.detach().abs().amax(others, keepdim=True) if layer.per_channel else whole.detach().abs().max()
            scale = peak / layer.top
            self._scale = torch.where(scale < torch.finfo(scale.dtype).tiny, torch.ones_like(scale), scale)
            self._lost = whole.detach() - torch.round(whole.detach() / self._scale) * self._scale
            return (whole - self._lost) / factor

        def round_input(self, _: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
            taken = self._site[0].layer.taken
            if args:
                return (_rounded(args[0], taken), *args[1:]), named
            return args, {name: _rounded(value, taken) for name, value in named.items()}

        def round_bias(self, part: nn.Module, _: Any, output: Tensor) -> Tensor:
            """Take the bias away that was added, and add it corrected and rounded."""
            if not self._site[0].layer.bias:
                return output
            with torch.no_grad():
                bias, step = self._bias(), self._site[0].layer.taken.scale * self._scale.flatten()
                change = torch.round((bias + self._shift(part)) / step) * step - bias
                change = change / self._factor(1)
            return output + change.view(-1, *[1] * (self._lost.dim() - 2))

        def _bias(self) -> Tensor:
            """As it is with the normalization folded in, [out]."""
            part, norm = self._site[0].module, self._site[0].norm
            bias = torch.zeros(self._lost.shape[self._axis], device=self.means.device)
            bias = bias if part.bias is None else part.bias
            if norm is None:
                return bias
            offset = 0 if norm.bias is None else norm.bias
            return (bias - norm.running_mean) * self._factor(1) + offset

        def _shift(self, part: nn.Module) -> Tensor:
            """What rounded weights take from the mean of the output, [out]; see ``_quant.bias``."""
            if not len(self.means):
                return torch.zeros((), device=self.means.device)
            lost = self._lost.movedim(self._axis, 0)
            lost = lost.flatten(2).sum(2) if lost.dim() > 2 else lost
            groups = getattr(part, "groups", 1)
            return (lost.reshape(groups, -1, lost.shape[1]) @ self.means.view(groups, -1, 1)).flatten()

        def _factor(self, dims: int) -> Tensor:
            """What a batch normalization multiplies each channel by; 1 where it would be 0."""
            norm = self._site[0].norm
            if norm is None:
                return torch.ones((), device=self.means.device)
            factor = norm_factor(norm)
            factor = torch.where(factor == 0, torch.ones_like(factor), factor)
            return factor.view([-1 if each == self._axis or dims == 1 else 1 for each in range(dims)])

    return Rounding
