"""The default loop: better at the end, never worse, the same again, resumed to the bit, stopped with words."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optkit.errors import PassError
from optkit.passes._train import keeper as keeper_module
from optkit.passes._train.loader import TrainBatch
from optkit.passes._train.loop import train
from optkit.passes._train.losses import call
from optkit.passes._train.tune import plain_loss
from optkit.pipeline.context import StepContext
from tests.passes._train.jobs import context, digits, module_of

Loss = Callable[[nn.Module, TrainBatch], Tensor]


def shaken(ctx: StepContext, strength: float = 1.2) -> nn.Module:
    """The original with noise on every weight; the same one each time."""
    module, draw = module_of(ctx), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(torch.randn(value.shape, generator=draw) * value.std() * strength)
    return module


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Stops(Exception):
    """What interrupts."""


def stopping(at: int, seen: list[int] | None = None) -> Loss:
    """The plain loss, which raises in the call after ``at`` of them."""
    counted = [0]

    def loss(module: nn.Module, batch: TrainBatch) -> Tensor:
        if counted[0] == at:
            raise Stops
        counted[0] += 1
        if seen is not None:
            seen.append(counted[0])
        return plain_loss(module, batch)

    return loss


@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn"])
def test_a_shaken_model_is_trained_back_and_comes_as_it_is_used(name: str, tmp_path: Path) -> None:
    ctx = context(tmp_path, digits(name))
    module = shaken(ctx)
    trained = train(module, ctx, plain_loss, stage="a")
    assert (trained.steps, trained.metric) == (24, "top1")
    assert trained.before < 0.96
    assert trained.after > trained.before + 0.005
    assert ctx.judge_outputs(outputs(ctx, module)).metrics[0].result == trained.after
    assert not any(each.training for each in module.modules())
    assert all(each.grad is None and each.device.type == "cpu" for each in module.parameters())


def outputs(ctx: StepContext, module: nn.Module):  # type: ignore[no-untyped-def]
    for batch in ctx.batches("search").batches():
        with torch.no_grad():
            found = call(module, {"image": torch.from_numpy(batch.inputs["image"])})
        yield {name: value.numpy() for name, value in found.items()}


def test_without_a_metric_the_agreement_with_the_original_decides(tmp_path: Path) -> None:
    ctx = context(tmp_path, metric=None)
    trained = train(shaken(ctx), ctx, plain_loss, stage="a", steps=8)
    assert trained.metric == "agreement"
    assert 0.5 < trained.before <= trained.after <= 1


def test_a_seed_gives_the_same_weights_again_and_leaves_random_states_alone(tmp_path: Path) -> None:
    found = []
    for folder in ("a", "b"):
        ctx = context(tmp_path / folder)
        module = shaken(ctx)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
        torch.rand(3) if folder == "b" else None
        drawn = torch.get_rng_state()
        train(module, ctx, plain_loss, stage="a")
        assert torch.equal(torch.get_rng_state(), drawn)
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]  # type: ignore[index]
        found.append(weights(module))
    assert same(*found)


@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn"])
@pytest.mark.parametrize("at", [3, 17])
def test_an_interrupted_training_goes_on_to_the_same_weights(name: str, at: int, tmp_path: Path) -> None:
    whole = context(tmp_path / "whole", digits(name))
    reference = shaken(whole)
    expected = train(reference, whole, plain_loss, stage="a")

    ctx = context(tmp_path / "halted", digits(name))
    with pytest.raises(Stops):
        train(shaken(ctx), ctx, stopping(at), stage="a")
    seen: list[int] = []
    module = shaken(ctx)
    assert train(module, ctx, stopping(99, seen), stage="a") == expected
    assert len(seen) == 24 - at // 6 * 6
    assert same(weights(module), weights(reference))


def test_a_stage_that_is_done_is_not_trained_again_and_another_is(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    first = shaken(ctx)
    trained = train(first, ctx, plain_loss, stage="a")
    again = shaken(ctx)
    assert train(again, ctx, stopping(0), stage="a") == trained
    assert same(weights(again), weights(first))
    with pytest.raises(Stops):
        train(shaken(ctx), ctx, stopping(0), stage="b")
    with pytest.raises(Stops):
        train(shaken(ctx, 0.1), ctx, stopping(0), stage="a")


@pytest.mark.parametrize("content", [b"", b"no tensors"])
def test_a_damaged_checkpoint_costs_the_training_anew(content: bytes, tmp_path: Path) -> None:
    ctx = context(tmp_path)
    with pytest.raises(Stops):
        train(shaken(ctx), ctx, stopping(13), stage="a")
    (ctx.checkpoints() / "a" / "checkpoint.pt").write_bytes(content)
    assert train(shaken(ctx), ctx, plain_loss, stage="a").steps == 24


def test_training_never_ends_worse_than_it_began(tmp_path: Path) -> None:
    ctx = context(tmp_path, learning_rate=30.0)
    module = module_of(ctx)
    start = weights(module)
    trained = train(module, ctx, plain_loss, stage="a")
    assert trained.after == trained.before
    assert same(weights(module), start)


def test_it_stops_early_and_says_so(tmp_path: Path) -> None:
    ctx = context(tmp_path, learning_rate=30.0, patience=2)
    trained = train(module_of(ctx), ctx, plain_loss, stage="a")
    assert trained.steps == 12
    assert trained.notes == ("stopped after 12 of 24 steps: no better for 2 looks",)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_it_with_words_and_the_best_weights(value: float, tmp_path: Path) -> None:
    ctx = context(tmp_path)
    counted = [0]

    def loss(module: nn.Module, batch: TrainBatch) -> Tensor:
        counted[0] += 1
        return plain_loss(module, batch) * (value if counted[0] == 10 else 1.0)

    with pytest.raises(PassError, match=r"'a' went astray: the loss is (nan|inf) at step 10 of 24") as caught:
        train(shaken(ctx), ctx, loss, stage="a")
    assert "smaller learning_rate under train: (it is 0.001), e.g. 0.0001" in caught.value.fix
    path = ctx.checkpoints() / "a" / "best.pt"
    assert str(path) in caught.value.message
    kept = torch.load(path, weights_only=True)["module"]
    module = module_of(ctx)
    module.load_state_dict(kept)
    assert all(torch.isfinite(each).all() for each in module.parameters())


def test_pruned_weights_stay_zero_and_few_zeros_do_not(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    module = shaken(ctx)
    pruned, dense = module.layers[1].weight, module.layers[4].weight
    with torch.no_grad():
        pruned[::2] = 0
        dense[0, :3] = 0
    trained = train(module, ctx, plain_loss, stage="a")
    assert (pruned[::2] == 0).all()
    assert (pruned[1::2] != 0).float().mean() > 0.99
    assert (dense[0, :3] != 0).any()
    assert trained.notes == ("1 tensor with more than 10% zeros kept them in training",)


def test_a_matrix_that_begins_as_zeros_learns(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    module = module_of(ctx)
    nn.init.zeros_(module.layers[-1].weight)
    trained = train(module, ctx, plain_loss, stage="a")
    assert trained.after > trained.before
    assert trained.notes == ()


class Projection(nn.Module):  # type: ignore[misc]
    """A loss with a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(10, 10)

    def forward(self, module: nn.Module, batch: TrainBatch) -> Tensor:
        """Cross entropy of projected logits."""
        return nn.functional.cross_entropy(self.inner(call(module, batch.inputs)["logits"]), batch.labels)


