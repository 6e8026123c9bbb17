"""What a pass is: a frozen, typed sentence that turns one model into another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict

from optkit.model.manifest import Decision, Ratio, Verdict
from optkit.model.model import Form, Model
from optkit.model.target import Target
from optkit.passes._train.training import Training

if TYPE_CHECKING:
    from torch import nn

    from optkit.data.dataset import Arrays, Dataset

PassKind = Literal["exact", "lossy", "trains"]
Aspect = Literal["outputs", "dims", "dtypes"]

NOISE = 1e-3
"""Largest error over the output's standard deviation that counts as float noise: what ``exact`` means."""
NOISE_INT8 = 0.05
"""The same behind a lossy pass, where float noise flips the rounding of quantized values; also the share of integer,
bool and string elements that may differ there (none may differ in an exact chain)."""

FRAME_KEYS = ("id", "required", "keep", "when")
"""What every recipe entry may have beside the pass's own options, none of which may be named so."""


@dataclass(frozen=True)
class Outcome:
    """What a pass did."""

    model: Model
    changed: int
    """How many things were changed; 0 = no effect, and ``skipped`` or ``notes`` say why."""
    changes: Sequence[tuple[str, str]] = ()
    """(where, what) for each thing changed."""
    skipped: Sequence[tuple[str, str]] = ()
    """(where, reason) for each thing left alone that the user might expect to change."""
    notes: Sequence[str] = ()
    session: Mapping[str, str] = field(default_factory=dict)
    """onnxruntime session options this result wants, see ``Model.session``; later steps override earlier ones."""
    decisions: Sequence[Decision] = ()
    """What was chosen by measuring, with the times."""
    lasting: bool = True
    """False where it would come out otherwise in a better moment, as beside busy neighbours: then it is not kept for
    later runs."""


