"""How much faster is one model than another? The arithmetic: an estimate from paired blocks, and its interval.

Noise has two levels. Blocks of one round differ by what else the machine does, which more rounds average away. And
one and the same file runs up to 2 % faster in one process than in another for as long as they live, because their
memory lies elsewhere; only more processes average that away (Kalibera and Jones, "Rigorous benchmarking in reasonable
time", ISMM 2013). So there are several launches, and the estimate is the mean of theirs.

The interval comes from resampling both levels. Rounds are drawn anew from those seen (the bootstrap, Efron 1979). Of
launches there are too few for that: their mean is moved by draws of Student's t instead. Its deviation is that of the
launches seen, moderated by what is known beforehand (``SPREAD``, which counts as much as ``PRIOR`` further launches;
Smyth, "Linear models and empirical Bayes methods", SAGMB 2004). It assumes that launches differ normally: with a
deviation of twice ``SPREAD`` a 99 % interval of 3 or 5 launches holds the truth 96 times of 100, where launches differ
by ``SPREAD`` 99 times.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from optkit.data.dataset import Arrays
from optkit.model.manifest import Ratio

Times = NDArray[np.float64]

SPREAD = 0.007
"""Standard deviation over launches of the ratio of two processes with the same file, as a share: what is assumed
before any launch is seen."""
PRIOR = 4
"""How many launches that assumption is worth, beyond the first one."""
RESAMPLES = 2000
"""Bootstrap resamples of an interval."""


def ratio_of(
    baseline: Sequence[Times],
    candidate: Sequence[Times],
    *,
    confidence: float = 0.99,
    margin: float = 0.02,
    inputs: str = "",
    spread: float = SPREAD,
) -> Ratio:
    """The speedup from block medians in seconds, float64[rounds] per launch, paired round by round.

    A launch's estimate is the median of its pairs' log ratios; the launches' mean is the answer.

    Args:
        baseline: per launch, the baseline's block medians.
        candidate: the candidate's, from the same launches and rounds.
        confidence: of the interval.
        margin: kept with the ratio, whose ``word`` it decides.
        inputs: kept with the ratio.
        spread: see ``SPREAD``; 0 where both are the very same process.
    """
    pairs = [np.log(one / other) for one, other in zip(baseline, candidate, strict=True)]
    centre = float(np.mean([np.median(pair) for pair in pairs]))
    low, high = interval(pairs, confidence=confidence, spread=spread)
    return Ratio(
        baseline_ms=float(np.median(np.concatenate(baseline))) * 1e3,
        candidate_ms=float(np.median(np.concatenate(candidate))) * 1e3,
        speedup=float(np.exp(centre)),
        low=float(np.exp(low)),
        high=float(np.exp(high)),
        confidence=confidence,
        margin=margin,
        blocks=sum(map(len, pairs)),
        inputs=inputs,
    )


def interval(launches: Sequence[Times], *, confidence: float, spread: float = SPREAD) -> tuple[float, float]:
    """Ends of the percentile interval of the mean of the launches' medians, in their unit; always from the same draws.

    Args:
        launches: per launch, values of its rounds (log ratios, float64[rounds]).
        confidence: of the interval.
        spread: see ``SPREAD``; 0 asks for what the rounds alone say, whatever the launches.
    """
    random = np.random.default_rng(0)
    count = len(launches)
    means = np.mean([_medians(values, random) for values in launches], axis=0)
    freedom = PRIOR + count - 1
    moved = random.standard_t(freedom, RESAMPLES) * _deviation(launches, spread) / np.sqrt(count)
    low, high = np.percentile(means + moved, [50 * (1 - confidence), 50 * (1 + confidence)])
    return float(low), float(high)


def _deviation(launches: Sequence[Times], spread: float) -> float:
    """Standard deviation of launches: of these ones' medians, moderated by ``spread``; 0 where that is 0."""
    if not spread:
        return 0.0
    medians = [np.median(values) for values in launches]
    squares = PRIOR * spread**2 + len(medians) * np.var(medians)
    return float(np.sqrt(squares / (PRIOR + len(medians) - 1)))


def median_error(values: Times) -> float:
    """Standard error of the median of float64[n], by the bootstrap."""
    return float(_medians(values, np.random.default_rng(0), RESAMPLES // 5).std())


def _medians(values: Times, random: np.random.Generator, resamples: int = RESAMPLES) -> Times:
    """float64[resamples]"""
    found: Times = np.median(values[random.integers(0, len(values), size=(resamples, len(values)))], axis=1)
    return found


def describe(inputs: Sequence[Arrays], described: str = "") -> str:
    """``real, x float32[8,1,8,8]``; where batches differ in shape, the first one's and how many there are."""
    first = [f"{name} {array.dtype}[{','.join(map(str, array.shape))}]" for name, array in inputs[0].items()]
    others = len({tuple(array.shape for array in batch.values()) for batch in inputs}) - 1
    more = [f"and {others} other {'shapes' if others > 1 else 'shape'}"] if others else []
    return ", ".join([*filter(None, [described]), *first, *more])
