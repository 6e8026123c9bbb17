"""Fine-tuning from labels, from a teacher, from both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from optkit.data.dataset import Dataset
from optkit.errors import PassError
from optkit.passes._train.keeper import Trained
from optkit.passes._train.loader import TrainBatch
from optkit.passes._train.losses import distill_loss, label_loss
from optkit.passes._train.tune import class_count, fine_tune, plain_loss
from optkit.pipeline.context import StepContext
from tests.passes._train.jobs import context, module_of
from tests.passes._train.test_loop import shaken


def unlabelled(ctx: StepContext) -> StepContext:
    splits: dict[str, Dataset] = {**ctx.job.splits, "train": replace(ctx.job.splits["train"], labels=None)}  # type: ignore[type-var]
    return replace(ctx, job=replace(ctx.job, splits=splits))


def test_labels_and_teacher_add_up(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    module, teacher = shaken(ctx).eval(), module_of(ctx)
    inputs, labels = {"image": torch.rand(4, 1, 8, 8)}, torch.tensor([0, 1, 2, 3])
    module.requires_grad_(False)
    outputs, targets = module(**inputs), teacher.requires_grad_(False)(**inputs)
    taught = TrainBatch(inputs, labels, 4, targets)
    expected = label_loss(outputs, labels) + distill_loss(outputs, targets)
    assert float(plain_loss(module, taught)) == pytest.approx(float(expected), rel=1e-6)
    assert float(plain_loss(module, replace(taught, labels=None))) == float(distill_loss(outputs, targets))
    assert float(plain_loss(module, replace(taught, targets=None))) == float(label_loss(outputs, labels))


def test_class_numbers_of_an_embedding_do_not_count_beside_a_teacher() -> None:
    module = torch.nn.Linear(3, 8).requires_grad_(False)
    inputs = {"input": torch.rand(4, 3)}
    targets = {"output_0": torch.rand(4, 8)}
    batch = TrainBatch(inputs, torch.tensor([0, 1, 0, 1]), 4, targets)
    assert float(plain_loss(module, batch, 2)) == float(distill_loss({"output_0": module(inputs["input"])}, targets))


def test_a_teacher_suffices_without_labels(tmp_path: Path) -> None:
    ctx = unlabelled(context(tmp_path))
    teacher = module_of(ctx)
    trained = fine_tune(shaken(ctx), ctx, stage="a", teacher=teacher)
    assert trained.after > trained.before
    assert not any(each.training for each in teacher.modules())
    assert all(each.grad is None for each in teacher.parameters())


def test_neither_labels_nor_a_teacher_is_refused(tmp_path: Path) -> None:
    ctx = unlabelled(context(tmp_path))
    with pytest.raises(PassError, match="nothing to train on") as caught:
        fine_tune(module_of(ctx), ctx, stage="a")
    assert "labelled samples in the split train" in caught.value.expected


def test_a_share_of_the_steps_is_trained(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    assert fine_tune(shaken(ctx), ctx, stage="a", share=0.25).steps == 6
    assert fine_tune(shaken(ctx), ctx, stage="b", share=0.001).steps == 1


def test_the_number_of_classes_is_that_of_the_labels() -> None:
    import numpy as np

    assert class_count(np.array([0, 3, 1])) == 4
    assert class_count(np.array([0.5])) is None
    assert class_count(None) is None


def test_it_is_told_in_a_sentence() -> None:
    assert Trained(400, 0.9712, 0.988, "top1").told() == "trained 400 steps: top1 .9712 -> .988 (search)"
    assert Trained(3, -0.5, 12.0, "mse").told() == "trained 3 steps: mse -.5 -> 12 (search)"


def test_outputs_that_are_there_in_training_only_do_not_count() -> None:
    class Aux(torch.nn.Linear):  # type: ignore[misc]
        def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, ...]:
            made = super().forward(input)
            return (made, -made) if self.training else (made,)

    module, inputs, labels = Aux(3, 3).requires_grad_(False), {"input": torch.rand(4, 3)}, torch.tensor([0, 1, 2, 0])
    batch = TrainBatch(inputs, labels, 4)
    expected = label_loss({"output_0": torch.nn.functional.linear(inputs["input"], module.weight, module.bias)}, labels)
    assert float(plain_loss(module, batch, 3, {"output_0"})) == pytest.approx(float(expected))
    with pytest.raises(PassError, match="output_1"):
        plain_loss(module, batch, 3)
