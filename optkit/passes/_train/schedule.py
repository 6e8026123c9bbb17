"""How the learning rate goes, and how much of the budget is used."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Steps, and time where that is limited; whichever is used up first ends the training."""

    steps: int
    seconds: float | None = None

    def used(self, step: int, elapsed: float) -> float:
        """Share of the budget after ``step`` steps and ``elapsed`` seconds, 0 to 1."""
        by_time = 0.0 if self.seconds is None else elapsed / self.seconds
        return min(1.0, max(step / self.steps, by_time))


def rate(used: float, warmup: float) -> float:
    """Factor of the learning rate when this share of the budget is used: up linearly from 0, then half a cosine to 0.

    Source: Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts".
    """
    if used < warmup:
        return used / warmup
    return 0.5 * (1 + math.cos(math.pi * (used - warmup) / (1 - warmup)))
