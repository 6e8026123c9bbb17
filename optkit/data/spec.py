"""What a data source is, as a recipe, a ``data.yaml`` or ``--data`` states it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Split = Literal["calibration", "search", "evaluation", "train", "fit"]
"""calibration: ranges of activations; search: whatever is chosen by looking; evaluation: the final verdict."""


class DataSource(BaseModel):
    """Where the samples of one split come from."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    source: str
    """A path (relative to the file that states it), or ``pkg.module:fn`` / ``FILE.py:fn`` for functions."""
    format: Literal["npz", "npz-dir", "images", "text", "csv", "jsonl", "function"] | None = None
    """None = found from the path: a folder of .npz, a folder of images, or the file's ending."""
    samples: int | None = Field(default=None, ge=1)
    """Use at most this many samples, drawn with ``seed``; None = all."""
    batch: int = Field(default=8, ge=1)
    """Samples per batch; a model with a fixed batch size overrides it."""
    labels: str | None = None
    """npz array, CSV/JSONL column, or for images a CSV with columns file,label; None = ``labels`` if there is one."""
    groups: str | None = None
    """npz array or column that says which samples belong together (a speaker, a document); splits keep groups whole."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Model input -> array or column name in the source, where they differ."""
    seed: int = 0
    """Of the draw when ``samples`` is smaller than the source."""
