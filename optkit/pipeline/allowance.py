"""How long timing may take: a third of the run or 15 s, whichever is larger, starting the processes included."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from optkit.bench.child import WARM_S
from optkit.bench.measure import MIN_ROUNDS
from optkit.model.model import Model

LEAST_S = 15.0
"""Seconds that timing may take however short the run is."""
SHARE = 1 / 3
"""Of the run so far."""
RESERVED = 1 / 2
"""Of the allowance: what estimates leave to the final measurement."""
RESERVED_LAST = 1 / 3
"""What a second measurement leaves to it, on which it depends whether a step stays: enough for the shortest."""
USED_UP = "not timed: too little of the time for timing is left"
"""Note where something was left out for want of time."""

START_S, TORCH_START_S = 0.5, 4.0
"""Seconds until the process of a candidate has loaded and warmed a small model; of a torch model."""
LOAD_RATE = 250e6
"""Bytes of a model that are made ready in a second."""
FIRST_CALLS, WARM_CALLS = 5, 10
"""Of a model in its process: the first one and one for each of four batches; then to warm up, unless ``WARM_S`` is over
before."""


@dataclass
class Allowance:
    """The account of one run's timing. Made when the run starts.

    What a pass measures in order to choose (``ctx.time``) is its work, and not counted here.
    """

    clock: Callable[[], float] = time.monotonic
    spent: float = 0.0
    """Seconds that timing took so far."""
    planned: float = 0.0
    """Seconds that it was thought to take."""
    calls: dict[str, float] = field(default_factory=dict)
    """Seconds of a call, by the digests of the models of which this run knows it."""
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def remaining(self, *, reserved: float = 0.0) -> float:
        """Seconds that may still be planned; fewer than are left where things took longer than planned so far.

        Args:
            reserved: the share of the whole that is kept for others.
        """
        left = max(LEAST_S, SHARE * (self.clock() - self.started)) * (1 - reserved) - self.spent
        return left / max(1.0, self.spent / self.planned) if self.planned else left

    @contextmanager
    def spending(self, planned: float | None = None) -> Iterator[None]:
        """Count the seconds of the block, also where it fails, against the ``planned`` ones; None = what it takes."""
        begin = self.clock()
        try:
            yield
        finally:
            took = self.clock() - begin
            self.spent += took
            self.planned += took if planned is None else planned

    def start_seconds(self, models: Sequence[Model]) -> float:
        """About how long it takes until all processes are ready."""
        return start_seconds(models) + sum(map(warming_seconds, self._calls(models)))

    def measuring_seconds(self, models: Sequence[Model], budget_s: float) -> float:
        """About how long the blocks take: as long as asked for, and for the fewest rounds at least."""
        return max(budget_s, MIN_ROUNDS * sum(self._calls(models)))

    def _calls(self, models: Sequence[Model]) -> list[float]:
        """Seconds for a call of each, as far as they are known."""
        return [self.calls.get(model.digest, 0.0) for model in models]


def warming_seconds(call_s: float) -> float:
    """How long the calls of a model take until it is warm, at most; with ``call_s`` seconds each."""
    return FIRST_CALLS * call_s + max(2 * call_s, min(WARM_CALLS * call_s, WARM_S + call_s))


def start_seconds(models: Sequence[Model]) -> float:
    """About how long it takes until each of these models is loaded and warmed, if its calls take no time."""
    once = [TORCH_START_S if model.form == "torch" else START_S for model in models]
    return sum(once) + sum(model.size_bytes for model in models) / LOAD_RATE
