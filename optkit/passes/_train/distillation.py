"""What a student learns by: the terms of its loss, chosen by what the models give, weighted and added up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optkit.data.dataset import spread
from optkit.errors import PassError
from optkit.passes._base import Context
from optkit.passes._train.attention import attention_loss, eager, find_maps, map_of
from optkit.passes._train.hidden import Pairs, hidden_loss, projections, tapped
from optkit.passes._train.hooks import Term, hook_name, load_hook
from optkit.passes._train.loader import Loader, TrainBatch
from optkit.passes._train.losses import call
from optkit.passes._train.terms import Tasks, Wishes
from optkit.passes._train.tune import MASK, class_count

if TYPE_CHECKING:
    from torch import Tensor, nn

    from optkit.passes._train.keeper import Trained
    from optkit.passes._train.loop import Loss

INSIDE = {"hidden", "attention"}
"""Terms that compare what layers give."""
_BATCHES = 4
"""How many batches tell what each loss is before and after."""


@dataclass(frozen=True)
class Lesson:
    """A student and its teacher with taps in them, ready to train."""

    loss: Loss
    weights: Mapping[str, float]
    """Name of each term -> its weight."""
    batches: Loader
    """A few samples, to tell what each loss is."""
    student: nn.Module
    terms: Mapping[str, Term]
    notes: tuple[str, ...] = field(default=())

    @property
    def looks_inside(self) -> bool:
        """Whether the teacher must run for every batch, as some term compares what its layers give."""
        return bool(INSIDE & self.weights.keys())

    def values(self) -> dict[str, float]:
        """Name of each term -> its mean on a few samples, unweighted, the student in eval mode."""
        import torch

        self.student.eval()
        sums = dict.fromkeys(self.terms, 0.0)
        with torch.no_grad():
            for batch in self.batches.epoch(0):
                outputs = call(self.student, batch.inputs)
                for name, term in self.terms.items():
                    sums[name] += float(term(outputs, batch)) / len(self.batches)
        return sums

    def told(self) -> str:
        """The terms and their weights in words."""
        return ", ".join(f"{name} {weight:g}" for name, weight in self.weights.items())

    def moved(self, before: Mapping[str, float]) -> str:
        """What became of the terms in words; ``before`` are the values then."""
        after, count = self.values(), len(self.batches) * self.batches.size
        each = ", ".join(f"{name} {before[name]:.4g} -> {after[name]:.4g}" for name in after)
        return f"losses on {count} samples of train: {each}"

    def mapped(self, pairs: Pairs) -> list[tuple[str, str]]:
        """Which layer learns from which, where layers are looked at."""
        told = [(name, f"learns from the original's {other}") for name, other in pairs.items()]
        return told if self.looks_inside else []


@contextmanager
def lesson(
    student: nn.Module, teacher: nn.Module, inputs: Mapping[str, Tensor], pairs: Pairs, wishes: Wishes, ctx: Context
) -> Iterator[Lesson]:
    """Prepare the loss; each term has been computed once with its gradient, so that what does not fit is told now.

    Args:
        student: live, on the CPU; set to eval mode.
        teacher: live, without gradients. What its layers give is noted when the loader calls it for a batch.
        inputs: a batch to try both with.
        pairs: layer of the student -> of the teacher's.
        wishes: options.
        ctx: gives data, settings, seed.

    Raises:
        PassError: a loss that was asked for does not go with the models or the data, or a hook fails.
    """
    student.eval()
    with ExitStack() as stack:
        batches = _few(teacher, ctx)
        batch = next(iter(batches.epoch(0)))
        tasks = Tasks(wishes, class_count(ctx.batches("train").labels))
        mine = stack.enter_context(tapped(student, list(pairs)))
        theirs = stack.enter_context(tapped(teacher, list(pairs.values())))
        outputs = _try(student, teacher, inputs)
        weights = tasks.weights(outputs, batch, alike=_alike(pairs, mine, theirs))
        terms: dict[str, Term] = {name: term for name, term in tasks.terms().items() if name in weights}
        maps = None
        if "hidden" in weights:
            _require_layers(pairs)
            maps = projections(pairs, mine, theirs)
            terms["hidden"] = _hidden(pairs, maps, mine, theirs)
        if "attention" in weights:
            terms["attention"] = _attention(student, teacher, inputs, pairs, stack)
        terms |= {hook_name(each): load_hook(each) for each in wishes.hooks}
        loss = _loss(terms, weights, maps)
        prepared = Lesson(loss, weights, batches, student, terms)
        _try_loss(loss, student, batches)
        yield prepared


def _few(teacher: nn.Module, ctx: Context) -> Loader:
    import torch

    def answers(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            return call(teacher, inputs)

    size = ctx.training.batch
    some = spread(ctx.batches("train"), _BATCHES * size, "train")
    return Loader(some, ctx.original.signature, size, ctx.seed, teacher=answers)


def _try(student: nn.Module, teacher: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    import torch

    with torch.no_grad():
        call(teacher, inputs)
        return call(student, inputs)


def _try_loss(loss: Callable[[nn.Module, TrainBatch], Tensor], student: nn.Module, batches: Loader) -> None:
    """Once with gradients, which are thrown away."""
    import torch

    with torch.enable_grad():
        loss(student, next(iter(batches.epoch(0))))


def _alike(pairs: Pairs, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Whether all pairs give tensors of one shape, so that they can be compared as they are."""
    given = [(mine.get(one), theirs.get(other)) for one, other in pairs.items()]
    return bool(given) and all(a is not None and b is not None and a.shape == b.shape for a, b in given)


