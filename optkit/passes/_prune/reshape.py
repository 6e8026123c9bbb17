"""How units pass a reshape: dimensions are taken apart and put together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from optkit.passes._prune.flow import Call, Result, stay, staying


def reshape(call: Call) -> Result:
    """Dimensions taken apart and put together: channels of a flattened image, heads of a hidden size."""
    flow, x, shape = call.flow, call.tensors()[0], call.shape
    wide = [dim for dim in x if len(dim) > 1]
    sizes = [size for size in shape if size > 1]
    finest = _finest([len(dim) for dim in wide], sizes)
    if finest is None:
        flow.pin(wide, f"{call.operator} mixes it with its neighbours")
        return staying(shape)
    before, after = finest
    parts = iter([part for dim, own in zip(wide, before, strict=True) for part in flow.split(dim, own)])
    merged = iter([flow.merge([next(parts) for _ in own]) for own in after])
    return tuple(next(merged) if size > 1 else stay(1) for size in shape)


def _finest(before: Sequence[int], after: Sequence[int]) -> tuple[list[list[int]], list[list[int]]] | None:
    """Factors of each dimension before and after, such that both lists of factors are the same; None if there are none.

    [3, 24] and [3, 4, 6] -> [[3], [4, 6]] and [[3], [4], [6]].
    """
    ends = sorted({*np.cumprod(before).tolist(), *np.cumprod(after).tolist()})
    starts = [1, *ends[:-1]]
    if any(end % start for start, end in zip(starts, ends, strict=True)):
        return None
    return _cut(before, starts, ends), _cut(after, starts, ends)


def _cut(sizes: Sequence[int], starts: Sequence[int], ends: Sequence[int]) -> list[list[int]]:
    factors = list(zip(starts, ends, strict=True))
    bounds = [1, *np.cumprod(sizes).tolist()]
    return [[end // start for start, end in factors if low <= start and end <= high] for low, high in pairwise(bounds)]
