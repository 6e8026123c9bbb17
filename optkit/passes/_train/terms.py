"""The terms of a distillation that look at outputs and labels, and which of all terms are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optkit.errors import PassError
from optkit.passes._base import Context
from optkit.passes._train.hooks import Term, hook_name
from optkit.passes._train.loader import TrainBatch
from optkit.passes._train.losses import LOGITS, class_output, label_loss, row_distance, soft_classes
from optkit.passes._train.tune import MASK

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = {"logits": 1.0, "embeddings": 1.0, "hidden": 0.5, "attention": 0.1, "labels": 0.5}
"""The losses there are, and the weights of those that are chosen."""
_TOKENS = "last_hidden_state"


@dataclass(frozen=True)
class Wishes:
    """What the options of the pass say."""

    losses: Mapping[str, float] | None
    """Name -> weight; None = chosen by what the models give."""
    hooks: Sequence[str]
    temperature: float
    layers: Mapping[str, str]
    """Module of the student -> of the teacher; empty = found."""


@dataclass(frozen=True)
class Tasks:
    """The terms that look at outputs and labels alone."""

    wishes: Wishes
    classes: int | None

    def wants(self, name: str) -> bool:
        """Whether the term may be used."""
        return self.wishes.losses is None or name in self.wishes.losses

    def terms(self) -> dict[str, Term]:
        """All of them."""
        return {"logits": self._logits, "embeddings": self._embeddings, "labels": self._labels}

    def weights(self, outputs: Mapping[str, Tensor], batch: TrainBatch, *, alike: bool) -> dict[str, float]:
        """Name -> weight of each term, hooks included; ``alike``: there are pairs of layers, all of one shape."""
        asked = self.wishes.losses
        if asked is None:
            found = self._fitting(outputs, batch, alike)
            asked = {name: weight for name, weight in WEIGHTS.items() if name in found}
        if "labels" in asked and batch.labels is None:
            raise PassError(
                "The losses name labels, and the split train has none.",
                expected="labelled samples to train on",
                fix="leave labels out of losses, or name the labels of the data",
            )
        return {**asked, **{name: asked.get(name, 1.0) for name in map(hook_name, self.wishes.hooks)}}

    def _fitting(self, outputs: Mapping[str, Tensor], batch: TrainBatch, alike: bool) -> set[str]:
        scores = scores_of(outputs, self.classes)
        others = [name for name, value in outputs.items() if value.is_floating_point() and name != scores]
        hidden = bool(self.wishes.layers) or (alike and scores is None)
        fits = {"logits": scores is not None, "embeddings": bool(others), "hidden": hidden}
        return {name for name, fit in fits.items() if fit} | ({"labels"} if self._labelled(batch, scores) else set())

    def _labelled(self, batch: TrainBatch, scores: str | None) -> bool:
        if batch.labels is None or batch.targets is None:
            return False
        if not batch.labels.is_floating_point():
            return scores is not None and batch.targets[scores].ndim == 2 and batch.labels.ndim == 1
        return [value.numel() for value in batch.targets.values()].count(batch.labels.numel()) == 1

    def _logits(self, outputs: Mapping[str, Tensor], batch: TrainBatch) -> Tensor:
        name = scores_of(outputs, self.classes) or _only(outputs)
        mask, (found, aim) = batch.inputs.get(MASK), (each[name] for each in (outputs, batch.targets or {}))
        if mask is not None and found.ndim == 3 and mask.shape == found.shape[:2]:
            found, aim = found[mask.bool()], aim[mask.bool()]
        return soft_classes(found, aim, self.wishes.temperature)

    def _embeddings(self, outputs: Mapping[str, Tensor], batch: TrainBatch) -> Tensor:
        import torch

        skip = scores_of(outputs, self.classes) if self.wants("logits") else None
        mask, aims = batch.inputs.get(MASK), batch.targets or {}
        floats = [name for name, value in outputs.items() if value.is_floating_point() and name != skip]
        if not floats:
            raise PassError(
                "The losses name embeddings, and the models give nothing but class scores.",
                expected="another output of floats",
                fix="leave embeddings out of losses",
            )
        return torch.stack([embedding_loss(name, outputs[name], aims[name], mask) for name in floats]).mean()

    def _labels(self, outputs: Mapping[str, Tensor], batch: TrainBatch) -> Tensor:
        if batch.labels is None:
            raise PassError("A batch has no labels.", fix="leave labels out of losses")
        return label_loss(outputs, batch.labels, self.classes)


def scores_of(outputs: Mapping[str, Tensor], classes: int | None) -> str | None:
    """The output with class scores: ``class_output``, or the logits [batch, seq, vocabulary] of a language model."""
    name = class_output(outputs, classes) or (LOGITS if LOGITS in outputs else None)
    return name if name is not None and outputs[name].ndim > 1 and outputs[name].shape[-1] > 1 else None


def embedding_loss(name: str, output: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """``row_distance`` of embeddings [batch, width]; of tokens [batch, seq, width] also that of their means.

    Tokens are what the mask [batch, seq] goes with, and last_hidden_state; positions that it leaves out do not count.
    """
    tokens = output.ndim == 3 and (name == _TOKENS or (mask is not None and mask.shape == output.shape[:2]))
    if not tokens:
        return row_distance(output, target)
    fits = mask is not None and mask.shape == output.shape[:2]
    means = (_mean(each, mask if fits else None) for each in (output, target))
    return (row_distance(*means) + row_distance(output, target, mask if fits else None)) / 2


def _mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return tokens.mean(1)
    counts = mask.to(tokens.dtype).unsqueeze(-1)
    return (tokens * counts).sum(1) / counts.sum(1).clamp_min(1)


def _only(outputs: Mapping[str, Tensor]) -> str:
    found = [name for name, value in outputs.items() if value.is_floating_point() and value.ndim > 1]
    if len(found) != 1:
        raise PassError(
            f"The losses name logits, and which output has them is not clear among {', '.join(outputs)}.",
            expected="an output named logits, or one alone",
            fix="name embeddings in losses instead, or name the output logits",
        )
    return found[0]


def require_own_loss(wishes: Wishes, ctx: Context) -> None:
    """A training function of the user's has a loss of its own.

    Raises:
        PassError: losses or hooks are named beside one.
    """
    if ctx.training.function is not None and (wishes.losses is not None or wishes.hooks):
        raise PassError(
            f"The losses of distill are not used where {ctx.training.function} trains.",
            expected="either losses and hooks, or a training function (train: function) with its own loss",
            fix="leave out one of them; the function finds the teacher's outputs in batch.targets",
        )