def _require_layers(pairs: Pairs) -> None:
    if not pairs:
        raise PassError(
            "The losses name hidden, and no lists of layers were found in both the student and its teacher.",
            expected="a ModuleList or Sequential of layers with the same name in both",
            fix="name them: layers: {module of the student: module of the teacher}",
        )


def _hidden(pairs: Pairs, maps: nn.ModuleDict, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Term:
    def term(_: Mapping[str, Tensor], batch: TrainBatch) -> Tensor:
        return hidden_loss(pairs, maps, mine, theirs, batch.inputs.get(MASK))

    return term


def _attention(
    student: nn.Module, teacher: nn.Module, inputs: Mapping[str, Tensor], pairs: Pairs, stack: ExitStack
) -> Term:
    stack.enter_context(eager(student, teacher))
    own = find_maps("student", student, inputs, list(pairs))
    aims = find_maps("teacher", teacher, inputs, list(pairs.values()))
    mine = stack.enter_context(tapped(student, list(own.values()), map_of))
    theirs = stack.enter_context(tapped(teacher, list(aims.values()), map_of))
    for name in own.values():  # dropout would tear holes into the maps
        stack.callback(student.get_submodule(name).register_forward_pre_hook(_calm).remove)
    found = {own[one]: aims[other] for one, other in pairs.items()}

    def term(_: Mapping[str, Tensor], batch: TrainBatch) -> Tensor:
        return attention_loss(found, mine, theirs, batch.inputs.get(MASK))

    return term


def _calm(module: nn.Module, _: Any) -> None:
    module.eval()


def _loss(terms: Mapping[str, Term], weights: Mapping[str, float], maps: nn.ModuleDict | None) -> Loss:
    """The weighted sum of the terms; a module where there are projections, which train with the student."""
    from torch import nn

    def total(module: nn.Module, batch: TrainBatch) -> Tensor:
        aims = batch.targets or {}
        outputs = {name: value for name, value in call(module, batch.inputs).items() if name in aims}
        found = [weights[name] * term(outputs, batch) for name, term in terms.items()]
        return sum(found[1:], start=found[0])

    if not maps:
        return total

    class Projected(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
        """The sum, with what it learns besides."""

        def __init__(self) -> None:
            super().__init__()
            self.maps = maps

        def forward(self, module: nn.Module, batch: TrainBatch) -> Tensor:
            """As ``total``."""
            return total(module, batch)

    return Projected()


def told_nothing(trained: Trained, ctx: Context) -> str:
    """What to say where the best weights are those that it began with."""
    error = brought_nothing(trained, ctx)
    return f"{error.message.rstrip('.')}; {error.fix}"


def brought_nothing(trained: Trained, ctx: Context) -> PassError:
    """The error of a student of its own whose best weights are those that it began with."""
    settings = ctx.training
    limits = f"steps (now {settings.steps})"
    if settings.seconds is not None:
        limits = f"steps and seconds (now {settings.steps} and {settings.seconds:g})"
    return PassError(
        f"Distilling for {trained.steps} steps brought nothing: {trained.metric} was {trained.before:.4g} and never "
        f"better than {trained.after:.4g} on the search split.",
        expected="weights that are better than those it began with",
        fix=f"more {limits}, more patience (now {settings.patience}) or another learning_rate "
        f"(now {settings.learning_rate:g}) under train: may help",
    )
