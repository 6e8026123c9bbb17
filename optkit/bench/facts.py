"""What a bench found: plain data, printed by ``optkit.report.bench``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from optkit.model.manifest import Environment, Fact, Ratio


class Percentile(Fact):
    """One percentile of the latency of single calls."""

    percent: float
    """50, 90, 95 or 99."""
    ms: float
    enough: bool
    """At least ten samples lie above it; otherwise it is marked, and says little."""


class Phases(Fact):
    """What comes before the steady state, each apart. Of the first launch."""

    import_s: float
    """Importing the engine (onnxruntime, torch, openvino)."""
    load_s: float
    """Reading the file: the module built and filled, or the graph read; 0 where the engine does it with the session."""
    session_s: float
    """Making it ready: graph optimization, compilation, allocation."""
    first_ms: float
    """The first inference (torch.compile compiles here)."""
    warm_up_s: float
    """Calls until times were steady, beyond the first."""
    warm_up_calls: int
    steady: bool
    """Whether times were steady by the end of the warm-up."""


class Steady(Fact):
    """The steady state."""

    median_ms: float
    mean_ms: float
    percentiles: tuple[Percentile, ...]
    throughput: float
    """Samples of all these calls over the seconds they took (calls per second where inputs have no batch axis)."""
    calls: int
    blocks: int
    launches: int
    """Processes started one after the other, whose differences are part of the interval."""
    spread: float
    """Interquartile range of the blocks' medians over their median."""


class CandidateFacts(Fact):
    """One candidate at one point of the sweep."""

    label: str
    """As given: ``model.onnx``, ``model.onnx@openvino``, ``model.pt@compile``."""
    path: str
    kind: str
    engine: str
    """onnxruntime, openvino, torch, torch-compile."""
    provider: str
    threads: int
    digest: str
    size_bytes: int
    session: dict[str, str] = Field(default_factory=dict)
    """Session config entries it was opened with."""
    spinning: bool | None = None
    """Whether the engine's idle threads spin; None = the engine does not say."""
    precision: str = ""
    """In which the engine computes, where it chooses by itself (OpenVINO: f32, bf16)."""
    placement: dict[str, dict[str, int]] = Field(default_factory=dict)
    """Provider -> operator -> nodes."""
    peak_mb: float
    """Largest resident memory of its process, MB of 10^6 bytes."""
    phases: Phases
    steady: Steady
    ratio: Ratio
    """Against the baseline, the first candidate, whose own is 1 by definition."""
    verdict: Literal["baseline", "faster", "same", "slower"]
    """The ratio in a word."""
    stable: bool
    """False where noise alone moves the ratio (within launches the baseline's time, of a candidate alone its time) by
    more than the margin, or the precision where that is larger; the numbers stand all the same."""
    samples_ms: tuple[tuple[float, ...], ...] = ()
    """Raw: milliseconds of each call, block by block, without the cold first call of a block."""
    launch_of: tuple[int, ...] = ()
    """The launch of each of those blocks, from 0."""


class OpenLoop(Fact):
    """One candidate under requests that do not wait for it."""

    label: str
    rate: float
    """Requests per second offered, Poisson arrivals."""
    seconds: float
    requests: int
    achieved: float
    """Requests per second completed."""
    percentiles: tuple[Percentile, ...]
    """Of completion minus SCHEDULED arrival."""
    max_ms: float
    service_ms: float
    """Median of the call alone: what a closed loop would show."""
    service_p99_ms: float
    """p99 of the call alone."""
    lag_p50_ms: float
    """Send lag: how much later than scheduled a request was put into the queue."""
    lag_p99_ms: float
    saturated: bool
    """More came than could be done: latencies grow as long as the load lasts."""
    samples_ms: tuple[float, ...] = ()


class BenchPoint(Fact):
    """One point of the sweep: sizes and threads."""

    dims: dict[str, int]
    threads: int
    inputs: str
    """``real`` or ``synthetic``, with names, dtypes and shapes."""
    inputs_digest: str = ""
    """sha256 over names, dtypes, shapes and values of the batches that were fed in turn."""
    candidates: tuple[CandidateFacts, ...]
    seconds: float = 0.0
    """What measuring it took, starting the processes included."""
    noise_floor: Ratio | None = None
    """The baseline against a second copy of itself."""
    load: tuple[OpenLoop, ...] = ()


class BenchFacts(Fact):
    """One ``optkit bench``."""

    baseline: str
    """Label of the first candidate."""
    points: tuple[BenchPoint, ...]
    environment: Environment
    seed: int
    margin: float
    """Differences up to this share are called ``same``."""
    confidence: float
    precision: float
    """A launch ends when noise within it moves no ratio by more than this share. Intervals also hold how launches
    differ, and may be wider."""
    budget_s: float
    """Most seconds of measuring per point."""
    synthetic: bool
    """Whether made-up inputs were fed at any point."""
    source: str = ""
    """Path of real inputs; empty where there were none."""
    stable: bool
    """Whether every candidate at every point is."""
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    nonfinite: dict[str, str] = Field(default_factory=dict)
