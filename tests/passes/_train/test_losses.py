"""Losses against figures worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from optkit.errors import PassError
from optkit.passes._train.losses import call, class_output, distill_loss, label_loss, row_distance, soft_classes


def tensor(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_the_class_output_is_found_by_name_or_by_width() -> None:
    logits, wide = torch.zeros(2, 3), torch.zeros(2, 384)
    assert class_output({"logits": logits, "other_logits": logits}) == "logits"
    assert class_output({"scores": logits, "embedding": wide}) == "scores"
    assert class_output({"output_0": logits, "output_1": wide}, 3) == "output_0"
    assert class_output({"output_0": wide}, 2) is None
    assert class_output({"score_a": logits, "score_b": logits}) is None
    assert class_output({"logits": torch.zeros(2, 5, 3)}) is None


def test_class_numbers_mean_cross_entropy() -> None:
    found = label_loss({"output_0": tensor([0.0, math.log(3)], [0.0, 0.0])}, torch.tensor([1, 0]))
    assert float(found) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-6)


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_float_labels_mean_squared_error(shape: tuple[int, ...]) -> None:
    outputs = {"value": tensor(1.0, 2.0).reshape(shape), "states": torch.zeros(2, 7)}
    assert float(label_loss(outputs, tensor(2.0, 4.0))) == pytest.approx(2.5)


def test_labels_that_fit_no_output_are_told() -> None:
    with pytest.raises(PassError, match=r"fit no output of the model: it gives states \[2, 4, 3\]"):
        label_loss({"states": torch.zeros(2, 4, 3)}, torch.tensor([0, 1]))
    with pytest.raises(PassError, match="go from 0 to 3, and the output 'logits' has 3 classes"):
        label_loss({"logits": torch.zeros(2, 3)}, torch.tensor([0, 3]))
    with pytest.raises(PassError, match=r"whole numbers \[2, 3\], not class numbers"):
        label_loss({"logits": torch.zeros(2, 3)}, torch.eye(3, dtype=torch.int64)[:2])
    with pytest.raises(PassError, match="'age' has one value, not classes"):
        label_loss({"age": torch.zeros(2, 1)}, torch.tensor([30, 40]))


def test_a_module_that_fails_in_training_is_blamed() -> None:
    class Picky(torch.nn.Linear):  # type: ignore[misc]
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) if not self.training else input.reshape(7)

    module, inputs = Picky(3, 2), {"input": torch.ones(1, 3)}
    with pytest.raises(PassError, match="fails in training: RuntimeError: shape '\\[7\\]' is invalid"):
        call(module.train(), inputs)
    assert call(module.eval(), inputs)["output_0"].shape == (1, 2)


def test_classes_are_taught_by_their_softened_divergence() -> None:
    student, teacher = tensor([0.0, 2.0]), tensor([2.0, 0.0])
    p = 1 / (1 + math.exp(-1))
    expected = 4 * (p * math.log(p / (1 - p)) + (1 - p) * math.log((1 - p) / p))
    assert float(soft_classes(student, teacher, 2.0)) == pytest.approx(expected, rel=1e-5)
    assert float(distill_loss({"logits": student}, {"logits": teacher})) == pytest.approx(expected, rel=1e-5)
    assert float(soft_classes(teacher, teacher)) == pytest.approx(0, abs=1e-6)


def test_rows_are_taught_by_cosine_and_scaled_error() -> None:
    target = tensor([1.0, 0.0], [0.0, 1.0])
    output = tensor([0.0, 1.0], [0.0, 1.0])
    assert float(row_distance(output, target)) == pytest.approx(0.5 + 0.5 / 0.25, rel=1e-5)
    assert float(distill_loss({"embedding": output}, {"embedding": target})) == pytest.approx(2.5, rel=1e-5)


def test_masked_positions_do_not_count() -> None:
    torch.manual_seed(0)
    target = torch.randn(2, 3, 4)
    output, mask = target.clone(), torch.tensor([[1, 1, 0], [1, 0, 0]])
    output[mask == 0] = 100.0
    assert float(distill_loss({"states": output}, {"states": target}, mask)) == pytest.approx(0, abs=1e-6)
    assert float(distill_loss({"states": output}, {"states": target})) > 1


def test_all_shared_outputs_count() -> None:
    a, b = torch.randn(2, 4), torch.randn(2, 5, 3)
    both = distill_loss({"a": a, "b": b}, {"a": a + 1, "b": b + 1, "c": a})
    assert float(both) == pytest.approx(float(row_distance(a, a + 1) + row_distance(b, b + 1)), rel=1e-6)


def test_a_teacher_without_a_shared_output_is_refused() -> None:
    with pytest.raises(PassError, match="share no float output of the same shape") as caught:
        distill_loss({"a": torch.zeros(2, 3)}, {"a": torch.zeros(2, 4)})
    assert caught.value.expected == "a [2, 4]"


def test_gradients_are_finite_where_nothing_differs() -> None:
    value = torch.tensor(np.ones((2, 3)), dtype=torch.float32, requires_grad=True)
    distill_loss({"a": value}, {"a": value.detach()}).backward()
    assert value.grad is not None
    assert torch.isfinite(value.grad).all()
