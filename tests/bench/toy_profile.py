"""A small profile with round numbers: two products, one Relu, a tenth of the time outside of nodes."""

from __future__ import annotations

from optkit.bench.events import Call, Event
from optkit.bench.profile import NodeProfile, Profiled
from optkit.bench.profile_facts import CopyRate, Peaks
from optkit.bench.work import Tensor, work_of

X = Tensor("float32", (10, 100))
W = Tensor("float32", (100, 1000), constant=True)
H = Tensor("float32", (10, 1000))

PEAKS = Peaks(
    threads=2,
    fp32_gflops=10.0,
    int8_gops=40.0,
    copies=(CopyRate(bytes=100_000, gb_s=50.0), CopyRate(bytes=10_000_000, gb_s=2.0)),
)
"""Wide is 2e6 operations (0.2 ms by these) and 0.4 MB of weights (0.2 ms) + 44 kB (0.00088 ms): memory sets it."""


def node(name: str, operator: str, ms: float, *inputs: Tensor, outputs: tuple[Tensor, ...] = ()) -> NodeProfile:
    work = work_of(operator, inputs, outputs) if outputs else None
    return NodeProfile(
        name, name.removesuffix("_quant"), operator, "CPUExecutionProvider", inputs, outputs, 1.0, ms / 1e3, work
    )


def profiled(*nodes: NodeProfile, plain_ms: float = 1.0) -> Profiled:
    chosen = nodes or (
        node("relu", "Relu", 0.1, H),
        node("wide", "MatMul", 0.5, X, W, outputs=(H,)),
        node("narrow", "MatMul", 0.3, X, Tensor("float32", (100, 10)), outputs=(Tensor("float32", (10, 10)),)),
    )
    return Profiled(
        engine="onnxruntime",
        version="1.31.1",
        plain_s=plain_ms / 1e3,
        plain_times=(plain_ms / 1e3,) * 8,
        profiled_s=1.2 * plain_ms / 1e3,
        profiled_calls=4,
        nodes=chosen,
        cost_s=3e-6,
        calls=(Call(0.0, 1000.0, (Event("wide", "MatMul", 100.0, 600.0),)),),
    )
