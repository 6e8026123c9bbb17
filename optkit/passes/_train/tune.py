"""Fine-tuning: what a pass calls after it changed a module, to win back what that cost."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, cast

from optkit.data.dataset import Array
from optkit.errors import PassError
from optkit.passes._base import Context
from optkit.passes._train.keeper import Trained
from optkit.passes._train.loader import TrainBatch
from optkit.passes._train.loop import train
from optkit.passes._train.losses import call, class_output, distill_loss, label_loss

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Trained", "fine_tune"]

MASK = "attention_mask"


def fine_tune(
    module: nn.Module, ctx: Context, *, stage: str, share: float = 1.0, teacher: nn.Module | None = None
) -> Trained:
    """Train the module in place on labels, where split train has any, plus the teacher's outputs, where one is given.

    The best weights by the search split are in it afterwards, in eval mode on the CPU; see ``train``.

    Args:
        module: live.
        ctx: gives data and settings.
        stage: a plain word, another for each training in a step.
        share: of the steps and seconds of the recipe's block ``train:``.
        teacher: as a rule the original, live; then data without labels suffice.

    Raises:
        PassError: there are neither labels nor a teacher, or the training fails.
    """
    settings = ctx.training
    if teacher is None and settings.function is None and ctx.batches("train").labels is None:
        raise PassError(
            "There is nothing to train on: the split train has no labels, and no teacher is there.",
            expected="labelled samples in the split train, or a pass that teaches with the original model",
            fix="name the labels of the data source, or let the pass distil from the original",
        )
    seconds = None if settings.seconds is None else settings.seconds * share
    steps = max(1, round(settings.steps * share))
    known = frozenset(spec.name for spec in ctx.original.signature.outputs)
    loss = partial(plain_loss, classes=class_count(ctx.batches("train").labels), known=known)
    return train(module, ctx, loss, stage=stage, steps=steps, seconds=seconds, teacher=teacher)


def plain_loss(module: nn.Module, batch: TrainBatch, classes: int | None = None, known: Collection[str] = ()) -> Tensor:
    """Labels plus teacher, as far as the batch has them; a scalar.

    Of outputs that are there in training only (auxiliary classifiers) none counts, where the model's are ``known``.
    Beside a teacher, class numbers that surely belong to no output (as those of an embedding) do not count.
    """
    outputs = {name: value for name, value in call(module, batch.inputs).items() if not known or name in known}
    if batch.targets is None:
        return label_loss(outputs, cast("Tensor", batch.labels), classes)
    taught = distill_loss(outputs, batch.targets, batch.inputs.get(MASK), classes=classes)
    if batch.labels is None or (not batch.labels.is_floating_point() and class_output(outputs, classes) is None):
        return taught
    return taught + label_loss(outputs, batch.labels, classes)


def class_count(labels: Array | None) -> int | None:
    """One more than the largest class number; None where the labels are none."""
    return int(labels.max()) + 1 if labels is not None and labels.dtype.kind in "iub" and labels.size else None
