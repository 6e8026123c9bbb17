"""One training of a live module: optkit's complete default loop, or the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from optkit.errors import PassError
from optkit.passes._base import Context
from optkit.passes._train.checkpoint import Place, start_digest
from optkit.passes._train.keeper import Keeper, Trained, batch_norms, remembered, seed_all, train_mode
from optkit.passes._train.loader import Loader, TrainBatch
from optkit.passes._train.losses import call
from optkit.passes._train.schedule import Budget, rate
from optkit.passes._train.user import run_function

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Loss", "TrainBatch", "Trained", "train"]

Loss = Callable[["nn.Module", TrainBatch], "Tensor"]
"""The live module in train mode, and a batch -> a scalar. If it is an ``nn.Module``, its parameters train too."""

CLIP = 1.0
"""Largest norm of all gradients together."""
EPOCHS = 2
"""With so many of them or more, a teacher is asked about each sample once, beforehand."""
SPARSE = 0.1
"""A matrix or kernel of which more than this share, and not all, is exactly zero was pruned."""


def train(
    module: nn.Module,
    ctx: Context,
    loss: Loss,
    *,
    stage: str,
    steps: int | None = None,
    seconds: float | None = None,
    teacher: nn.Module | None = None,
    live: bool = False,
) -> Trained:
    """Train the module in place on split train, as the recipe's block ``train:`` says.

    AdamW without decay of biases and norms (Loshchilov and Hutter 2019), linear warm-up and cosine, clipped gradients.
    The search split is looked at now and then; the best weights are kept, those it came with among them. Each look
    leaves a checkpoint, from which an interrupted run goes on to the same weights; a stage that is done is remembered.
    Pruned matrices keep their zeros. Where the recipe names a function of the user's, that trains instead, and ``loss``
    is not used.

    Args:
        module: comes back on the CPU, in eval mode, without gradients.
        ctx: gives data, settings, seed, device and the folder of the checkpoints.
        loss: of a batch.
        stage: a plain word, the folder of the checkpoints; another for each training in a step.
        steps: at most; the block's where None.
        seconds: at most; the block's where None.
        teacher: its outputs are the ``targets`` of each batch. It is called in eval mode, and goes back to the CPU.
        live: the loss looks into the teacher, which therefore has to run for every batch.

    Raises:
        PassError: no samples, no device, a loss that is no number any more, or the user's function failed.
    """
    settings = ctx.training
    budget = Budget(
        settings.steps if steps is None else max(1, steps), settings.seconds if seconds is None else seconds
    )
    device = _device(settings.device)
    place = Place(ctx.checkpoints() / stage, start_digest(module, budget, settings, ctx.seed))
    with _as_before(), _placed(device, module, teacher, loss):
        if (done := remembered(module, place)) is not None:
            return done
        size, signature = settings.batch, ctx.original.signature
        answers = None if teacher is None else partial(_answer, teacher)
        loader = Loader(ctx.batches("train"), signature, size, ctx.seed, device, answers)
        if not live and budget.steps * loader.size >= EPOCHS * ctx.batches("train").count:
            loader.know_targets()
        keeper = Keeper(module, ctx, budget, stage, place, device)
        zeros = _zeros(module)
        keeper.notes.extend([*zeros.notes, *_alone(module, loader.size)])
        if settings.function is not None:
            run_function(settings.function, keeper, loader, zeros.keep)
        else:
            _run(keeper, loader, loss, zeros)
        return keeper.finish()


def _run(keeper: Keeper, loader: Loader, loss: Loss, zeros: _Zeros) -> None:
    import torch

    settings, module = keeper.ctx.training, keeper.module
    inner = loss if isinstance(loss, torch.nn.Module) else None
    optimizer = torch.optim.AdamW(_groups([module, inner], settings.weight_decay), lr=settings.learning_rate)
    extra = keeper.begin()
    if extra:
        optimizer.load_state_dict(extra["optimizer"])
        if inner is not None:
            inner.load_state_dict(extra["loss"])

    def state() -> dict[str, Any]:
        return {"optimizer": optimizer.state_dict(), "loss": {} if inner is None else inner.state_dict()}

    seed_all(keeper.ctx.seed, keeper.step)
    train_mode(module, loader.size)
    if inner is not None:
        inner.train()
    for batch in loader.steps(keeper.step):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate(keeper.coming, settings.warmup)
        value = _step(module, batch, loss, optimizer)
        zeros.keep()
        if keeper.done(keeper.step + 1, value) and not keeper.look(state):
            return


def _step(module: nn.Module, batch: TrainBatch, loss: Loss, optimizer: Any) -> float:
    """One step; the loss. A loss that is no number leaves the weights alone."""
    import torch

    optimizer.zero_grad(set_to_none=True)
    found = loss(module, batch)
    value = float(found.detach())
    if value - value == 0:
        found.backward()
        every = [each for group in optimizer.param_groups for each in group["params"]]
        torch.nn.utils.clip_grad_norm_(every, CLIP)
        optimizer.step()
    return value


def _groups(modules: list[nn.Module | None], decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels with weight decay, vectors (biases and norms) without."""
    every = [each for module in modules if module is not None for each in module.parameters() if each.requires_grad]
    if not every:
        raise PassError(
            "The module has no parameter that can be trained.",
            expected="float weights, not all of them frozen (requires_grad)",
            fix="leave the training out, or let the code that builds the module freeze less",
        )
    narrow = next((each.dtype for each in every if each.dtype.itemsize < 4), None)
    if narrow is not None:
        raise PassError(
            f"The module's weights are {str(narrow).removeprefix('torch.')}, too coarse to train in.",
            expected="float32 weights",
            fix="build the module in float32, and let a pass behind the export make it smaller (cast-fp16, cast-bf16)",
        )
    return [
        {"params": [each for each in every if each.ndim > 1], "weight_decay": decay},
        {"params": [each for each in every if each.ndim <= 1], "weight_decay": 0.0},
    ]


