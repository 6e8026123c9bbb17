"""What the default loop and a user's own share: budget, looks at the search split, the best weights, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optkit.errors import PassError
from optkit.passes._base import Context
from optkit.passes._train.checkpoint import Place, weights
from optkit.passes._train.schedule import Budget
from optkit.passes._train.score import Score, score

if TYPE_CHECKING:
    from torch import nn

CHECKPOINT, FINISHED, BEST = "checkpoint", "finished", "best"


def clock() -> float:
    """Seconds; tests put their own in its place."""
    return time.monotonic()


@dataclass(frozen=True)
class Trained:
    """What a training did; the module holds its best weights."""

    steps: int
    """Steps done."""
    before: float
    """Score of the module as it came, in the metric's unit."""
    after: float
    """Score of the weights that were kept."""
    metric: str
    """The task metric; else ``agreement`` of the class with the original's, or ``cosine``: see ``score``."""
    notes: tuple[str, ...] = ()

    def told(self) -> str:
        """In words, for the notes of an Outcome: ``trained 400 steps: top1 .971 -> .988 (search)``."""
        return f"trained {self.steps} steps: {self.metric} {_short(self.before)} -> {_short(self.after)} (search)"


def _short(value: float) -> str:
    text = f"{value:.4g}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


@dataclass
class Keeper:
    """Watches one training of a module on a device."""

    module: nn.Module
    ctx: Context
    budget: Budget
    stage: str
    place: Place
    device: str
    step: int = 0
    elapsed: float = 0.0
    looked: int = 0
    """Looks that were due so far."""
    stale: int = 0
    """Looks since the best one."""
    seen: int | None = None
    """Step of the latest look in this run."""
    notes: list[str] = field(default_factory=list)
    _before: Score = field(init=False)
    _best: Score = field(init=False)
    _top: float = field(init=False)
    """Highest value seen, in its better direction."""
    _kept: dict[str, Any] = field(init=False)
    _since: float = field(init=False)

    def begin(self) -> dict[str, Any]:
        """Load the checkpoint into the module, or look at it as it came; what else the checkpoint held."""
        self._since = clock()
        found = self.place.load(CHECKPOINT)
        if found is None:
            self._before = self._best = score(self.module, self.ctx, self.device)
            self._top = self._best.rank[0]
            self._kept = weights(self.module)
            return {}
        self.module.load_state_dict(found["module"])
        self.step, self.elapsed, self.looked, self.stale = (
            found[name] for name in ("step", "elapsed", "looked", "stale")
        )
        self._before, self._best = Score(**found["before"]), Score(**found["best"])
        self._kept, self._top = found["kept"], found["top"]
        return dict(found["extra"])

    @property
    def used(self) -> float:
        """Share of the budget, 0 to 1."""
        return self.budget.used(self.step, self.elapsed + clock() - self._since)

    @property
    def coming(self) -> float:
        """Share of the budget in the middle of the step that comes; so the first one's learning rate is not 0."""
        return min(1.0, self.used + 0.5 / self.budget.steps)

    def done(self, step: int, loss: float) -> bool:
        """Note that so many steps are done; whether a look is due.

        Raises:
            PassError: the loss is no number any more.
        """
        self.step = step
        if not math.isfinite(loss):
            raise self._diverged(loss)
        self.ctx.progress(min(step, self.budget.steps), self.budget.steps)
        return self.used >= 1 or int(self.used * self.ctx.training.looks) > self.looked

    def look(self, extra: Callable[[], dict[str, Any]]) -> bool:
        """Look at the search split, keep the weights where they are the best, write a checkpoint; whether to go on.

        Args:
            extra: what else the checkpoint should hold.
        """
        used, self.seen = self.used, self.step
        self.looked = int(used * self.ctx.training.looks)
        found = score(self.module, self.ctx, self.device)
        self.stale += 1
        if found.better(self._best, self._top):
            self._best, self._kept, self.stale = found, weights(self.module), 0
        self._top = max(self._top, found.rank[0])
        if used < self.ctx.training.warmup:
            self.stale = 0
        if used >= 1 or self.stale >= self.ctx.training.patience:
            return False
        self._save(extra())
        seed_all(self.ctx.seed, self.step)
        return True

    def finish(self) -> Trained:
        """Put the best weights into the module, and remember that this stage is done."""
        if self.step < self.budget.steps and (reason := self._early()):
            self.notes.append(f"stopped after {self.step} of {self.budget.steps} steps: {reason}")
        self.module.load_state_dict(self._kept)
        trained = Trained(self.step, self._before.value, self._best.value, self._best.metric, tuple(self.notes))
        self.place.save(FINISHED, {"kept": self._kept, "trained": vars(trained) | {"notes": list(trained.notes)}})
        self.place.drop(CHECKPOINT)
        return trained

    def _early(self) -> str:
        """Why it ended although not all steps were done; empty where a function of the user's chose to."""
        if self.stale >= self.ctx.training.patience:
            return f"no better for {self.stale} looks"
        return "" if self.used < 1 else f"the {self.budget.seconds:g} seconds were over"

    def _save(self, extra: dict[str, Any]) -> None:
        now = clock()
        self.elapsed, self._since = self.elapsed + now - self._since, now
        plain = {name: getattr(self, name) for name in ("step", "elapsed", "looked", "stale")}
        scores = {"before": vars(self._before), "best": vars(self._best)}
        state = {"module": weights(self.module), "kept": self._kept, "extra": extra, "top": self._top}
        self.place.save(CHECKPOINT, {**plain, **scores, **state})

    def _diverged(self, loss: float) -> PassError:
        path = self.place.save(BEST, {"module": self._kept})
        rate = self.ctx.training.learning_rate
        fix = f"set a smaller learning_rate under train: (it is {rate:g}), e.g. {min(rate / 10, 1e-3):g}"
        return PassError(
            f"The training '{self.stage}' went astray: the loss is {loss} at step {self.step} of {self.budget.steps}. "
            f"The best weights until then are in {path}.",
            expected="a loss that is a number",
            fix=fix
            if self.step > 1
            else "look for nan and infinity in the samples of train, and in losses of your own",
        )


def remembered(module: nn.Module, place: Place) -> Trained | None:
    """What a stage that is done gave, its weights in the module; None where it is not done."""
    found = place.load(FINISHED)
    if found is None:
        return None
    module.load_state_dict(found["kept"])
    return Trained(**found["trained"] | {"notes": tuple(found["trained"]["notes"])})


def seed_all(seed: int, step: int) -> None:
    """All random generators as they are at this step; so a checkpoint needs none of their states."""
    import random

    import numpy as np
    import torch

    mixed = int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def train_mode(module: nn.Module, size: int) -> None:
    """Train mode; batch norms stay as they are where a batch is one sample, which has no spread."""
    module.train()
    for each in batch_norms(module) if size < 2 else []:
        each.eval()


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """All of them."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return [each for each in module.modules() if isinstance(each, _BatchNorm)]