class Context(Protocol):
    """What a pass may know and use beside its input. The pipeline builds it."""

    @property
    def original(self) -> Model:
        """The model as it was given."""

    @property
    def workdir(self) -> Path:
        """A fresh folder of this step's own; write the result there."""

    @property
    def target(self) -> Target:
        """The machine the result is for."""

    @property
    def seed(self) -> int:
        """Of every random choice."""

    def batches(self, split: str) -> Dataset:
        """The samples of a split; DataError when there are none (calibration on synthetic data needs a flag)."""

    def run(self, model: Model, batches: Dataset, outputs: Sequence[str] | None = None) -> Iterator[Arrays]:
        """Outputs by name, batch by batch. ``outputs`` may name inner tensors of an ONNX model."""

    def load_torch(self, model: Model) -> nn.Module:
        """The live module of a torch model, in eval mode."""

    def to_onnx(self, model: Model) -> Model:
        """The model exported by the recipe's own export pass (cached)."""

    @property
    def may_time(self) -> bool:
        """False where nobody wants anything timed (``--no-bench``): then choose by what is known beforehand."""

    def time(self, models: Sequence[Model], *, budget_s: float = 4.0, confidence: float = 0.99) -> list[Ratio]:
        """Latency of each model against the first, in separate interleaved processes, for about so many seconds.

        The intervals hold the truth with ``confidence``.
        """

    def judge(self, model: Model, data: Dataset | None = None) -> Verdict:
        """Compare with the original on the search split only; on ``data``, some of it, where that is given."""

    def remember(self, facts: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``make`` gives, as plain data; other steps and later runs that ask with the same ``facts`` get it too.

        ``facts`` say what it depends on (digests, options), beside the code of the pass and what models run on.
        """

    @property
    def training(self) -> Training:
        """How to train: the recipe's block ``train:``."""

    def judge_outputs(self, outputs: Iterable[Arrays]) -> Verdict:
        """As ``judge``, of outputs by name that a live module gave on the batches of the search split, in order."""

    def checkpoints(self) -> Path:
        """A folder that stays when this step is interrupted, and is there again when it is run once more."""

    def progress(self, done: int, total: int) -> None:
        """Tell whoever watches how far this pass is."""


class Pass(BaseModel):
    """One step of a recipe. The fields are its options; subclasses state the class facts below."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    forms: ClassVar[Mapping[Form, Form]]
    """Form it takes -> form it gives."""
    kind: ClassVar[PassKind]
    """exact: equal up to float noise; lossy: may move within the limits; trains: changes weights by training."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Import names of packages beyond the core that it uses."""
    may_change: ClassVar[frozenset[Aspect]] = frozenset()
    """What of outputs, dims, dtypes may differ afterwards."""
    for_speed: ClassVar[bool] = True
    """Whether it is there to make the model faster, so that a slower result is rolled back."""
    uses_target: ClassVar[bool] = False
    """Whether the result depends on provider or CPU features; then they are part of the cache key."""
    uses_data: ClassVar[tuple[str, ...]] = ()
    """Splits it reads with any options, see ``reads``."""

    code_options: ClassVar[tuple[str, ...]] = ()
    """Options that may name code of the user's, one reference or a tuple of them."""

    @classmethod
    def name(cls) -> str:
        """The recipe key: the class name in kebab-case."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()

    @classmethod
    def title(cls) -> str:
        """First line of the class docstring: help text, schema title, lineage line."""
        return (cls.__doc__ or "").strip().splitlines()[0]

    def sentence(self) -> str:
        """The pass with the options that differ from their defaults, as in a recipe."""
        import yaml

        given = self.model_dump(mode="json", exclude_defaults=True)
        if not given:
            return self.name()
        options: str = yaml.safe_dump(given, default_flow_style=True, sort_keys=False, width=float("inf"))
        return f"{self.name()}: {options.strip()}"

    def code(self) -> tuple[str, ...]:
        """The user's code that its options name, which is part of the cache key: ``pkg.module:fn``, ``FILE.py:fn``."""
        return tuple(each for name in self.code_options for each in _references(getattr(self, name)))

    def rooted(self, absolute: Callable[[str], str]) -> Self:
        """The same pass, the files of ``code`` as ``absolute`` makes them."""
        found = {name: getattr(self, name) for name in self.code_options}
        made = {name: _mapped(value, absolute) for name, value in found.items()}
        return self.model_copy(update={name: value for name, value in made.items() if value != found[name]})

    def reads(self) -> tuple[str, ...]:
        """Splits it reads; the plan refuses when they are missing, and their digest is part of the cache key.

        With ``search`` among them, limits and metric are part of the key too: it may choose by ``ctx.judge``.
        """
        return self.uses_data

    def decides_by_time(self) -> bool:
        """Whether it chooses by ``ctx.time``.

        Then the machine's fingerprint is part of the cache key, and ``--remeasure`` makes the result anew.
        """
        return False

    def fixes(self, target: Target) -> Mapping[str, int]:
        """Dynamic dimension of the inputs -> the one size that its result takes. All data then come in that size."""
        del target
        return {}

    def applies_to(self, target: Target) -> str:
        """Empty, or the reason why it cannot work for this target, whatever the model; asked in the plan."""
        del target
        return ""

    def applies(self, model: Model, target: Target) -> str:
        """Empty, or the reason why it cannot work on this model; what to do may follow behind a semicolon.

        Asked in the plan of a pass that takes the original's form, and again right before the pass runs.
        """
        del model, target
        return ""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Turn ``model`` into another one below ``ctx.workdir``.

        Raises:
            PassError: it cannot be done; says what, and what to do.
        """
        raise NotImplementedError


def _references(value: object) -> tuple[str, ...]:
    """The references in an option; what is neither a text nor a tuple of them names none."""
    return (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ()


def _mapped(value: object, change: Callable[[str], str]) -> object:
    if isinstance(value, tuple):
        return tuple(change(each) for each in value)
    return change(value) if isinstance(value, str) else value