def test_a_loss_with_parameters_trains_too_also_across_an_interruption(tmp_path: Path) -> None:
    def projection() -> Projection:
        torch.manual_seed(0)
        return Projection()

    class Halting(Projection):
        def forward(self, module: nn.Module, batch: TrainBatch) -> Tensor:
            self.count = getattr(self, "count", 0) + 1
            if self.count == 15:
                raise Stops
            return super().forward(module, batch)

    whole, start = projection(), projection().inner.weight
    train(shaken(ctx := context(tmp_path / "a")), ctx, whole, stage="a")
    assert not torch.allclose(whole.inner.weight, start)
    ctx = context(tmp_path / "b")
    torch.manual_seed(0)
    halting = Halting()
    with pytest.raises(Stops):
        train(shaken(ctx), ctx, halting, stage="a")
    resumed = projection()
    train(shaken(ctx), ctx, resumed, stage="a")
    assert torch.equal(resumed.inner.weight, whole.inner.weight)


def test_time_ends_it_with_the_whole_schedule_gone_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(keeper_module, "clock", lambda: now[0])
    ctx = context(tmp_path, steps=1000)
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(StepContext, "progress", lambda _self, done, total: told.append((done, total)))

    def slow(module: nn.Module, batch: TrainBatch) -> Tensor:
        now[0] += 0.5
        return plain_loss(module, batch)

    trained = train(shaken(ctx), ctx, slow, stage="a", seconds=5.0)
    assert trained.steps == 10
    assert trained.notes == ("stopped after 10 of 1000 steps: the 5 seconds were over",)
    assert told[0] == (1, 1000)
    assert len(told) == 10


def test_a_batch_of_one_does_not_upset_batch_norms(tmp_path: Path) -> None:
    ctx = context(tmp_path, digits("digits_cnn"), batch=1, steps=4)
    module = shaken(ctx)
    trained = train(module, ctx, plain_loss, stage="a")
    assert trained.steps == 4
    assert any("batch norms" in note for note in trained.notes)


def test_batch_norms_follow_the_data(tmp_path: Path) -> None:
    ctx = context(tmp_path, digits("digits_cnn"))
    module = shaken(ctx)
    start = module.features[1].running_mean.clone()
    train(module, ctx, plain_loss, stage="a")
    assert not torch.equal(module.features[1].running_mean, start)


def test_there_is_something_to_train(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    module = module_of(ctx).requires_grad_(False)
    with pytest.raises(PassError, match="no parameter that can be trained"):
        train(module, ctx, plain_loss, stage="a")


class Cast(nn.Module):  # type: ignore[misc]
    """A module in few bits, that takes float32."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner.bfloat16()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Logits."""
        return {"logits": self.inner(image.bfloat16())["logits"].float()}


def test_weights_in_few_bits_are_refused(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    with pytest.raises(PassError, match="weights are bfloat16, too coarse") as caught:
        train(Cast(module_of(ctx)), ctx, plain_loss, stage="a")
    assert "float32" in caught.value.fix


def test_a_device_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ctx = context(tmp_path, device="cuda")
    with pytest.raises(PassError, match="torch finds none") as caught:
        train(module_of(ctx), ctx, plain_loss, stage="a")
    assert caught.value.fix == "set device: auto under train:"
