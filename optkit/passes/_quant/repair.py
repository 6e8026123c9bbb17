"""The accuracy budget of quantizing passes: what costs most is given back until the limits hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from optkit.model.manifest import Decision, Ratio
from optkit.passes._base import Context
from optkit.passes._quant.layered import FLOAT, GIVEN_BACK, Layered, Repaired
from optkit.passes._quant.ranking import Effect, rank
from optkit.passes._quant.trials import NONE, Levels, Trials


def reason_not_to(repair: bool | Literal["labelled"], ctx: Context) -> str | None:
    """None where the budget is to be held; else why not, empty where nobody asked for it."""
    if not repair:
        return ""
    data = ctx.batches("search")
    if data.synthetic:
        return "no repair: the data are made up"
    return "no repair: the data have no labels" if repair == "labelled" and data.labels is None else None


def hold_budget(layered: Layered, ctx: Context, *, by_speed: bool = True) -> Repaired:
    """The model with as few layers given back as hold the accuracy limits on the split search, with a reserve.

    ``int8, int8, int8, int8 -> int8, float32, int8, int8``

    1. Fully quantized: where it holds the limits and leaves ``trials.RESERVE``, nothing is given back.
    2. The float model: where that misses them too, it is not this pass that lost them, and nothing is given back.
    3. Layers are ranked by what they cost (``ranking.rank``). For each higher precision of the ladder the smallest
       number of layers is sought that has to be given back, the worst first, by doubling and bisection.
    4. Where several precisions do, the smallest file stays, or ``by_speed`` one that is measured to be faster.

    At least one layer stays quantized. Where that is too much, the best found is returned and said to be that: the
    verdict on the split evaluation decides, and will miss.

    Greedy selection over a sensitivity ranking: Wu et al. 2020, "Integer Quantization for Deep Learning Inference",
    section 5 (partial quantization), which adds layers one by one; bisection finds the same number with fewer trials as
    long as giving back more does not hurt.
    """
    trials = Trials(layered, ctx)
    if trials.holds(NONE):
        return _untouched(trials, "repair: the limits hold on the split search, nothing is given back")
    if missed := trials.moderate(ctx.judge(layered.model)):
        return _untouched(trials, f"no repair: in float32 the split search misses the limits too: {missed}")
    if trials.holds(NONE):
        return _untouched(trials, "repair: the limits hold as far as the split search can tell, nothing is given back")
    ranking = rank(layered, ctx, trials.built(NONE).model, trials.judged[NONE])
    chosen, decisions = _chosen(trials, ranking, by_speed)
    if not decisions:
        return _untouched(
            trials, "repair: the limits just hold on the split search, and giving back makes it no better"
        )
    words = {each.label: each.words() for each in ranking}
    given_back = [(label, f"{GIVEN_BACK} to {to}: {words[label]}") for label, to in trials.ordered(chosen)]
    notes = [f"repair: {each.what}; {each.reason}" for each in decisions if each.kept]
    return Repaired(trials.keep_only(chosen), given_back, decisions, [*notes, *trials.notes])


def _chosen(trials: Trials, ranking: Sequence[Effect], by_speed: bool) -> tuple[Levels, list[Decision]]:
    """What to give back: what holds the limits, with the reserve or else without it; or else the best."""
    for goal in (trials.goal, 1.0):
        trials.goal = goal
        if trials.holds(NONE):
            return NONE, []
        if found := [levels for rung in trials.layered.ladder[1:] if (levels := _fewest(trials, ranking, rung))]:
            return _fastest(trials, found, by_speed)
    best = trials.best()
    reason = f"the best that was found, but it misses the limits: {trials.bought(best)}"
    return best, [Decision(what=trials.told(best), kept=True, reason=reason)]


def _untouched(trials: Trials, note: str) -> Repaired:
    return Repaired(trials.keep_only(NONE), notes=[note, *trials.notes])


def _fewest(trials: Trials, ranking: Sequence[Effect], rung: str) -> Levels | None:
    """The fewest layers at ``rung`` that hold the limits, the worst of the ranking first; None = there are none."""

    def first(count: int) -> Levels:
        return frozenset((each.label, rung) for each in ranking[:count])

    most = len(ranking) - (rung == FLOAT)
    count = smallest(lambda count: trials.holds(first(count)), most)
    return first(count) if count and first(count) not in trials.idle else None


def smallest(holds: Callable[[int], bool], most: int) -> int:
    """The smallest number from 1 to ``most`` that holds, as far as all above it do; 0 = not even ``most`` does.

    By doubling, then bisection: few trials where few are enough, as is usual.
    """
    low, high = 0, min(1, most)
    while high and not holds(high):
        low, high = high, (min(2 * high, most) if high < most else 0)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _fastest(trials: Trials, found: Sequence[Levels], by_speed: bool) -> tuple[Levels, list[Decision]]:
    """Of those that hold the limits the smallest or surely faster one, and what each costs."""
    order = sorted(found, key=lambda levels: (trials.built(levels).model.size_bytes, len(levels)))
    ratios: Mapping[Levels, Ratio] = {}
    if trials.ctx.may_time:
        timed = trials.ctx.time([trials.built(levels).model for levels in (NONE, *order)])
        ratios = dict(zip(order, timed[1:], strict=True))
    chosen = order[0]
    for other in order[1:] if by_speed and ratios else ():
        if ratios[other].low > ratios[chosen].high:
            chosen = other
    return chosen, [_decision(trials, levels, levels == chosen, ratios.get(levels)) for levels in found]


def _decision(trials: Trials, levels: Levels, kept: bool, ratio: Ratio | None) -> Decision:
    parts = [trials.bought(levels), "not timed" if ratio is None else _price(ratio)]
    parts += [] if kept else ["what was kept is smaller or faster"]
    ends = {} if ratio is None else {"speedup": ratio.speedup, "low": ratio.low, "high": ratio.high}
    return Decision(what=trials.told(levels), kept=kept, reason="; ".join(parts), **ends)


def _price(ratio: Ratio) -> str:
    """What giving back costs, in words; the ratio is that to the model with all layers quantized."""
    cost = ratio.candidate_ms - ratio.baseline_ms
    if ratio.low <= 1 <= ratio.high:
        interval = f"{ratio.low:.2f} to {ratio.high:.2f}x"
        return f"whether it is slower than with all layers quantized cannot be told ({interval})"
    return f"{'costs' if cost > 0 else 'saves'} {abs(cost):.2g} ms a call against all layers quantized"
