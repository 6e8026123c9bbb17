"""Attention maps: where a transformer shows them, and how far a student's are from its teacher's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optkit.errors import PassError
from optkit.passes._train.hidden import Pairs, tapped
from optkit.passes._train.losses import call

if TYPE_CHECKING:
    from torch import Tensor, nn


@contextmanager
def eager(*modules: nn.Module) -> Iterator[None]:
    """Within, Hugging Face models compute attention in the way that shows its maps."""
    before = [(each, each.config._attn_implementation) for each in modules if hasattr(each, "set_attn_implementation")]
    for each, _ in before:
        each.set_attn_implementation("eager")
    try:
        yield
    finally:
        for each, was in before:
            each.set_attn_implementation(was)


def map_of(output: Any) -> Tensor | None:
    """The attention map in a module's output: rows of the second part that sum to 1, [batch, heads, seq, seq]."""
    from torch import Tensor

    second = output[1] if isinstance(output, tuple) and len(output) > 1 else None
    return second if isinstance(second, Tensor) and second.ndim == 4 and second.is_floating_point() else None


def find_maps(whose: str, module: nn.Module, inputs: Mapping[str, Tensor], layers: Sequence[str]) -> dict[str, str]:
    """Name of a layer -> of the first module in it that gives an attention map; the module runs once.

    Raises:
        PassError: a layer has none.
    """
    import torch

    names = [name for name, _ in module.named_modules() if name]
    with torch.no_grad(), tapped(module, names, map_of) as maps:
        call(module, inputs)
        shown = [name for name in names if name in maps and _sums_to_one(maps[name])]
    found = {layer: next((each for each in shown if each.startswith(f"{layer}.")), "") for layer in layers}
    missing = [layer for layer, name in found.items() if not name]
    if missing or not layers:
        where = f"its layer {missing[0]} gives none" if missing else "no layers were found in both"
        raise PassError(
            f"There are no attention maps to learn from in the {whose}: {where}.",
            expected="lists of layers in both, of Hugging Face transformers whose attention has an eager form",
            fix="leave attention out of losses; or name layers with attention in them",
        )
    return found


def attention_loss(
    pairs: Pairs, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], mask: Tensor | None
) -> Tensor:
    """Kullback-Leibler divergence of the student's attention from the teacher's, the mean over heads, tokens and pairs.

    Where the numbers of heads differ, the mean over the heads of each is compared. Rows of tokens that the mask
    [batch, seq] leaves out do not count.

    Source: Wang et al. 2020, "MiniLM: Deep Self-Attention Distillation", equation 4.
    """
    import torch

    return torch.stack([_divergence(mine[one], theirs[other], mask) for one, other in pairs.items()]).mean()


def _divergence(found: Tensor, aim: Tensor, mask: Tensor | None) -> Tensor:
    if found.shape[1] != aim.shape[1]:
        found, aim = found.mean(1, keepdim=True), aim.mean(1, keepdim=True)
    if found.shape != aim.shape:
        raise PassError(
            f"Attention maps of the student {list(found.shape)} and of the teacher {list(aim.shape)} differ in size.",
            expected="the same tokens in both",
            fix="leave attention out of losses",
        )
    small = 1e-8
    rows = (aim * ((aim + small).log() - (found + small).log())).float().sum(-1).mean(1)
    if mask is not None and mask.shape == rows.shape:
        rows = rows[mask.bool()]
    return rows.mean()


def _sums_to_one(value: Tensor) -> bool:
    import torch

    sums = value.float().sum(-1)
    return bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-3))
