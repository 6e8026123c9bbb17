"""The steps of static quantization between the float graph and the model with integers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from optkit.passes._quant.layered import Built
from optkit.passes._quant.operators import LINEAR, OPERANDS

if TYPE_CHECKING:
    import onnx_ir as ir

    from optkit.data.dataset import Array, Dataset
    from optkit.model.model import Model
    from optkit.passes._base import Context
    from optkit.passes._quant.cpu import Grid
    from optkit.passes._quant.layer_weights import Weights
    from optkit.passes._quant.ranges import Activations

FEW_SAMPLES = 32
WIDER = 1.5
"""Times the span of calibration that inputs may reach over before it is told."""
COARSER = 4
"""Times the span of inputs that calibration may reach over before it is told: extremes are rare."""


def tensors_of(graph: ir.Graph, candidates: Collection[str], chosen: Collection[str]) -> dict[str, int | None]:
    """Tensors whose ranges are needed, in order of appearance -> axis of the channels whose means are needed.

    Those of all ``candidates``, so that they can be kept for other choices among them; only what a chosen Relu or Clip
    takes is left out where nobody else takes it.
    """
    skipped = set(absorptions(graph, candidates, chosen))
    found: dict[str, int | None] = {}
    for node in graph:
        if node.name not in candidates:
            continue
        inputs = node.inputs if node.op_type in OPERANDS else node.inputs[:1]
        outputs = () if node.op_type in LINEAR else node.outputs
        for value in (*inputs, *outputs):
            if value is not None and value.name and not value.is_initializer() and value.name not in skipped:
                found.setdefault(value.name, None)
        if node.op_type in ("Conv", "Gemm") and found.keys() & {node.inputs[0].name}:
            found[node.inputs[0].name or ""] = 1
    return found


def absorptions(graph: ir.Graph, candidates: Collection[str], chosen: Collection[str]) -> dict[str, str]:
    """Tensors between a node and the Relu or Clip that its integers absorb -> result of that."""
    from optkit.passes._quant.flow import absorbed_by

    held = {node: "" for node in graph if node.name in candidates}
    between = ((value, absorbed_by(value, held)) for node in held for value in node.outputs)
    return {value.name or "": end.outputs[0].name or "" for value, end in between if end and end.name in chosen}


def sizes_of(
    graph: ir.Graph, candidates: Collection[str], chosen: Collection[str], found: Activations
) -> dict[str, int]:
    """Values in a batch of every float32 tensor around the candidates."""
    sizes = {name: each.elements for name, each in found.items()}
    return sizes | {name: sizes.get(end, 0) for name, end in absorptions(graph, candidates, chosen).items()}


@dataclass(frozen=True)
class Builder:
    """Makes the model with layers at given precisions, as often as it is asked."""

    source: Model
    """As it was given."""
    prepared: Path
    chosen: Collection[str]
    sizes: Mapping[str, int]
    activations: Activations
    grids: Mapping[str, Grid]
    """Precision -> integers of activations, the default first."""
    weights: Weights
    workdir: Path
    sentence: str
    forced: bool
    correct_bias: bool
    number: Iterator[int] = field(default_factory=count)

    def __call__(self, levels: Mapping[str, str]) -> Built:
        """Read the float graph again, and write it with integers into a fresh folder."""
        from optkit.passes._ir import derived, load_ir
        from optkit.passes._quant.flow import Flow
        from optkit.passes._quant.qdq import QdqWriter

        model = load_ir(self.prepared)
        held, _ = Flow(model.graph, self.chosen, self.sizes, forced=self.forced).held(levels, next(iter(self.grids)))
        writer = QdqWriter(model, held, self.grids, self.activations, self.weights, correct_bias=self.correct_bias)
        changes = writer.write()
        folder = self.workdir / f"int8-{next(self.number)}"
        return Built(derived(self.source, model, folder, self.sentence), changes)


def told(build: Builder) -> str:
    """What tensors become, for people."""
    grid = next(iter(build.grids.values()))
    return f"activations {grid.name}, weights {'7 bits' if build.weights.reduce_range else 'int8'}"


def rungs(build: Builder, ctx: Context) -> list[str]:
    """16 bits only where they may pay: on CPUs float32 is faster, so that a repair has to measure."""
    first, *others = build.grids
    return [first, *(others if ctx.may_time or ctx.target.provider != "cpu" else [])]


def data_notes(data: Dataset) -> Iterator[str]:
    """What is poor about the calibration data."""
    if data.count < FEW_SAMPLES:
        yield (
            f"only {data.count} calibration samples: ranges may be too narrow, as extremes are rare;"
            f" {FEW_SAMPLES} to 500 are usual"
        )
    if data.synthetic:
        yield "the calibration data are synthetic: ranges are guesses"
    if data.count > 1 and _constant(data):
        yield f"the calibration data are constant: all {data.count} samples are the same, so ranges fit no other"


def _constant(data: Dataset) -> bool:
    """Whether all samples are alike; mostly it takes but one batch to see that they are not."""
    import numpy as np

    first: dict[str, Array] = {}
    for batch in data.batches():
        for name, array in batch.inputs.items():
            rows = np.atleast_1d(array)
            one = first.setdefault(name, rows[:1])
            if one.shape[1:] != rows.shape[1:] or (rows != one).any():
                return False
    return True


def strangers(data: Dataset, found: Activations) -> Iterator[str]:
    """Inputs that reach much further in ``data`` than calibration saw, or much less far."""
    for name, (low, high) in ({} if data.synthetic else _extremes(data, found)).items():
        least, top = found[name].seen
        if max(high, top) - min(low, least) > WIDER * (top - least):
            yield (
                f"'{name}' reaches from {low:.4g} to {high:.4g} on the split {data.split}, but only from {least:.4g} to"
                f" {top:.4g} in calibration: what lies beyond is cut off; calibrate on data like those to come"
            )
        elif top - least > COARSER * (high - low):
            yield (
                f"'{name}' reaches from {low:.4g} to {high:.4g} on the split {data.split}, but from {least:.4g} to"
                f" {top:.4g} in calibration: most of its integers are never used; calibrate on data like those to come"
            )


def _extremes(data: Dataset, found: Activations) -> dict[str, tuple[float, float]]:
    extremes: dict[str, tuple[float, float]] = {}
    for batch in data.batches():
        for name, array in batch.inputs.items():
            if name in found and array.size:
                low, high = extremes.get(name, (float("inf"), float("-inf")))
                extremes[name] = min(low, float(array.min())), max(high, float(array.max()))
    return extremes
