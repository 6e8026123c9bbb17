"""THE set of facts about one optimization: what was given, done, measured and decided. Plain data.

Reports print it, ``--json`` shows it, the bundle keeps it. Non-finite floats become null there, see ``optkit.report``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Fact(BaseModel):
    """Base of all facts: frozen, and no field that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Change(Fact):
    """One thing a pass changed, or skipped with its reason."""

    where: str
    """Node, weight or module name."""
    what: str
    """What was done there, or why nothing was done."""


class Ratio(Fact):
    """Latency of a candidate against the baseline, from interleaved blocks in separate processes."""

    baseline_ms: float
    """Median latency of the baseline, milliseconds per call."""
    candidate_ms: float
    """Median latency of the candidate, milliseconds per call."""
    speedup: float
    """Baseline / candidate: above 1 is faster."""
    low: float
    """Lower end of the interval of the speedup."""
    high: float
    """Upper end of the interval of the speedup."""
    confidence: float
    """Of the interval, e.g. 0.99."""
    margin: float = 0.02
    """Differences up to this share are called ``same``."""
    blocks: int
    """Pairs of interleaved blocks."""
    inputs: str
    """What was fed: ``real`` or ``synthetic``, with shapes."""

    @property
    def word(self) -> Literal["faster", "slower", "same"]:
        """The verdict in one word: a difference only where the whole interval lies outside 1 +- ``margin``."""
        return "faster" if self.low > 1 + self.margin else "slower" if self.high < 1 - self.margin else "same"


class OutputFidelity(Fact):
    """One output of the result against the same output of the original. A row is one sample."""

    name: str
    dtype: str
    rows: int
    max_error: float | None = None
    """Largest absolute difference, in the output's own unit."""
    mean_error: float | None = None
    """Mean absolute difference."""
    max_error_std: float | None = None
    """max_error / standard deviation of the original output."""
    cosine: float | None = None
    """Mean over the rows."""
    cosine_p1: float | None = None
    """First percentile over the rows."""
    cosine_worst: float | None = None
    worst_sample: int | None = None
    """Index of the row with the lowest cosine."""
    sqnr_db: float | None = None
    """10 log10(signal power / error power)."""
    top1: float | None = None
    """Share of rows with the same arg max; only for outputs that look like class scores."""
    top5: float | None = None
    """Share of rows whose original arg max is among the result's five largest."""
    equal: float | None = None
    """Share of equal elements, for integer and bool outputs."""
    note: str = ""
    """Masking, pooling, or why a figure is missing."""


class MetricResult(Fact):
    """A task metric on original and result, over the same labelled samples."""

    name: str
    unit: str = ""
    better: Literal["higher", "lower"]
    original: float
    result: float
    drop: float
    """How much worse the result is (positive = worse), in the metric's unit."""
    low: float
    """Lower end of the 95 % paired-bootstrap interval of the drop."""
    high: float
    """Upper end of that interval."""
    bound: float
    """One-sided 95 % upper bound of the drop."""
    samples: int
    """Samples, or groups where the data have groups."""
    smallest_provable: float
    """Smallest budget that this many samples could prove by the bound, were the drop zero."""


class LimitResult(Fact):
    """One limit, and whether it was held."""

    name: str
    limit: str
    """As stated, e.g. ``0.99`` or ``not-slower``."""
    measured: float | None
    held: bool | None
    """None = not checked, with the reason in ``note``."""
    kind: Literal["accuracy", "budget"]
    where: str = ""
    """The output or metric that decided."""
    note: str = ""
    allowed: float | None = None
    """The limit as a number; None where it is none, as ``not-slower``, or was not checked."""


class MeasuredOn(Fact):
    """What numbers were measured on; printed beside them."""

    split: str
    source: str
    samples: int
    batch: int
    synthetic: bool


class BatchShift(Fact):
    """How far one output of a sample moves with the other samples in its batch."""

    name: str
    original: float | None = None
    """Of the original: largest shift over the output's standard deviation; of integer, bool and text outputs the share
    of elements that change; None = not measured."""
    result: float | None = None
    """The same of the result."""


class BatchInvariance(Fact):
    """Whether a sample's answer depends on its batch neighbours."""

    samples: int
    """Samples that were looked at."""
    batch: int
    """Samples in a call."""
    synthetic: bool
    outputs: tuple[BatchShift, ...] = ()
    notes: tuple[str, ...] = ()
    """Why something was not measured."""


class Verdict(Fact):
    """Is it still the same model, by the limits?"""

    held: bool
    outputs: tuple[OutputFidelity, ...] = ()
    metrics: tuple[MetricResult, ...] = ()
    limits: tuple[LimitResult, ...] = ()
    problems: tuple[str, ...] = ()
    """What failed before any tolerance: names, dtypes, ranks, NaN, Inf."""
    dropped_outputs: tuple[str, ...] = ()
    """Outputs a pass removed by declaration; left out of the comparison."""
    measured_on: MeasuredOn
    would_pass: dict[str, float] = Field(default_factory=dict)
    """Limit name -> the value that would just have held."""
    notes: tuple[str, ...] = ()
    """What else whoever reads it should know, in sentences."""
    batch_invariance: BatchInvariance | None = None
    """Only where ``optkit check`` was asked for it."""

    @property
    def accuracy_held(self) -> bool:
        """No problem, and no accuracy limit missed."""
        return not self.problems and all(x.held is not False for x in self.limits if x.kind == "accuracy")

    @property
    def budget_held(self) -> bool:
        """No speed, size or memory limit missed."""
        return all(x.held is not False for x in self.limits if x.kind == "budget")


