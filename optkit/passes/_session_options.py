"""The session options of onnxruntime that are worth timing for a model, and how they are added to those it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from optkit.model.machine import machine, usable_threads
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.passes._ort_log import DISABLED, active_optimizers

OPTIMIZERS = (
    *("SkipLayerNormFusion", "BiasGeluFusion", "NchwcTransformer", "NhwcTransformer", "ConvActivationFusion"),
    *("ConvAddActivationFusion", "AttentionFusion", "EmbedLayerNormFusion", "MatMulScaleFusion", "MatMulAddFusion"),
    *("MatmulTransposeFusion", "GeluFusion", "FastGeluFusion", "QuickGeluFusion", "LayerNormFusion"),
    *("BiasSoftmaxFusion", "GatherSliceToSplitFusion", "TransposeOptimizer", "MatMulNBitsFusion"),
    *("DynamicQuantizeMatMulFusion", "MatMulIntegerToFloatFusion"),
)
"""Optimizers of onnxruntime that trade one kernel for another, or the beginnings of their names (``GeluFusionL1``);
first those that are known to make some models slower. What only removes work (constant folding) is not among them."""

HEAVY = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "Attention", "MultiHeadAttention"})
HEAVY_INT8 = frozenset({"MatMulInteger", "QLinearMatMul", "QLinearConv", "ConvInteger", "MatMulNBits"})


SHARED = frozenset({"threads", "parallel", "spinning"})
"""What depends on who else computes: beside busy neighbours one thread that sleeps is the fastest choice."""
BUSY = 0.2
"""Share of the cores from which neighbours are called busy."""
LOOK_S = 0.5
"""Seconds for which this process rests to see them."""


@dataclass(frozen=True)
class Option:
    """One thing to try."""

    what: str
    """For people. Of options that are equal up to ``=`` a session has one at most."""
    entries: Mapping[str, str] = field(default_factory=dict)
    """As in ``Model.session``."""
    optimizer: str = ""
    """An optimizer of onnxruntime that is switched off, or on again where the model has it off."""


def with_options(session: Mapping[str, str], options: Iterable[Option]) -> dict[str, str]:
    """The session entries of a model with some options added."""
    entries, disabled = dict(session), _disabled(session)
    for option in options:
        entries |= option.entries
        if option.optimizer:
            switched = [name for name in disabled if name != option.optimizer]
            disabled = switched if len(switched) < len(disabled) else [*disabled, option.optimizer]
    if disabled or DISABLED in entries:
        entries[DISABLED] = ";".join(disabled)
    return entries


def optimizers(model: Model, target: Target) -> list[Option] | str:
    """Those of onnxruntime's own that change this model, the most suspect first; or why they are not known."""
    active = active_optimizers(model.path, target.provider, model.session)
    if isinstance(active, str):
        return active
    disabled = _disabled(model.session)
    known = (name for known in OPTIMIZERS for name in active if name.startswith(known))
    return [Option(f"{'with' if name in disabled else 'without'} {name}", optimizer=name) for name in known]


def threads(model: Model, target: Target) -> list[Option]:
    """Other numbers of threads: one, half of them, and hyperthreads too. None where the target states a number."""
    usual = int(model.session.get("intra_op_num_threads", usable_threads()))
    others = {1, usable_threads() // 2, machine().affinity} - {usual, 0} if not target.threads else set()
    return [_property("intra_op_num_threads", str(count)) for count in sorted(others)]


def parallel(model: Model, target: Target) -> list[Option]:
    """Branches of the graph at the same time, which takes more threads. None where the target states a number."""
    count = str(usable_threads())
    if target.threads or count == "1" or not has_branches(model.path):
        return []
    entries = {"execution_mode": "parallel", "inter_op_num_threads": count}
    return [Option("execution_mode=parallel", entries)]


def spinning(model: Model, target: Target) -> list[Option]:
    """Threads that sleep between two operators."""
    del model, target
    return [_property("session.intra_op.allow_spinning", "0")]


def memory_arena(model: Model, target: Target) -> list[Option]:
    """Memory from the system instead of from a store of its own."""
    del model, target
    return [_property("enable_cpu_mem_arena", "0")]


def subnormal(model: Model, target: Target) -> list[Option]:
    """Numbers below 1.2e-38, with which processors compute slowly, as zeros."""
    del model, target
    return [_property("session.set_denormal_as_zero", "1")]


def fixed_sizes(model: Model, target: Target) -> list[Option]:
    """The sizes to measure at as the only ones, so that onnxruntime can compute with them beforehand."""
    dims = {dim for spec in model.signature.inputs for dim in spec.shape or ()}
    sizes = {name: str(size) for name, size in target.shapes.items() if name in dims}
    entries = {f"free_dimension_override_by_name:{name}": size for name, size in sizes.items()}
    return [Option(f"fixed sizes: {', '.join(f'{n} {s}' for n, s in sizes.items())}", entries)] if sizes else []


def prefer_nhwc(model: Model, target: Target) -> list[Option]:
    """Convolutions with channels last, as tensor cores want them."""
    del model
    return [_property("provider_option:prefer_nhwc", "1")] if target.provider == "cuda" else []


ON_CPUS: Mapping[str, Callable[[Model, Target], list[Option]]] = MappingProxyType(
    {
        "threads": threads,
        "parallel": parallel,
        "subnormal": subnormal,
        "spinning": spinning,
        "memory_arena": memory_arena,
    }
)
ON_DEVICES: Mapping[str, Callable[[Model, Target], list[Option]]] = MappingProxyType({"prefer_nhwc": prefer_nhwc})


def others_share() -> float:
    """Share of the cores that other processes use now, of those that this one may use; it rests meanwhile."""
    import psutil

    used = psutil.cpu_percent(LOOK_S, percpu=True)
    ours = psutil.Process().cpu_affinity() if hasattr(psutil.Process, "cpu_affinity") else range(len(used))
    return sum(used[core] for core in ours) / len(ours) / 100


def has_branches(path: Path) -> bool:
    """Whether two heavy operators do not wait for one another: as many steps from the inputs, at most."""
    from optkit.model.onnx_file import load_structure

    steps: dict[str, int] = {}
    heavy: Counter[int] = Counter()
    for node in load_structure(path).graph.node:
        step = 1 + max((steps.get(name, 0) for name in node.input), default=0)
        steps |= dict.fromkeys(node.output, step)
        heavy[step] += node.op_type in HEAVY | HEAVY_INT8
    return any(count > 1 for count in heavy.values())


def _property(key: str, value: str) -> Option:
    return Option(f"{key}={value}", {key: value})


def _disabled(session: Mapping[str, str]) -> list[str]:
    return [name for name in session.get(DISABLED, "").split(";") if name]
