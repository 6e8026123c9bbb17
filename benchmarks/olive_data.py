"""Calibration data for Olive, as its user scripts register them: samples of one .npz, ``INDEX/INPUT`` -> array."""

from collections import defaultdict

import numpy as np
from olive.data.registry import Registry


@Registry.register_dataset()
def npz_samples(path: str, **_: object) -> list[tuple[dict[str, np.ndarray], int]]:
    """(inputs, label) pairs; static quantization does not look at the label."""
    feeds: dict[int, dict[str, np.ndarray]] = defaultdict(dict)
    with np.load(path) as file:
        for key in file.files:
            index, _, name = key.partition("/")
            feeds[int(index)][name] = file[key]
    return [(feeds[index], 0) for index in sorted(feeds)]
