"""A profile as facts: what each node achieved, the least time it could take on this machine, what is left to gain."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from optkit.bench.peaks import bandwidth
from optkit.bench.profile import NodeProfile, Profiled
from optkit.bench.profile_facts import ModelProfile, NodeFacts, OperatorFacts, Peaks, Rate
from optkit.bench.work import Tensor, Work

Limit = Literal["arithmetic", "memory", ""]
NO_BOUND: tuple[float | None, Limit] = (None, "")


@dataclass(frozen=True)
class Analysis:
    """A profile, weighed."""

    nodes: tuple[NodeFacts, ...]
    """From the longest to the shortest."""
    operators: tuple[OperatorFacts, ...]
    nodes_ms: float
    """Sum of the nodes' times as the profiler saw them, its own part taken off."""
    scale: float
    """By which they were multiplied."""
    gain_ms: float | None


def analyse(profiled: Profiled, peaks: Peaks | None) -> Analysis:
    """Times of nodes and operators; with ``peaks`` also what is left to gain.

    A profiler makes short nodes longer: where all nodes together took longer than a call without it, all are scaled
    down to that.
    """
    total = sum(node.seconds for node in profiled.nodes)
    scale = min(1.0, profiled.plain_s / total) if total else 1.0
    weights = _weight_bytes(profiled.nodes)
    facts = [_node(node, scale, total * scale, peaks, weights) for node in profiled.nodes]
    facts.sort(key=lambda node: -node.ms)
    gains = [node.rate.gain_ms for node in facts if node.rate is not None and node.rate.gain_ms is not None]
    return Analysis(
        nodes=tuple(facts),
        operators=tuple(_operators(facts)),
        nodes_ms=total * 1e3,
        scale=scale,
        gain_ms=sum(gains) if gains else None,
    )


def model_profile(
    found: Profiled,
    peaks: Peaks | None,
    *,
    label: str,
    path: str,
    kind: str,
    provider: str,
    digest: str,
    size_bytes: int,
) -> ModelProfile:
    """The facts about one model, see ``ModelProfile``: what the profiler found, weighed, and what the model is."""
    seen = analyse(found, peaks)
    return ModelProfile(
        label=label,
        path=path,
        kind=kind,
        engine=found.engine,
        version=found.version,
        provider=provider,
        digest=digest,
        size_bytes=size_bytes,
        latency_ms=found.plain_s * 1e3,
        calls=len(found.plain_times),
        profiled_ms=found.profiled_s * 1e3,
        profiled_calls=found.profiled_calls,
        nodes_ms=seen.nodes_ms,
        profiler_us=found.cost_s * 1e6,
        scale=seen.scale,
        nodes=seen.nodes,
        operators=seen.operators,
        gain_ms=seen.gain_ms,
    )


def _weight_bytes(nodes: Iterable[NodeProfile]) -> int:
    """Of all weights: a call reads them once each, and so finds them where that many bytes have room."""
    return sum(tensor.bytes for node in nodes for tensor in node.inputs if tensor.constant)


def _node(node: NodeProfile, scale: float, total: float, peaks: Peaks | None, weights: int) -> NodeFacts:
    seconds = node.seconds * scale
    return NodeFacts(
        name=node.name,
        origin=node.origin,
        operator=node.operator,
        provider=node.provider.replace("ExecutionProvider", "").lower(),
        inputs=_texts(node.inputs),
        outputs=_texts(node.outputs),
        calls=node.executions,
        ms=seconds * 1e3,
        share=seconds / total if total else 0.0,
        rate=_rate(node.work, node.executions, seconds, peaks, weights) if node.work and seconds else None,
    )


def _texts(tensors: Iterable[Tensor]) -> tuple[str, ...]:
    return tuple(map(str, tensors))


def _rate(work: Work, executions: float, seconds: float, peaks: Peaks | None, weights: int) -> Rate:
    moved = None if work.bytes is None else work.bytes * executions
    bound, by = bound_of(work, peaks, weights) if peaks else NO_BOUND
    least = None if bound is None else bound * executions
    return Rate(
        operations=round(work.operations * executions),
        bytes=None if moved is None else round(moved),
        kind=work.kind,
        gops=work.operations * executions / seconds / 1e9,
        gb_s=None if moved is None else moved / seconds / 1e9,
        bound_ms=None if least is None else least * 1e3,
        bound_by=by,
        reached=None if least is None else least / seconds,
        gain_ms=None if least is None else max(0.0, seconds - least) * 1e3,
    )


def bound_of(work: Work, peaks: Peaks, weights: int) -> tuple[float | None, Limit]:
    """Least seconds of one execution, and what sets them; nothing where operations or bytes have no limit here.

    Weights come from where all weights of the model have room, as a call reads them all in turn; what the node before
    has just written may still lie in a cache of the node's own size.

    Args:
        work: of the node.
        peaks: of this machine.
        weights: bytes of all weights of the model.
    """
    limit = {"fp32": peaks.fp32_gflops, "int8": peaks.int8_gops}.get(work.kind)
    if limit is None or work.bytes is None:
        return NO_BOUND
    arithmetic = work.operations / (limit * 1e9)
    others = work.bytes - work.weight_bytes
    memory = work.weight_bytes / bandwidth(peaks, weights) + others / bandwidth(peaks, others)
    return (arithmetic, "arithmetic") if arithmetic >= memory else (memory, "memory")


def _operators(nodes: Sequence[NodeFacts]) -> list[OperatorFacts]:
    """Sums by operator, from the longest to the shortest."""
    groups: dict[str, list[NodeFacts]] = defaultdict(list)
    for node in nodes:
        groups[node.operator].append(node)
    return sorted((_operator(name, group) for name, group in groups.items()), key=lambda each: -each.ms)


def _operator(name: str, group: Sequence[NodeFacts]) -> OperatorFacts:
    known = [(node, node.rate) for node in group if node.rate is not None]
    gains = [rate.gain_ms for _, rate in known if rate.gain_ms is not None]
    busy = sum(node.ms for node, _ in known)
    return OperatorFacts(
        operator=name,
        nodes=len(group),
        calls=sum(node.calls for node in group),
        ms=sum(node.ms for node in group),
        share=sum(node.share for node in group),
        gops=sum(rate.operations for _, rate in known) / busy / 1e6 if busy else None,
        gain_ms=sum(gains) if gains else None,
    )
