"""What a runner is: a model made ready to compute, whatever engine does it."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from optkit.data.dataset import Arrays


class Runner(Protocol):
    """An open model. Runners subclass this, and get the context manager from it."""

    outputs: tuple[str, ...]
    """Names of the arrays that ``run`` returns, in order."""

    def run(self, inputs: Arrays) -> Arrays:
        """Outputs by name, for one batch of inputs by name.

        Raises:
            DataError: an input is missing, unknown, or has another dtype or rank than the model takes.
            ModelError: the engine failed on it.
        """
        ...

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        """A call that runs these inputs again and again with as little around the engine as can be, for timing.

        Raises:
            DataError: as ``run``; checked once, here.
        """
        return lambda: self.run(inputs)

    def close(self) -> None:
        """Give the memory and threads back; closing twice does no harm."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
