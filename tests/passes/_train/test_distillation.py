"""The terms of a student's loss: which are chosen, what each is, and how they add up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from optkit.errors import PassError
from optkit.passes._train.distillation import lesson
from optkit.passes._train.losses import label_loss, row_distance, soft_classes
from optkit.passes._train.terms import Wishes, embedding_loss, scores_of
from tests.passes._train.jobs import context, digits, module_of
from tests.passes.test_distill import unlabelled

MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


def wishes(**given: object) -> Wishes:
    return Wishes(**{"losses": None, "hooks": (), "temperature": 3.0, "layers": {}, **given})  # type: ignore[arg-type]


class Two(nn.Module):
    """Class scores and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.embed = nn.Linear(64, 10), nn.Linear(64, 6)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Both."""
        flat = image.flatten(1)
        return {"logits": self.scores(flat), "embedding": self.embed(flat)}


class Embedder(nn.Sequential):
    """An embedding in two layers."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 6), nn.Linear(6, 4))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """float32[batch, 4]."""
        return {"embedding": super().forward(image.mean((1, 2)))}


def test_the_loss_is_the_weighted_sum_of_its_terms(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ctx, student, teacher = context(tmp_path), Two(), Two().requires_grad_(False)
    inputs = {"image": torch.rand(2, 1, 8, 8)}
    with lesson(student, teacher, inputs, {}, wishes(), ctx) as prepared:
        assert prepared.weights == {"logits": 1.0, "embeddings": 1.0, "labels": 0.5}
        batch = next(iter(prepared.batches.epoch(0)))
        found = prepared.loss(student, batch)
        outputs, aims = student(**batch.inputs), teacher(**batch.inputs)
        expected = (
            soft_classes(outputs["logits"], aims["logits"], 3.0)
            + row_distance(outputs["embedding"], aims["embedding"])
            + 0.5 * label_loss({"logits": outputs["logits"]}, batch.labels)  # type: ignore[arg-type]
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
        assert set(prepared.values()) == {"logits", "embeddings", "labels"}


def test_only_the_losses_that_are_named(tmp_path: Path) -> None:
    ctx = unlabelled(context(tmp_path))
    given = {"image": torch.rand(2, 1, 8, 8)}
    with lesson(Two(), Two().requires_grad_(False), given, {}, wishes(losses={"embeddings": 2.0}), ctx) as prepared:
        assert prepared.weights == {"embeddings": 2.0}
        assert prepared.told() == "embeddings 2"


def test_values_are_means_in_eval_mode(tmp_path: Path) -> None:
    ctx = unlabelled(context(tmp_path, digits("digits_cnn")))
    student, teacher = module_of(ctx).train(), module_of(ctx).requires_grad_(False)
    with lesson(student, teacher, {"image": torch.rand(2, 1, 8, 8)}, {}, wishes(), ctx) as prepared:
        assert prepared.values()["logits"] == pytest.approx(0, abs=1e-6)


def test_layers_of_one_width_are_compared_where_there_are_no_class_scores(tmp_path: Path) -> None:
    ctx = unlabelled(context(tmp_path))
    inputs = {"image": torch.rand(2, 1, 8, 8)}
    student, teacher = Embedder(), Embedder().requires_grad_(False)
    with lesson(student, teacher, inputs, {"0": "0"}, wishes(), ctx) as prepared:
        assert prepared.weights == {"embeddings": 1.0, "hidden": 0.5}
    with lesson(student, teacher, inputs, {"0": "1"}, wishes(), ctx) as prepared:
        assert prepared.weights == {"embeddings": 1.0}
    student, teacher = module_of(ctx), module_of(ctx).requires_grad_(False)
    with lesson(student, teacher, inputs, {"layers.1": "layers.1"}, wishes(), ctx) as prepared:
        assert prepared.weights == {"logits": 1.0}
    named = wishes(layers={"layers.1": "layers.4"})
    with lesson(student, teacher, inputs, named.layers, named, ctx) as prepared:
        assert prepared.weights == {"logits": 1.0, "hidden": 0.5}
        assert isinstance(prepared.loss, nn.Module)
        assert [tuple(each.shape) for each in prepared.loss.parameters()] == [(128, 192)]
    assert not any(part._forward_hooks for each in (student, teacher) for part in each.modules())


def test_class_scores_have_no_embeddings(tmp_path: Path) -> None:
    ctx = unlabelled(context(tmp_path))
    student, teacher = module_of(ctx), module_of(ctx).requires_grad_(False)
    inputs = {"image": torch.rand(2, 1, 8, 8)}
    both = wishes(losses={"logits": 1.0, "embeddings": 1.0})
    with (
        pytest.raises(PassError, match="nothing but class scores"),
        lesson(student, teacher, inputs, {}, both, ctx),
    ):
        pass


def test_which_output_has_the_scores() -> None:
    flat, tokens = torch.rand(2, 4), torch.rand(2, 3, 4)
    assert scores_of({"a": flat, "logits": tokens}, None) == "logits"
    assert scores_of({"logits": flat[:, :1]}, None) is None
    assert scores_of({"last_hidden_state": tokens}, None) is None
    assert scores_of({"output_0": flat}, 4) == "output_0"


def test_embeddings_of_tokens_are_compared_as_tokens_and_as_means() -> None:
    one, other = torch.rand(2, 3, 4), torch.rand(2, 3, 4)
    means = [torch.stack([each[0, :2].mean(0), each[1].mean(0)]) for each in (one, other)]
    expected = (row_distance(*means) + row_distance(one, other, MASK)) / 2
    torch.testing.assert_close(embedding_loss("x", one, other, MASK), expected, rtol=1e-5, atol=0)
    bent = one.clone()
    bent[0, 2] = 50
    assert float(embedding_loss("x", bent, other, MASK)) == float(embedding_loss("x", one, other, MASK))
    plain = embedding_loss("boxes", one, other, None)
    torch.testing.assert_close(plain, row_distance(one, other), rtol=0, atol=0)
