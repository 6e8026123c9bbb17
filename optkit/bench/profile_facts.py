"""What a profile found: plain data, printed by ``optkit.report.profile``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from optkit.model.manifest import Environment, Fact


class CopyRate(Fact):
    """How fast memory of one size is copied."""

    bytes: int
    """Read and written by one copy: the smaller ones stay in a cache."""
    gb_s: float
    """10^9 bytes per second, read and written counted both."""


class Peaks(Fact):
    """The best this machine did while it was measured."""

    threads: int
    fp32_gflops: float
    """Of onnxruntime's MatMul in float32, 10^9 operations per second."""
    int8_gops: float
    """Of onnxruntime's MatMulInteger, uint8 x int8."""
    copies: tuple[CopyRate, ...]
    """From small to large."""


class Rate(Fact):
    """The work of one node, what it achieved, and the least time it could take on this machine."""

    operations: int
    """Per call; a multiplication and its addition count as two."""
    bytes: int | None
    """Per call, every input and output once; null where it is not known (torch)."""
    kind: Literal["fp32", "int8", ""]
    """Whose arithmetic limit holds; empty = a type whose limit is not measured."""
    gops: float
    """10^9 operations per second."""
    gb_s: float | None = None
    bound_ms: float | None = None
    """The larger of operations at the arithmetic limit and bytes at the memory's; null where either is not known."""
    bound_by: Literal["arithmetic", "memory", ""] = ""
    reached: float | None = None
    """bound_ms / ms: 1 = at the limit. Above 1 where the node's data lay in a faster cache than was assumed."""
    gain_ms: float | None = None
    """What is left to gain: ms - bound_ms, not below 0."""


class NodeFacts(Fact):
    """One node as it really ran, after the engine's own rewrites; of torch one operator with one set of shapes."""

    name: str
    origin: str
    """Of the model's own nodes the one it came from; empty where names do not tell."""
    operator: str
    provider: str = ""
    """Short name; empty for torch."""
    inputs: tuple[str, ...]
    """``float32[8,128,384]``; weights included where the engine tells."""
    outputs: tuple[str, ...] = ()
    calls: float
    """Executions per call of the model: more than 1 in loops, less where only some inputs lead there."""
    ms: float
    """Per call of the model."""
    share: float
    """Of all nodes' time."""
    rate: Rate | None = None
    """Only of matrix products, convolutions, attention and recurrent nodes on the CPU."""


class OperatorFacts(Fact):
    """All nodes of one operator."""

    operator: str
    nodes: int
    calls: float
    """Executions per call of the model."""
    ms: float
    share: float
    gops: float | None = None
    """Over those nodes whose work is known."""
    gain_ms: float | None = None
    """What those could gain."""


class ModelProfile(Fact):
    """One model, profiled."""

    label: str
    """As given."""
    path: str
    kind: str
    engine: str
    """onnxruntime or torch."""
    version: str
    """Of the engine."""
    provider: str
    digest: str
    size_bytes: int
    latency_ms: float
    """Median of a plain loop, without the profiler."""
    calls: int
    """In that loop."""
    profiled_ms: float
    """A typical call with the profiler."""
    profiled_calls: int
    """Those counted: the middle half, by length, of all recorded ones."""
    nodes_ms: float
    """All nodes of a typical call, the profiler's own part taken off; may exceed the latency on a noisy machine."""
    profiler_us: float
    """The profiler's own part in each execution of a node, found on nodes that do next to nothing; taken off."""
    scale: float = 1.0
    """Nodes' times were multiplied by this, so that together they are no longer than the latency."""
    nodes: tuple[NodeFacts, ...]
    """From the longest to the shortest."""
    operators: tuple[OperatorFacts, ...]
    gain_ms: float | None = None
    """Of all nodes with a limit."""


class Pair(Fact):
    """The same part of two models."""

    name: str
    """Family of operators, or the node of the models' own files."""
    operators: tuple[str, ...]
    other_operators: tuple[str, ...]
    nodes: int
    other_nodes: int
    ms: float | None
    """null = not in this model."""
    other_ms: float | None
    difference_ms: float
    """Other minus this one: below 0 the other is faster."""


class ProfileFacts(Fact):
    """One ``optkit profile``."""

    model: ModelProfile
    against: ModelProfile | None = None
    families: tuple[Pair, ...] = ()
    """By operator family, the largest difference first."""
    pairs: tuple[Pair, ...] = ()
    """By node, where names correspond."""
    peaks: Peaks | None = None
    """The machine's limits; null where the model did not run on the CPU."""
    threads: int
    dims: dict[str, int] = Field(default_factory=dict)
    inputs: str
    """``real`` or ``synthetic``, with names, dtypes and shapes."""
    synthetic: bool
    source: str = ""
    """Path of real inputs."""
    environment: Environment
    trace: str | None = None
    """The Chrome trace that was written."""
    notes: tuple[str, ...] = ()
    nonfinite: dict[str, str] = Field(default_factory=dict)