class Artifact(Fact):
    """A model file as a fact."""

    path: str
    form: str
    kind: str
    digest: str
    size_bytes: int
    inputs: tuple[str, ...] = ()
    """As ``name=dtype[dims]``."""
    outputs: tuple[str, ...] = ()


class Drift(Fact):
    """How far a step's result is from the ORIGINAL, at its worst output."""

    output: str
    cosine: float | None
    max_error_std: float | None


class Decision(Fact):
    """One choice that a pass made by measuring."""

    what: str
    """What was chosen or not: a family of fusions, an optimizer left out, a session option with its value."""
    kept: bool
    """Whether the result has it."""
    speedup: float | None = None
    """Of having it over not having it, all else as it had been chosen by then; None = not measured."""
    low: float | None = None
    """Lower end of its interval."""
    high: float | None = None
    """Upper end of its interval."""
    reason: str
    """Why it was kept or not, in words."""


class StepRecord(Fact):
    """One pass of the chain, as it happened."""

    id: str
    name: str
    """The pass's name, kebab-case."""
    title: str
    """First line of the pass's docstring."""
    config: dict[str, Any]
    status: Literal["changed", "no effect", "rolled back", "skipped"]
    reason: str = ""
    """Why there was no effect, a roll-back or a skip; or that it was kept although it is measured slower."""
    changes: tuple[Change, ...] = ()
    skipped: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()
    session: dict[str, str] = Field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()
    """What the pass chose by measuring, on the machine of ``environment``."""
    drift: Drift | None = None
    speedup: Ratio | None = None
    """Against the step before: a COARSE estimate, from one short measurement or two. None = not timed."""
    timing_note: str = ""
    """Why it was not timed, or what to know about ``speedup``, such as that it is from an earlier run."""
    seconds: float = 0.0
    """Of the pass itself; when cached, of the run that made it."""
    peak_mb: float | None = None
    """Peak memory of the process tree during the pass, MB."""
    cached: bool = False
    size_bytes: int
    digest: str


class Timing(Fact):
    """The stopwatch's result on the whole chain."""

    result: Ratio
    """Result against the baseline export: the full measurement."""
    launches: int = 1
    """Processes each of the two was started in, one after the other."""
    stable: bool = True
    """False where noise alone moves the ratio by more than the margin; the numbers stand all the same."""
    torch_eager_ms: float | None = None
    """Median of the original in torch eager, for torch originals; a COARSE estimate, alone."""
    torch_note: str = ""
    """Why torch eager was not timed."""
    peak_mb: float | None = None
    """Peak memory of the result's own process, MB."""


class Environment(Fact):
    """Where it was measured."""

    optkit: str
    python: str
    platform: str
    cpu: str
    cpu_features: tuple[str, ...]
    cores: int
    """Logical ones."""
    threads: int
    """Intra-op threads of the measurement (of its first, where it sweeps over them)."""
    provider: str
    packages: dict[str, str]
    physical_cores: int | None = None
    affinity: int | None = None
    """Logical cores that the scheduler lets the process use."""
    cpu_limit: float | None = None
    """Cores' worth of time that the cgroup grants; None = no limit, or not looked at."""
    memory_bytes: int | None = None
    """Of the machine, or the cgroup's limit where that is lower."""
    load_average: float | None = None
    """Processes that wanted to run in the minute before the measurement began; None = not looked at."""
    gpus: tuple[str, ...] = ()


class Manifest(Fact):
    """Everything about one ``optkit optimize``."""

    schema_version: Literal[1] = 1
    recipe_name: str
    created: str
    """ISO 8601, UTC."""
    original: Artifact
    baseline: Artifact
    """The original exported to ONNX; the original itself where that is ONNX already."""
    result: Artifact
    recipe: dict[str, Any]
    """The resolved recipe: every default spelled out."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What was given beside the recipe: factory, signature, trust_pickle, allow_synthetic_calibration, seed, ..."""
    steps: tuple[StepRecord, ...]
    verdict: Verdict
    timing: Timing | None
    """None = not timed; ``timing_note`` says why."""
    timing_note: str = ""
    timing_s: float = 0.0
    """Seconds that all the run's timing took, starting its processes included."""
    session: dict[str, str] = Field(default_factory=dict)
    """onnxruntime session options to open the result with, usable from any language: config entries, and properties
    under names without a dot, see ``Model.session``."""
    preprocess: dict[str, dict[str, Any]] = Field(default_factory=dict)
    environment: Environment
    output: str | None = None
    """Where the result was written; None when nothing was."""
    notes: tuple[str, ...] = ()
    """What whoever takes the output elsewhere must know."""
    nonfinite: dict[str, str] = Field(default_factory=dict)
    """JSON path -> ``inf``, ``-inf`` or ``nan``, for the floats that stand as null."""