def _alone(module: nn.Module, size: int) -> list[str]:
    frozen = size < 2 and bool(batch_norms(module))
    return ["batch norms kept their statistics, as a batch is one sample"] if frozen else []


@dataclass(frozen=True)
class _Zeros:
    """Pruned weights."""

    masks: list[tuple[nn.Parameter, Tensor]]
    """Parameter, and 1 where it is not zero."""
    notes: list[str]

    def keep(self) -> None:
        """Set them to zero again."""
        import torch

        with torch.no_grad():
            for parameter, mask in self.masks:
                parameter.mul_(mask)


def _zeros(module: nn.Module) -> _Zeros:
    masks = [
        (each, (each != 0).to(each.dtype))
        for each in module.parameters()
        if each.ndim > 1 and SPARSE < float((each.detach() == 0).float().mean()) < 1
    ]
    tensors = "1 tensor" if len(masks) == 1 else f"{len(masks)} tensors"
    note = f"{tensors} with more than {SPARSE:.0%} zeros kept them in training"
    return _Zeros(masks, [note] if masks else [])


def _answer(teacher: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    import torch

    with torch.no_grad():
        return call(teacher, inputs)


def _device(wanted: str) -> str:
    import torch

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise PassError(
            "The recipe wants to train on cuda, and torch finds none.",
            expected="a CUDA device and a torch built for it",
            fix="set device: auto under train:",
        )
    return "cuda" if there and wanted != "cpu" else "cpu"


@contextmanager
def _placed(device: str, module: nn.Module, teacher: nn.Module | None, loss: object) -> Iterator[None]:
    """All on the device meanwhile; on the CPU, in eval mode and without gradients afterwards."""
    import torch

    inner = loss if isinstance(loss, torch.nn.Module) else None
    every = [each for each in (module, teacher, inner) if each is not None]
    for each in every:
        each.to(device)
    if teacher is not None:
        teacher.eval()
    try:
        yield
    finally:
        for each in every:
            each.zero_grad(set_to_none=True)
            each.to("cpu").eval()


@contextmanager
def _as_before() -> Iterator[None]:
    """Random states, threads and grad mode are afterwards what they were."""
    import random

    import numpy as np
    import torch

    plain, arrays, threads = random.getstate(), np.random.get_state(), torch.get_num_threads()
    try:
        with (
            torch.random.fork_rng(devices=range(torch.cuda.device_count())),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)
        torch.set_num_threads(threads)
