"""What a runner is: a model made ready to compute, whatever engine does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from optkit.data.dataset import Arrays


@dataclass(frozen=True)
class RunnerAbout:
    """Which engine a runner uses, how, and how long each part of making it ready took."""

    engine: str
    """onnxruntime, openvino, torch, torch-compile."""
    version: str
    """Of the engine's package."""
    import_s: float
    """Importing the engine; near 0 where this process had imported it before."""
    load_s: float
    """Reading the file: the module built and filled, or the graph read; 0 where the engine does it with the session."""
    session_s: float
    """Making it ready: graph optimization, compilation, allocation. (torch.compile compiles in the first call.)"""
    provider: str = "cpu"
    """Short name."""
    placement: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Short provider name -> operator -> nodes, as the engine runs them; empty = the engine does not tell."""
    precision: str = ""
    """In which the engine computes, where it chooses by itself (OpenVINO: f32, bf16)."""
    spinning: bool | None = None
    """Whether the engine's idle threads spin; None = the engine does not say."""
    session: Mapping[str, str] = field(default_factory=dict)
    """Session options it was opened with, as in ``optkit.runner.session``."""
    threads: int = 0
    """Intra-op threads it computes with; 0 = the engine does not say."""


class Runner(Protocol):
    """An open model. Runners subclass this, and get the context manager from it."""

    outputs: tuple[str, ...]
    """Names of the arrays that ``run`` returns, in order."""

    @property
    def about(self) -> RunnerAbout:
        """Engine, settings and times of this runner; cheap. ModelError once it is closed."""
        ...

    def run(self, inputs: Arrays) -> Arrays:
        """Outputs by name, for one batch of inputs by name.

        Raises:
            DataError: an input is missing, unknown, or has another dtype or rank than the model takes.
            ModelError: the engine failed on it.
        """
        ...

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        """A call that runs these inputs again and again with as little around the engine as can be, for timing.

        Names and dtypes are checked here, nothing is run: what only the engine finds, the call raises as ``run`` does.

        Raises:
            DataError: an input is missing, unknown, or of another dtype than the model takes.
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
