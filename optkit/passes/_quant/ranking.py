"""Which quantized layers cost most accuracy: each is quantized alone, or in a large model with its neighbours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from optkit.data.dataset import spread
from optkit.passes._quant.layered import FLOAT, Layered, discard

if TYPE_CHECKING:
    from optkit.data.dataset import Dataset
    from optkit.model.manifest import OutputFidelity, Verdict
    from optkit.model.model import Model
    from optkit.passes._base import Context

TRIAL_BYTES, LEAST_TRIALS = 4e9, 24
"""All trials together write about so many bytes, which takes about a minute; so many trials there are in any case. A
rule by sizes and not by the clock, so that the ranking is the same each time."""
SAMPLES = 32
"""Of the split search, evenly spread, that each trial runs on."""

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Effect:
    """What quantizing one layer costs."""

    label: str
    error: float
    """Root mean square of the error of the model's worst output over that of the output itself; infinite where that
    becomes NaN or infinite. Of integers the root of the share that differs."""
    among: int = 1
    """So many layers were quantized in that trial: 1 = this one alone, else with its neighbours."""
    drop: float | None = None
    """Of the task metric with only this layer quantized, where that was asked for."""

    @property
    def share(self) -> float:
        """The error that falls to this layer: those of several layers add up as the root of the sum of squares."""
        return self.error / math.sqrt(self.among)

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise ratio of the worst output, 10 log10(signal power / noise power)."""
        return -20 * math.log10(self.error) if 0 < self.error < math.inf else math.inf if self.error == 0 else -math.inf

    def words(self) -> str:
        """As the end of a sentence that begins with the layer."""
        who = "alone it" if self.among == 1 else f"in a group of {self.among} layers it"
        if not math.isfinite(self.error):
            return f"{who} makes the outputs NaN or infinite"
        return f"{who} moves the outputs by {self.error:.2%} ({self.sqnr_db:.1f} dB)"


def trials_of(layered: Layered) -> int:
    """How many trials the ranking makes; as many as there are layers where each is tried alone."""
    affordable = max(LEAST_TRIALS, int(TRIAL_BYTES / max(1, layered.model.size_bytes)))
    return min(len(layered.layers), affordable)


def rank(layered: Layered, ctx: Context, full: Model, judged: Verdict, *, drops: bool = False) -> list[Effect]:
    """All layers, the one that costs most first, by the error that comes out of the model on the split search.

    With only that layer quantized. What it does to its own output says little: a Relu behind may drop it, a
    normalization enlarge it. Nor does the noise in each output when all layers are quantized at once, which adds up
    along the model. (Of MiniLM's 37 layers none of the eight worst is among the eight that look worst so.)

    Where there are too many layers for the model's size (``trials_of``), groups of neighbours are tried, and the worst
    groups halved again and again: the few worst layers are found, the others are only known by their groups.

    Args:
        layered: the layers; ties stay in its order.
        ctx: runs the models. What is found is remembered.
        full: with all layers quantized.
        judged: the verdict on it, whose notes on the outputs say how they are masked and pooled.
        drops: also measure the drop of the verdict's task metric for each layer, on all of the split search; then each
            is tried alone.
    """
    data = ctx.batches("search")
    trials = trials_of(layered) if not drops else len(layered.layers)
    facts: dict[str, Any] = {"what": "ranking", "float": layered.model.digest, "quantized": full.digest}
    facts |= {"layers": dict(layered.layers), "data": data.digest, "trials": trials, "samples": SAMPLES}
    facts |= {"original": ctx.original.digest, "outputs": {each.name: each.note for each in judged.outputs}}
    facts |= {"metrics": [each.model_dump(mode="json") for each in judged.metrics] if drops else None}

    def make() -> dict[str, Any]:
        found = _Trials(layered, ctx, data, drops).effects(trials)
        return {"effects": [(each.label, each.error, each.among, each.drop) for each in found]}

    effects = {each[0]: Effect(*each) for each in ctx.remember(facts, make)["effects"]}
    return sorted((effects[label] for label in layered.layers), key=lambda each: each.share, reverse=True)


class _Trials:
    """Groups of layers that are quantized alone, against the original's outputs."""

    def __init__(self, layered: Layered, ctx: Context, data: Dataset, drops: bool) -> None:
        self._layered, self._ctx, self._drops = layered, ctx, drops
        self._data = spread(data, SAMPLES, data.split)

    def effects(self, trials: int) -> Iterator[Effect]:
        """Of every layer, after so many trials."""
        labels = tuple(self._layered.layers)
        first = len(labels) if trials == len(labels) else max(1, trials // 2)
        found = {group: self._tried(group, index, trials) for index, group in enumerate(_parts(labels, first))}
        done = first
        while done + 2 <= trials and (group := _worst(found)):
            del found[group]
            for half in _parts(group, 2):
                found[half] = self._tried(half, done, trials)
                done += 1
        for group, (error, drop) in found.items():
            yield from (Effect(label, error, len(group), drop) for label in group)

    def _tried(self, group: Labels, done: int, total: int) -> tuple[float, float | None]:
        """Error of the worst output, and the drop of the metric."""
        self._ctx.progress(done, total)
        built = self._layered.build({other: FLOAT for other in self._layered.layers if other not in group})
        verdict = self._ctx.judge(built.model, None if self._drops else self._data)
        discard(built, self._ctx.workdir)
        return _error(verdict), verdict.metrics[0].drop if self._drops and verdict.metrics else None


def _parts(labels: Labels, count: int) -> Iterator[Labels]:
    """As many groups of neighbours, as equal as can be."""
    edges = [len(labels) * index // count for index in range(count + 1)]
    return (labels[start:end] for start, end in pairwise(edges) if end > start)


def _worst(found: Mapping[Labels, tuple[float, float | None]]) -> Labels | None:
    """The group of several layers with the largest error, if there is one."""
    return max((group for group in found if len(group) > 1), key=lambda group: found[group][0], default=None)


def _error(verdict: Verdict) -> float:
    """As in ``Effect``, of the outputs as the verdict takes them: masked and pooled."""
    return math.inf if verdict.problems else max(map(_error_of, verdict.outputs), default=0.0)


def _error_of(output: OutputFidelity) -> float:
    if output.sqnr_db is not None:
        return float(10.0 ** (-output.sqnr_db / 20))
    return math.sqrt(1 - output.equal) if output.equal is not None else 0.0
