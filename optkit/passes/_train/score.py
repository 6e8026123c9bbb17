"""How good a live module is, by the search split."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optkit.data.dataset import Array, Arrays
from optkit.model.manifest import OutputFidelity, Verdict
from optkit.model.torch_call import to_tensor
from optkit.passes._base import Context
from optkit.passes._train.losses import call

if TYPE_CHECKING:
    from torch import Tensor, nn


ONE_SIDED = 1.645
"""Standard errors from a value to its one-sided 95 % bound."""


@dataclass(frozen=True)
class Score:
    """By the task metric, else by how often class and original's are the same, else by likeness to the original."""

    metric: str
    """Its name; ``agreement`` or ``cosine`` where there is none."""
    value: float
    rank: tuple[float, float]
    """Greater is better: the value in its better direction; where equal, the likeness. Outputs that are not even finite
    come last."""
    slack: float = 0.0
    """Standard error of the value, of a metric from the paired bootstrap against the original: less is no
    difference."""

    def better(self, kept: Score, top: float) -> bool:
        """Whether these weights should be kept in the place of others.

        Of all whose value is within its slack of the highest, ``top``, those most like the original are kept; so a few
        samples of luck do not count for more than everything else.
        """
        top = max(top, self.rank[0])
        if self.rank[0] < top - self.slack:
            return False
        return kept.rank[0] < top - kept.slack or self.rank[1] > kept.rank[1]


def score(module: nn.Module, ctx: Context, device: str = "cpu") -> Score:
    """The module's score on split search; it is called in eval mode, and left as it was."""
    training = {each: each.training for each in module.modules()}
    module.eval()
    try:
        return score_of(ctx.judge_outputs(_outputs(module, ctx, device)))
    finally:
        for each, mode in training.items():
            each.training = mode


def score_of(verdict: Verdict) -> Score:
    """What counts of a verdict."""
    likeness = _likeness(verdict)
    if verdict.problems:
        return Score("cosine", likeness, (-math.inf, likeness))
    if not verdict.metrics:
        return _by_class(verdict, likeness) or Score("cosine", likeness, (likeness, 0.0))
    found = verdict.metrics[0]
    if not math.isfinite(found.result):
        return Score(found.name, float(found.result), (-math.inf, likeness))
    value = float(found.result)
    slack = max(0.0, (found.bound - found.drop) / ONE_SIDED)
    return Score(found.name, value, (value if found.better == "higher" else -value, likeness), slack)


def _by_class(verdict: Verdict, likeness: float) -> Score | None:
    """By the output with class scores whose class is least often the original's."""
    found = [(each.top1, each.rows) for each in verdict.outputs if each.top1 is not None and each.rows]
    if not found:
        return None
    share, rows = min(found)
    smoothed = (share * rows + 1) / (rows + 2)
    return Score("agreement", share, (share, likeness), math.sqrt(smoothed * (1 - smoothed) / rows))


def _likeness(verdict: Verdict) -> float:
    """Of the worst output: mean cosine, of class scores the mean of that and the share of the same classes, or the
    share of equal elements; -1 for what cannot be compared at all."""
    if verdict.problems:
        return -1.0
    found = [_alike(each) for each in verdict.outputs]
    return float(min((x for x in found if x is not None and math.isfinite(x)), default=-1.0))


def _alike(output: OutputFidelity) -> float | None:
    if output.cosine is None:
        return output.equal
    return output.cosine if output.top1 is None else (output.cosine + output.top1) / 2


def _outputs(module: nn.Module, ctx: Context, device: str) -> Iterator[Arrays]:
    import torch

    dtypes = {spec.name: spec.dtype for spec in ctx.original.signature.inputs}
    dataset = ctx.batches("search")
    for batch in dataset.batches():
        inputs = {name: to_tensor(name, batch.inputs[name], dtype).to(device) for name, dtype in dtypes.items()}
        with torch.no_grad():
            found = call(module, inputs)
        padded = dataset.batch if batch.size < dataset.batch else -1
        yield {name: _array(value[: batch.size] if _rows(value) == padded else value) for name, value in found.items()}


def _rows(value: Tensor) -> int:
    return int(value.shape[0]) if value.ndim else 0


def _array(value: Tensor) -> Array:
    import torch

    array: Array = (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy()
    return array
