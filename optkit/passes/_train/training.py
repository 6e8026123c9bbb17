"""The recipe's block ``train:``, how the passes that train go about it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Training(BaseModel):
    """How passes train; each of them may do less, none does more."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    function: str | None = None
    """Your own loop, ``pkg.module:fn`` or ``FILE.py:fn``; called as fn(model, loader, steps, callback). None =
    optkit's: AdamW, cosine schedule, early stop on the metric, checkpoints."""
    steps: int = Field(default=1000, ge=1)
    """Optimizer steps at most, of each training. A pass that prunes in rounds shares them among the rounds."""
    seconds: float | None = Field(default=None, gt=0)
    """Time at most, of each pass that trains; the schedule is drawn in so that it ends there. None = no limit."""
    batch: int = Field(default=32, ge=1)
    """Samples in one step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Highest, after the warm-up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of matrices and kernels; biases and norms have none."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0."""
    patience: int = Field(default=5, ge=1)
    """Looks at the search split without a better score, after which training stops; the best weights are kept."""
    looks: int = Field(default=20, ge=1)
    """How many times in all steps the search split is looked at."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto = cuda where torch finds one."""
