"""What a comparison with peers found: ``results.json``, from which every table and plot is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from benchmarks.venvs import HERE
from optkit.model.manifest import Environment, Ratio

FILE = HERE / "results.json"


class Facts(BaseModel):
    """Plain data."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AtPoint(Facts):
    """One candidate at one point; only ``failed`` where it did not run there."""

    failed: str = ""
    median_ms: float | None = None
    ratio: Ratio | None = None
    """Against plain onnxruntime, measured in the same interleaved run."""
    peak_mb: float | None = None
    first_ms: float | None = None
    """The first inference, in which torch.compile compiles."""
    start_s: float | None = None
    """Import, load and session together."""
    stable: bool = True
    launches: int = 1


class Candidate(Facts):
    """One product of one peer."""

    label: str
    peer: str
    engine: str
    session: dict[str, str] = {}
    seconds: float = 0.0
    """Making it, once."""
    size_mb: float | None = None
    scores: dict[str, float] = {}
    points: tuple[AtPoint, ...] = ()
    """In the order of the subject's points; none where it failed altogether."""
    note: str = ""
    failed: str = ""


class SubjectResult(Facts):
    """One model."""

    name: str
    title: str
    date: str
    headline: str
    """The score that tables show first."""
    points: tuple[dict[str, int], ...]
    samples: int
    """Rows that the scores were computed on."""
    candidates: tuple[Candidate, ...]
    """The baseline, plain onnxruntime, first."""
    load_average: float | None = None
    """Of the machine before this subject's measurement."""


class Results(Facts):
    """Everything."""

    date: str
    command: str
    environment: Environment
    versions: dict[str, str]
    """Peer -> its version."""
    rules: dict[str, float]
    subjects: tuple[SubjectResult, ...]
    tool: tuple[dict[str, Any], ...] = ()
    """Rows of ``benchmarks/tool.py``."""


def read(path: Path = FILE) -> Results:
    """The results as they were written."""
    return Results.model_validate_json(path.read_text())


def write(results: Results, path: Path = FILE) -> None:
    """Keep them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(results.model_dump_json(indent=1) + "\n")
